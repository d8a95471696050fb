import {
  BITS_PER_BITMAP,
  COMPAT,
  EXTRA_ISIZE,
  FIRST_INODE,
  FLAG_UNSIGNED_DIRECTORY_HASH,
  INCOMPAT,
  INODE_BYTES,
  MOUNT_OPTIONS,
  RO_COMPAT,
  SUPERBLOCK,
  SUPERBLOCK_MAGIC,
} from './structures.js';

/** What differs between the file systems we make. */
export interface SuperblockFacts {
  readonly blocks: number;
  readonly freeBlocks: number;
  readonly groups: number;
  /** At most 32768. */
  readonly blocksPerGroup: number;
  readonly inodesPerGroup: number;
  readonly freeInodes: number;
  readonly uuid: Uint8Array;
  /** At most 16 bytes. */
  readonly label?: Uint8Array;
  /** Sets the feature that makes kernels refuse to mount it read-write. */
  readonly readOnly: boolean;
}

/**
 * The seed of directory hashes. It need not be secret: it guards live file systems against names chosen to collide,
 * and the number of collisions an index can hold is bounded here.
 */
export const HASH_SEED = Buffer.from('6c636f77206469722068617368207631', 'hex');

/**
 * A super block without journal, checksums and backups: what tar2ext4 writes, plus directory indexes and large
 * directories' link counts. All times are 0, so that equal content gives equal bytes.
 */
export function encodeSuperblock(facts: SuperblockFacts): Buffer {
  return SUPERBLOCK.encode({
    s_inodes_count: facts.groups * facts.inodesPerGroup,
    s_blocks_count_lo: facts.blocks,
    s_free_blocks_count_lo: facts.freeBlocks,
    s_free_inodes_count: facts.freeInodes,
    s_log_block_size: 2,
    s_log_cluster_size: 2,
    s_blocks_per_group: facts.blocksPerGroup,
    s_clusters_per_group: facts.blocksPerGroup,
    s_inodes_per_group: facts.inodesPerGroup,
    s_max_mnt_count: 0xffff,
    s_magic: SUPERBLOCK_MAGIC,
    s_state: 1,
    s_errors: 1,
    s_rev_level: 1,
    s_first_ino: FIRST_INODE,
    s_inode_size: INODE_BYTES,
    s_feature_compat: COMPAT.ext_attr | COMPAT.dir_index | COMPAT.sparse_super2,
    s_feature_incompat: INCOMPAT.filetype | INCOMPAT.extents | INCOMPAT.flex_bg,
    s_feature_ro_compat:
      RO_COMPAT.large_file |
      RO_COMPAT.huge_file |
      RO_COMPAT.dir_nlink |
      RO_COMPAT.extra_isize |
      (facts.readOnly ? RO_COMPAT.read_only : 0),
    s_uuid: facts.uuid,
    s_volume_name: Buffer.concat([facts.label ?? Buffer.alloc(0), Buffer.alloc(16)]).subarray(0, 16),
    s_hash_seed: HASH_SEED,
    s_def_hash_version: 1,
    s_default_mount_opts: MOUNT_OPTIONS,
    s_min_extra_isize: EXTRA_ISIZE,
    s_want_extra_isize: EXTRA_ISIZE,
    s_flags: FLAG_UNSIGNED_DIRECTORY_HASH,
    s_log_groups_per_flex: flexGroupShift(facts.groups),
  });
}

/** One flexible group over all groups, because all bitmaps and inode tables stand together; mke2fs' 16 at least. */
function flexGroupShift(groups: number): number {
  return Math.max(4, Math.ceil(Math.log2(groups)));
}

/** Number of groups that hold so many blocks. */
export function groupsFor(blocks: number, blocksPerGroup: number = BITS_PER_BITMAP): number {
  return Math.ceil(blocks / blocksPerGroup);
}
