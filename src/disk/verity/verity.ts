import { createHash } from 'node:crypto';
import type { FileHandle } from 'node:fs/promises';
import { LcowError } from '../../errors/index.js';
import { throwIfAborted } from '../../lifetime/index.js';
import { asIoError } from '../../state/index.js';
import { openDisk, type BlockSource, type DiskFormat } from '../source/index.js';
import { HashTree, treeLayout } from './hash-tree.js';
import { decodeVeritySuperblock, encodeVeritySuperblock, VERITY_BLOCK_BYTES, VERITY_SUPERBLOCK } from './superblock.js';

/** What a guest needs to know of a disk with a hash tree. */
export interface Verity {
  /** Hexadecimal, 64 digits. Trust in the disk is trust in this. */
  readonly rootHash: string;
  /** Blocks of 4096 bytes that the tree covers, from the start of the disk. */
  readonly dataBlocks: number;
  /** Where the super block is; the tree follows it in the next block. */
  readonly hashOffset: number;
  /** Size of the super block's block and the tree. */
  readonly hashBytes: number;
}

/** What {@link verifyVerity} found. */
export interface VerityCheck extends Verity {
  /** Identity of the hash device. */
  readonly uuid: string;
  /** Hexadecimal; empty without. */
  readonly salt: string;
  /** Blocks of the tree that are not what the data gives, by number; the first 100. Empty for a good disk. */
  readonly badTreeBlocks: readonly number[];
  /** Whether tree and root hash are what the data gives. */
  readonly good: boolean;
}

/** What is read and written at a time. */
const PIECE_BYTES = 2 ** 20;
const MAXIMUM_BAD_BLOCKS = 100;

/**
 * Writes a hash tree behind a file system, as hcsshim's tar2ext4 does: super block in the block behind the data, the
 * root's level in the next one; sha256 with a salt of 32 zero bytes. tar2ext4 gives the super block a random UUID, ours
 * follows from the root hash: the same data gives the same bytes.
 * @param file open for reading and writing; written from `imageBytes` on.
 * @param imageBytes size of the file system: a multiple of 4096.
 * @throws LcowError INVALID_ARGUMENT, IO_FAILED, DISK_FULL, CANCELLED.
 */
export async function appendVerity(
  file: FileHandle,
  imageBytes: number,
  options: { signal?: AbortSignal | undefined } = {},
): Promise<Verity> {
  if (imageBytes <= 0 || imageBytes % VERITY_BLOCK_BYTES !== 0)
    throw new LcowError('INVALID_ARGUMENT', `A hash tree cannot cover ${imageBytes} bytes: it is no number of 4 KiB.`);
  const dataBlocks = imageBytes / VERITY_BLOCK_BYTES;
  const treeStart = imageBytes + VERITY_BLOCK_BYTES;
  const pending: { number: number; block: Buffer }[] = [];
  const tree = new HashTree(dataBlocks, new Uint8Array(32), (number, block) => {
    pending.push({ number, block: Buffer.from(block) });
  });
  const writePending = async (): Promise<void> => {
    for (const { number, block } of pending.splice(0))
      await writeFully(file, block, treeStart + number * VERITY_BLOCK_BYTES);
  };
  try {
    const piece = Buffer.allocUnsafe(PIECE_BYTES);
    for (let at = 0; at < imageBytes;) {
      throwIfAborted(options.signal);
      const wanted = Math.min(PIECE_BYTES, imageBytes - at);
      for (let filled = 0; filled < wanted;) {
        const { bytesRead } = await file.read(piece, filled, wanted - filled, at + filled);
        if (bytesRead === 0) throw new LcowError('IO_FAILED', 'The disk image ended while it was being hashed.');
        filled += bytesRead;
      }
      tree.push(piece.subarray(0, wanted));
      await writePending();
      at += wanted;
    }
    const root = tree.finish();
    await writePending();
    const uuid = uuidOf(root);
    await writeFully(file, encodeVeritySuperblock(dataBlocks, uuid), imageBytes);
    return { rootHash: root.toString('hex'), ...extent(dataBlocks, imageBytes) };
  } catch (error) {
    throw asIoError(error, 'The hash tree cannot be written');
  }
}

/**
 * Hashes the data of a disk and compares it with its tree, as `veritysetup verify` does.
 * @param path a raw image, VHD or VHDX.
 * @param options.hashOffset where the super block is: the end of the file system.
 * @param options.rootHash what the root hash must be; without it a tree that fits its data is good.
 * @throws LcowError BAD_EXT4 when there is no super block there or it is damaged; NOT_FOUND, IO_FAILED, CANCELLED.
 */
export async function verifyVerity(
  path: string,
  options: {
    hashOffset: number;
    rootHash?: string | undefined;
    format?: DiskFormat | undefined;
    signal?: AbortSignal | undefined;
  },
): Promise<VerityCheck> {
  const { hashOffset, rootHash, signal } = options;
  await using disk = await openDisk(path, { format: options.format });
  const { source } = disk;
  const block = await read(source, hashOffset, VERITY_SUPERBLOCK.size);
  const superblock = decodeVeritySuperblock(block, path, hashOffset);
  if (!superblock)
    throw new LcowError('BAD_EXT4', `${path} has no verity super block at byte ${hashOffset}.`, {
      details: { offset: hashOffset },
    });
  const { blocks: dataBlocks, saltBytes } = superblock;
  const { hashBytes } = extent(dataBlocks, hashOffset);
  if (hashOffset + hashBytes > source.sizeBytes)
    throw new LcowError('BAD_EXT4', `${path} is cut off in its hash tree, which ends at ${hashOffset + hashBytes}.`);

  const badTreeBlocks: number[] = [];
  const pending: { number: number; block: Buffer }[] = [];
  const tree = new HashTree(dataBlocks, saltBytes, (number, made) => {
    pending.push({ number, block: Buffer.from(made) });
  });
  const comparePending = async (): Promise<void> => {
    for (const { number, block: made } of pending.splice(0)) {
      const there = await read(source, hashOffset + (1 + number) * VERITY_BLOCK_BYTES, VERITY_BLOCK_BYTES);
      if (!there.equals(made) && badTreeBlocks.length < MAXIMUM_BAD_BLOCKS) badTreeBlocks.push(number);
    }
  };
  const piece = Buffer.allocUnsafe(PIECE_BYTES);
  for (let at = 0; at < dataBlocks * VERITY_BLOCK_BYTES;) {
    throwIfAborted(signal);
    const part = piece.subarray(0, Math.min(PIECE_BYTES, dataBlocks * VERITY_BLOCK_BYTES - at));
    await source.readInto(part, at);
    tree.push(part);
    await comparePending();
    at += part.length;
  }
  const root = tree.finish().toString('hex');
  await comparePending();
  return {
    rootHash: root,
    ...extent(dataBlocks, hashOffset),
    uuid: Buffer.from(superblock.uuid)
      .toString('hex')
      .replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5'),
    salt: Buffer.from(saltBytes).toString('hex'),
    badTreeBlocks,
    good: badTreeBlocks.length === 0 && (rootHash === undefined || rootHash.toLowerCase() === root),
  };
}

function extent(dataBlocks: number, hashOffset: number): Omit<Verity, 'rootHash'> {
  return { dataBlocks, hashOffset, hashBytes: (1 + treeLayout(dataBlocks).totalBlocks) * VERITY_BLOCK_BYTES };
}

/** In the form of a random UUID. */
function uuidOf(root: Buffer): Uint8Array {
  const uuid = createHash('sha256').update('verity\0').update(root).digest().subarray(0, 16);
  uuid[6] = (uuid[6]! & 0x0f) | 0x40;
  uuid[8] = (uuid[8]! & 0x3f) | 0x80;
  return Uint8Array.from(uuid);
}

/** Reads what of a stretch lies inside of the disk. */
async function read(source: BlockSource, offset: number, length: number): Promise<Buffer> {
  const target = Buffer.allocUnsafe(Math.max(0, Math.min(length, source.sizeBytes - offset)));
  if (target.length > 0) await source.readInto(target, offset);
  return target;
}

async function writeFully(file: FileHandle, data: Uint8Array, position: number): Promise<void> {
  for (let done = 0; done < data.length;)
    done += (await file.write(data, done, data.length - done, position + done)).bytesWritten;
}
