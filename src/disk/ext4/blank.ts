import { randomBytes } from 'node:crypto';
import { LcowError } from '../../errors/index.js';
import { setBits } from './bitmap.js';
import { writeDirectoryEntry } from './directory.js';
import { writeRootExtents } from './extents.js';
import { writeInode } from './inode-encoding.js';
import { encodeSuperblock, groupsFor } from './superblock.js';
import {
  BITS_PER_BITMAP,
  BLOCK_BYTES,
  DESCRIPTOR_BYTES,
  FIRST_INODE,
  GROUP_DESCRIPTOR,
  GROUP_INODES_ZEROED,
  INODE,
  INODE_BYTES,
  INODE_FLAG,
  INODES_PER_BLOCK,
  MAXIMUM_BLOCKS,
  MODE,
  ROOT_INODE,
  SUPERBLOCK_OFFSET,
} from './structures.js';

/** A disk that reads as zeros where nothing was written. */
export interface BlockWriter {
  /** `offset` in bytes. The data may be kept no longer than the call. */
  write(offset: number, data: Uint8Array): void;
}

export interface BlankExt4Options {
  /** 16 bytes; random unless given. */
  readonly uuid?: Uint8Array;
  /** Volume label, at most 16 bytes of UTF-8. */
  readonly label?: string;
}

/** mke2fs: one inode for so many bytes (inode_ratio of the usage type "default"). */
const BYTES_PER_INODE = 16384;
const MINIMUM_BYTES = 1024 * 1024;
const LOST_FOUND_BLOCKS = 4;
/** How many blocks of bitmaps are put together for one write. */
const BATCH_BLOCKS = 256;

/** Where things stand: super block and descriptors, both directories, all bitmaps, all inode tables. In blocks. */
interface Geometry {
  readonly blocks: number;
  readonly groups: number;
  readonly inodesPerGroup: number;
  readonly rootDirectory: number;
  readonly blockBitmaps: number;
  readonly inodeBitmaps: number;
  readonly inodeTables: number;
  readonly inodeTableBlocks: number;
  /** First block that is free. */
  readonly firstFree: number;
}

/**
 * Makes a blank ext4 as `mke2fs -O ^has_journal,sparse_super2,^resize_inode -E packed_meta_blocks=1,num_backup_sb=0
 * -m 0` would: no journal, no checksums, no backups. Everything that is not zero stands in the first 1.5 MiB (of 20 GiB), and only
 * that is written. Without group checksums the kernel takes the inode tables as initialised and does nothing in the
 * background.
 * @param sizeBytes 1 MiB to 16 TiB, rounded down to 4096.
 * @throws LcowError INVALID_ARGUMENT; whatever the device throws.
 */
export function formatBlankExt4(device: BlockWriter, sizeBytes: number, options: BlankExt4Options = {}): void {
  const { uuid = randomBytes(16), label = '' } = options;
  const labelBytes = Buffer.from(label);
  if (uuid.length !== 16)
    throw new LcowError('INVALID_ARGUMENT', `The UUID of an ext4 must have 16 bytes, not ${uuid.length}.`);
  if (labelBytes.length > 16)
    throw new LcowError('INVALID_ARGUMENT', `The ext4 label ${JSON.stringify(label)} is longer than 16 bytes.`);
  const geometry = plan(sizeBytes);
  const { groups, inodesPerGroup, blocks, firstFree } = geometry;

  const descriptors = Buffer.alloc(Math.ceil((groups * DESCRIPTOR_BYTES) / BLOCK_BYTES) * BLOCK_BYTES);
  for (let group = 0; group < groups; group += 1) {
    const start = group * BITS_PER_BITMAP;
    const end = Math.min(start + BITS_PER_BITMAP, blocks);
    GROUP_DESCRIPTOR.encode({
      bg_block_bitmap_lo: geometry.blockBitmaps + group,
      bg_inode_bitmap_lo: geometry.inodeBitmaps + group,
      bg_inode_table_lo: geometry.inodeTables + group * geometry.inodeTableBlocks,
      bg_free_blocks_count_lo: end - Math.min(Math.max(start, firstFree), end),
      bg_free_inodes_count_lo: inodesPerGroup - (group === 0 ? FIRST_INODE : 0),
      bg_used_dirs_count_lo: group === 0 ? 2 : 0,
      bg_flags: GROUP_INODES_ZEROED,
    }).copy(descriptors, group * DESCRIPTOR_BYTES);
  }
  device.write(BLOCK_BYTES, descriptors);
  writeDirectories(device, geometry);
  writeBlockBitmaps(device, geometry);
  writeInodeBitmaps(device, geometry);
  // Last, so that a disk that was not finished is not an ext4.
  device.write(
    SUPERBLOCK_OFFSET,
    encodeSuperblock({
      blocks,
      freeBlocks: blocks - firstFree,
      groups,
      blocksPerGroup: BITS_PER_BITMAP,
      inodesPerGroup,
      freeInodes: groups * inodesPerGroup - FIRST_INODE,
      uuid,
      label: labelBytes,
      readOnly: false,
    }),
  );
}

function plan(sizeBytes: number): Geometry {
  const blocks = Math.floor(sizeBytes / BLOCK_BYTES);
  if (!Number.isSafeInteger(sizeBytes) || sizeBytes < MINIMUM_BYTES || blocks > MAXIMUM_BLOCKS)
    throw new LcowError(
      'INVALID_ARGUMENT',
      `An ext4 cannot have ${sizeBytes} bytes: the size must be from 1 MiB to 16 TiB.`,
    );
  const groups = groupsFor(blocks);
  const wanted = Math.ceil((blocks * BLOCK_BYTES) / BYTES_PER_INODE / groups / INODES_PER_BLOCK) * INODES_PER_BLOCK;
  const inodesPerGroup = Math.max(INODES_PER_BLOCK * 2, wanted);
  const rootDirectory = 1 + Math.ceil((groups * DESCRIPTOR_BYTES) / BLOCK_BYTES);
  const blockBitmaps = rootDirectory + 1 + LOST_FOUND_BLOCKS;
  const inodeBitmaps = blockBitmaps + groups;
  const inodeTables = inodeBitmaps + groups;
  const inodeTableBlocks = inodesPerGroup / INODES_PER_BLOCK;
  return {
    blocks,
    groups,
    inodesPerGroup,
    rootDirectory,
    blockBitmaps,
    inodeBitmaps,
    inodeTables,
    inodeTableBlocks,
    firstFree: inodeTables + groups * inodeTableBlocks,
  };
}

/** Root and lost+found, the latter with room for what e2fsck may find, as mke2fs leaves it. */
function writeDirectories(device: BlockWriter, { rootDirectory, inodeTables }: Geometry): void {
  const content = Buffer.alloc((1 + LOST_FOUND_BLOCKS) * BLOCK_BYTES);
  writeDirectoryEntry(content, 0, ROOT_INODE, 12, '.', 2);
  writeDirectoryEntry(content, 12, ROOT_INODE, 12, '..', 2);
  writeDirectoryEntry(content, 24, FIRST_INODE, BLOCK_BYTES - 24, 'lost+found', 2);
  writeDirectoryEntry(content, BLOCK_BYTES, FIRST_INODE, 12, '.', 2);
  writeDirectoryEntry(content, BLOCK_BYTES + 12, ROOT_INODE, BLOCK_BYTES - 12, '..', 2);
  for (let block = 2; block <= LOST_FOUND_BLOCKS; block += 1)
    writeDirectoryEntry(content, block * BLOCK_BYTES, 0, BLOCK_BYTES, '', 0);
  device.write(rootDirectory * BLOCK_BYTES, content);

  const table = Buffer.alloc(BLOCK_BYTES);
  const view = new DataView(table.buffer, table.byteOffset, table.byteLength);
  const times = { mtime: 0, mtimeNs: 0, atime: 0, atimeNs: 0, ctime: 0, ctimeNs: 0 };
  const common = { uid: 0, gid: 0, flags: INODE_FLAG.extents, attributeBlock: 0, ...times };
  const root = (ROOT_INODE - 1) * INODE_BYTES;
  writeInode(view, root, { ...common, mode: MODE.directory | 0o755, links: 3, size: BLOCK_BYTES, blocks: 1 });
  writeRootExtents(view, root + INODE.fields.i_block.offset, rootDirectory, 1);
  const lostFound = (FIRST_INODE - 1) * INODE_BYTES;
  writeInode(view, lostFound, {
    ...common,
    mode: MODE.directory | 0o700,
    links: 2,
    size: LOST_FOUND_BLOCKS * BLOCK_BYTES,
    blocks: LOST_FOUND_BLOCKS,
  });
  writeRootExtents(view, lostFound + INODE.fields.i_block.offset, rootDirectory + 1, LOST_FOUND_BLOCKS);
  device.write(inodeTables * BLOCK_BYTES, table);
}

/** Only those that are not all zero: the groups the metadata takes, and the end of the last one. */
function writeBlockBitmaps(device: BlockWriter, { blocks, groups, blockBitmaps, firstFree }: Geometry): void {
  for (let group = 0; group < groups; group += 1) {
    const start = group * BITS_PER_BITMAP;
    const used = Math.min(Math.max(firstFree - start, 0), BITS_PER_BITMAP);
    const present = Math.min(blocks - start, BITS_PER_BITMAP);
    if (used === 0 && present === BITS_PER_BITMAP) continue;
    const bitmap = Buffer.alloc(BLOCK_BYTES);
    setBits(bitmap, 0, used);
    setBits(bitmap, present, BITS_PER_BITMAP);
    device.write((blockBitmaps + group) * BLOCK_BYTES, bitmap);
  }
}

function writeInodeBitmaps(device: BlockWriter, { groups, inodesPerGroup, inodeBitmaps }: Geometry): void {
  const batch = Buffer.alloc(Math.min(groups, BATCH_BLOCKS) * BLOCK_BYTES);
  for (let block = 0; block < batch.length / BLOCK_BYTES; block += 1)
    setBits(batch.subarray(block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES), inodesPerGroup, BITS_PER_BITMAP);
  for (let group = 0; group < groups; group += BATCH_BLOCKS) {
    const count = Math.min(groups - group, BATCH_BLOCKS);
    device.write((inodeBitmaps + group) * BLOCK_BYTES, batch.subarray(0, count * BLOCK_BYTES));
  }
  const first = Buffer.from(batch.subarray(0, BLOCK_BYTES));
  setBits(first, 0, FIRST_INODE);
  device.write(inodeBitmaps * BLOCK_BYTES, first);
}
