import { LcowError } from '../../errors/index.js';
import { bytes, structure, text, u16, u32, u64, type StructureValues } from '../structure/index.js';

/** Blocks of data and of hashes, as tar2ext4 and the kernel's guests have it. */
export const VERITY_BLOCK_BYTES = 4096;

/** The super block of a dm-verity device as cryptsetup defines it (lib/verity/verity.c); little-endian. */
export const VERITY_SUPERBLOCK = structure('verity super block', 512, 'little', {
  signature: text(0, 8), // "verity"
  version: u32(8),
  hashType: u32(12),
  uuid: bytes(16, 16),
  algorithm: text(32, 32),
  dataBlockSize: u32(64),
  hashBlockSize: u32(68),
  dataBlocks: u64(72),
  saltSize: u16(80),
  salt: bytes(88, 256),
});

/** A super block whose values were found good. */
export interface VeritySuperblock extends StructureValues<typeof VERITY_SUPERBLOCK.fields> {
  /** `dataBlocks` as a number. */
  readonly blocks: number;
  /** The bytes of the salt that count. */
  readonly saltBytes: Uint8Array;
}

/** hcsshim's tar2ext4: 32 zero bytes. */
const SALT = new Uint8Array(32);

/** The block with the super block of a hash tree over so many data blocks. */
export function encodeVeritySuperblock(dataBlocks: number, uuid: Uint8Array): Buffer {
  const salt = new Uint8Array(VERITY_SUPERBLOCK.fields.salt.size);
  salt.set(SALT);
  const block = Buffer.alloc(VERITY_BLOCK_BYTES);
  VERITY_SUPERBLOCK.encode({
    signature: 'verity',
    version: 1,
    hashType: 1,
    uuid,
    algorithm: 'sha256',
    dataBlockSize: VERITY_BLOCK_BYTES,
    hashBlockSize: VERITY_BLOCK_BYTES,
    dataBlocks: BigInt(dataBlocks),
    saltSize: SALT.length,
    salt,
  }).copy(block);
  return block;
}

/**
 * Reads and checks a super block.
 * @param source what to call the disk in errors.
 * @param offset where it stands in the disk.
 * @returns undefined where there is none.
 * @throws LcowError BAD_EXT4 when it is damaged or of another kind than we write: sha256, blocks of 4096 bytes.
 */
export function decodeVeritySuperblock(
  block: Uint8Array,
  source: string,
  offset: number,
): VeritySuperblock | undefined {
  if (block.length < VERITY_SUPERBLOCK.size) return undefined;
  const values = VERITY_SUPERBLOCK.decode(block);
  if (values.signature !== 'verity') return undefined;
  const bad = (field: keyof typeof VERITY_SUPERBLOCK.fields, value: string | number | bigint): LcowError =>
    new LcowError(
      'BAD_EXT4',
      `${source} has no good verity super block: ${field} at byte ${offset + VERITY_SUPERBLOCK.fields[field].offset} is ` +
        `${value}.`,
      { details: { part: VERITY_SUPERBLOCK.name, field, offset } },
    );
  if (values.version !== 1) throw bad('version', values.version);
  if (values.hashType !== 1) throw bad('hashType', values.hashType);
  if (values.algorithm !== 'sha256') throw bad('algorithm', JSON.stringify(values.algorithm));
  if (values.dataBlockSize !== VERITY_BLOCK_BYTES) throw bad('dataBlockSize', values.dataBlockSize);
  if (values.hashBlockSize !== VERITY_BLOCK_BYTES) throw bad('hashBlockSize', values.hashBlockSize);
  if (values.saltSize > values.salt.length) throw bad('saltSize', values.saltSize);
  if (values.dataBlocks === 0n || values.dataBlocks > BigInt(Math.floor(offset / VERITY_BLOCK_BYTES)))
    throw bad('dataBlocks', values.dataBlocks);
  return { ...values, blocks: Number(values.dataBlocks), saltBytes: values.salt.subarray(0, values.saltSize) };
}
