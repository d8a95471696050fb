/** Directories, read: all blocks one after the other, since those of a hash tree's index look empty to such a reader. */
import { metadataChecksum } from './checksum.js';
import type { Ext4Inode, InodeKind } from './inode.js';
import type { Volume } from './volume.js';

const ENTRY_HEADER_BYTES = 8;
const TAIL_BYTES = 12;
const TAIL_TYPE = 0xde;

/** An entry of a directory; the two dots are left out. */
export interface DirectoryEntry {
  /** Byte string: never empty, without slashes and NULs. */
  readonly name: string;
  readonly ino: number;
  /** What the entry says of its inode; undefined where it does not. */
  readonly kind: InodeKind | undefined;
}

const KINDS: readonly (InodeKind | undefined)[] = [
  undefined,
  'file',
  'directory',
  'characterDevice',
  'blockDevice',
  'fifo',
  'socket',
  'symbolicLink',
];

/** Verifies a block of a directory against its checksum, if there are checksums. */
export function verifyDirectoryBlock(volume: Volume, inode: Ext4Inode, block: Buffer, index: number): void {
  if (!volume.checksums) return;
  const tail = block.length - TAIL_BYTES;
  const seed = inode.checksumSeed;
  // A leaf ends with an entry of no inode and no name that holds the checksum (struct ext4_dir_entry_tail).
  const hasTail =
    block.readUInt32LE(tail) === 0 &&
    block.readUInt16LE(tail + 4) === TAIL_BYTES &&
    block[tail + 6] === 0 &&
    block[tail + 7] === TAIL_TYPE;
  if (hasTail) {
    if (metadataChecksum(seed, block.subarray(0, tail)) === block.readUInt32LE(tail + 8)) return;
  } else if (indexChecksumMatches(seed, block)) return;
  throw volume.bad(`block ${index} of directory ${inode.ino} does not match its checksum`);
}

/** struct dx_tail, behind the last entry of the index that fits. */
function indexChecksumMatches(seed: number, block: Buffer): boolean {
  const first = block.readUInt16LE(4);
  // A node begins with one empty entry over all of it, the root with the two dots and struct dx_root_info.
  const indexAt = first === 12 ? 32 : 8;
  const limit = block.readUInt16LE(indexAt);
  const count = block.readUInt16LE(indexAt + 2);
  const tail = indexAt + limit * 8;
  if (count > limit || tail + 8 > block.length) return false;
  let sum = metadataChecksum(seed, block.subarray(0, indexAt + count * 8));
  sum = metadataChecksum(sum, block.subarray(tail, tail + 4));
  sum = metadataChecksum(sum, Buffer.alloc(4));
  return sum === block.readUInt32LE(tail + 4);
}

/**
 * Reads the entries of one block, or of one piece of a directory that lives in its inode.
 * @throws LcowError BAD_EXT4
 */
export function readEntries(volume: Volume, inode: Ext4Inode, block: Buffer, into: DirectoryEntry[]): void {
  for (let at = 0; at < block.length;) {
    const left = block.length - at;
    if (left < ENTRY_HEADER_BYTES) throw damaged(volume, inode);
    let bytes = block.readUInt16LE(at + 4);
    // In blocks of 64 KiB the length of an entry over all of it does not fit.
    if (bytes === 0xffff || bytes === 0) bytes = 65536;
    const nameBytes = volume.filetype ? block[at + 6]! : block.readUInt16LE(at + 6);
    if (bytes > left || bytes % 4 !== 0 || ENTRY_HEADER_BYTES + nameBytes > bytes) throw damaged(volume, inode);
    const ino = block.readUInt32LE(at);
    if (ino !== 0) {
      const name = block.toString('latin1', at + ENTRY_HEADER_BYTES, at + ENTRY_HEADER_BYTES + nameBytes);
      if (name !== '.' && name !== '..') {
        if (nameBytes === 0 || name.includes('/') || name.includes('\0')) throw damaged(volume, inode);
        into.push({ name, ino, kind: volume.filetype ? KINDS[block[at + 7]! & 7] : undefined });
      }
    }
    at += bytes;
  }
}

function damaged(volume: Volume, inode: Ext4Inode) {
  return volume.bad(`directory ${inode.ino} is damaged`);
}
