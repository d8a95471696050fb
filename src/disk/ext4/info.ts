import { open } from 'node:fs/promises';
import { LcowError } from '../../errors/index.js';
import { asIoError } from '../../state/index.js';
import { readAt } from '../structure/index.js';
import { COMPAT, INCOMPAT, RO_COMPAT, SUPERBLOCK, SUPERBLOCK_MAGIC, SUPERBLOCK_OFFSET } from './structures.js';

/** What the super block of an ext4 says. */
export interface Ext4Info {
  /** As `blkid` prints it. */
  readonly uuid: string;
  readonly label: string;
  readonly blockBytes: number;
  readonly blocks: number;
  readonly freeBlocks: number;
  readonly sizeBytes: number;
  readonly inodes: number;
  readonly freeInodes: number;
  readonly hasJournal: boolean;
  /** Kernels refuse to mount it read-write. */
  readonly readOnly: boolean;
}

/**
 * Reads the super block of an ext4.
 * @param offset where the file system begins in the file, in bytes.
 * @throws LcowError BAD_EXT4 when there is none or its values cannot be, IO_FAILED.
 */
export async function ext4Info(path: string, offset = 0): Promise<Ext4Info> {
  let bytes: Buffer;
  try {
    const file = await open(path, 'r');
    try {
      bytes = await readAt(file, offset + SUPERBLOCK_OFFSET, SUPERBLOCK.size);
    } finally {
      await file.close();
    }
  } catch (error) {
    throw asIoError(error, `${path} cannot be read`);
  }
  if (bytes.length < SUPERBLOCK.size) throw new LcowError('BAD_EXT4', `${path} is too short for an ext4 file system.`);
  const values = SUPERBLOCK.decode(bytes);
  if (values.s_magic !== SUPERBLOCK_MAGIC) throw new LcowError('BAD_EXT4', `${path} holds no ext4 file system.`);
  if (values.s_log_block_size > 6)
    throw new LcowError(
      'BAD_EXT4',
      `${path} has an ext4 of the impossible block size 2^${values.s_log_block_size + 10}.`,
    );
  const wide = (values.s_feature_incompat & INCOMPAT.bit64) !== 0;
  const blocks = values.s_blocks_count_lo + (wide ? values.s_blocks_count_hi * 2 ** 32 : 0);
  const freeBlocks = values.s_free_blocks_count_lo + (wide ? values.s_free_blocks_count_hi * 2 ** 32 : 0);
  const blockBytes = 1024 * 2 ** values.s_log_block_size;
  if (
    freeBlocks > blocks ||
    values.s_free_inodes_count > values.s_inodes_count ||
    !Number.isSafeInteger(blocks * blockBytes)
  )
    throw new LcowError('BAD_EXT4', `${path} has an ext4 whose counts of blocks or inodes cannot be.`);
  return {
    uuid: Buffer.from(values.s_uuid)
      .toString('hex')
      .replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5'),
    label: Buffer.from(values.s_volume_name).toString().replace(/\0.*$/s, ''),
    blockBytes,
    blocks,
    freeBlocks,
    sizeBytes: blocks * blockBytes,
    inodes: values.s_inodes_count,
    freeInodes: values.s_free_inodes_count,
    hasJournal: (values.s_feature_compat & COMPAT.has_journal) !== 0,
    readOnly: (values.s_feature_ro_compat & RO_COMPAT.read_only) !== 0,
  };
}
