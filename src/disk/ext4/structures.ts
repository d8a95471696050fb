/**
 * ext4 on disk, as Documentation/filesystems/ext4/ of the kernel describes it ("Super Block", "Block Group Descriptors",
 * "Index Nodes", "Contents of inode.i_block"). All numbers are little-endian. Only what we write or read is declared.
 */
import { bytes, structure, text, u16, u32, u8 } from '../structure/index.js';

/** The block size of every file system we make. */
export const BLOCK_BYTES = 4096;
/** A bitmap is one block, so a group has at most this many blocks, and as many inodes. */
export const BITS_PER_BITMAP = BLOCK_BYTES * 8;
export const INODE_BYTES = 256;
export const INODES_PER_BLOCK = BLOCK_BYTES / INODE_BYTES;
/** Without the 64bit feature a descriptor has 32 bytes. */
export const DESCRIPTOR_BYTES = 32;
export const DESCRIPTORS_PER_BLOCK = BLOCK_BYTES / DESCRIPTOR_BYTES;
/** Block numbers have 32 bits without the 64bit feature: 16 TiB. */
export const MAXIMUM_BLOCKS = 2 ** 32 - 1;

export const SUPERBLOCK_OFFSET = 1024;
export const SUPERBLOCK_MAGIC = 0xef53;

export const SUPERBLOCK = structure('ext4 super block', 1024, 'little', {
  s_inodes_count: u32(0x0),
  s_blocks_count_lo: u32(0x4),
  s_r_blocks_count_lo: u32(0x8),
  s_free_blocks_count_lo: u32(0xc),
  s_free_inodes_count: u32(0x10),
  s_first_data_block: u32(0x14),
  s_log_block_size: u32(0x18),
  s_log_cluster_size: u32(0x1c),
  s_blocks_per_group: u32(0x20),
  s_clusters_per_group: u32(0x24),
  s_inodes_per_group: u32(0x28),
  s_mtime: u32(0x2c),
  s_wtime: u32(0x30),
  s_mnt_count: u16(0x34),
  s_max_mnt_count: u16(0x36),
  s_magic: u16(0x38),
  s_state: u16(0x3a),
  s_errors: u16(0x3c),
  s_minor_rev_level: u16(0x3e),
  s_lastcheck: u32(0x40),
  s_checkinterval: u32(0x44),
  s_creator_os: u32(0x48),
  s_rev_level: u32(0x4c),
  s_def_resuid: u16(0x50),
  s_def_resgid: u16(0x52),
  s_first_ino: u32(0x54),
  s_inode_size: u16(0x58),
  s_block_group_nr: u16(0x5a),
  s_feature_compat: u32(0x5c),
  s_feature_incompat: u32(0x60),
  s_feature_ro_compat: u32(0x64),
  s_uuid: bytes(0x68, 16),
  s_volume_name: bytes(0x78, 16),
  s_last_mounted: text(0x88, 64),
  s_journal_inum: u32(0xe0),
  s_hash_seed: bytes(0xec, 16),
  s_def_hash_version: u8(0xfc),
  s_desc_size: u16(0xfe),
  s_default_mount_opts: u32(0x100),
  s_first_meta_bg: u32(0x104),
  s_mkfs_time: u32(0x108),
  s_blocks_count_hi: u32(0x150),
  s_free_blocks_count_hi: u32(0x158),
  s_min_extra_isize: u16(0x15c),
  s_want_extra_isize: u16(0x15e),
  s_flags: u32(0x160),
  s_log_groups_per_flex: u8(0x174),
  s_checksum_type: u8(0x175),
  s_backup_bgs: bytes(0x24c, 8),
  s_checksum_seed: u32(0x270),
  s_checksum: u32(0x3fc),
});

export const GROUP_DESCRIPTOR = structure('ext4 group descriptor', DESCRIPTOR_BYTES, 'little', {
  bg_block_bitmap_lo: u32(0x0),
  bg_inode_bitmap_lo: u32(0x4),
  bg_inode_table_lo: u32(0x8),
  bg_free_blocks_count_lo: u16(0xc),
  bg_free_inodes_count_lo: u16(0xe),
  bg_used_dirs_count_lo: u16(0x10),
  bg_flags: u16(0x12),
  bg_itable_unused_lo: u16(0x1c),
});

export const INODE = structure('ext4 inode', INODE_BYTES, 'little', {
  i_mode: u16(0x0),
  i_uid: u16(0x2),
  i_size_lo: u32(0x4),
  i_atime: u32(0x8),
  i_ctime: u32(0xc),
  i_mtime: u32(0x10),
  i_dtime: u32(0x14),
  i_gid: u16(0x18),
  i_links_count: u16(0x1a),
  i_blocks_lo: u32(0x1c),
  i_flags: u32(0x20),
  i_block: bytes(0x28, 60),
  i_generation: u32(0x64),
  i_file_acl_lo: u32(0x68),
  i_size_high: u32(0x6c),
  i_blocks_high: u16(0x74),
  i_file_acl_high: u16(0x76),
  i_uid_high: u16(0x78),
  i_gid_high: u16(0x7a),
  i_checksum_lo: u16(0x7c),
  i_extra_isize: u16(0x80),
  i_checksum_hi: u16(0x82),
  i_ctime_extra: u32(0x84),
  i_mtime_extra: u32(0x88),
  i_atime_extra: u32(0x8c),
  i_crtime: u32(0x90),
  i_crtime_extra: u32(0x94),
  /** Extended attributes in the inode: what is left behind i_extra_isize. */
  xattrs: bytes(0xa0, 0x60),
});

/** Bytes behind the classic 128 that the fields of {@link INODE} take. */
export const EXTRA_ISIZE = 32;

export const COMPAT = {
  has_journal: 0x4,
  ext_attr: 0x8,
  resize_inode: 0x10,
  dir_index: 0x20,
  sparse_super2: 0x200,
  fast_commit: 0x400,
} as const;
export const INCOMPAT = {
  compression: 0x1,
  filetype: 0x2,
  recover: 0x4,
  journal_dev: 0x8,
  meta_bg: 0x10,
  extents: 0x40,
  bit64: 0x80,
  mmp: 0x100,
  flex_bg: 0x200,
  ea_inode: 0x400,
  dirdata: 0x1000,
  csum_seed: 0x2000,
  largedir: 0x4000,
  inline_data: 0x8000,
  encrypt: 0x10000,
  casefold: 0x20000,
} as const;
export const RO_COMPAT = {
  sparse_super: 0x1,
  large_file: 0x2,
  huge_file: 0x8,
  gdt_csum: 0x10,
  dir_nlink: 0x20,
  extra_isize: 0x40,
  metadata_csum: 0x400,
  read_only: 0x1000,
} as const;

/** s_flags: how a char is signed in the hashes of names. */
export const FLAG_UNSIGNED_DIRECTORY_HASH = 0x2;
/** s_default_mount_opts: user_xattr and acl. */
export const MOUNT_OPTIONS = 0x4 | 0x8;
/** bg_flags: the inode table is zeroed, so the kernel need not do so in the background. */
export const GROUP_INODES_ZEROED = 0x4;

/** i_mode: the kind of an inode. */
export const MODE = {
  mask: 0xf000,
  fifo: 0x1000,
  characterDevice: 0x2000,
  directory: 0x4000,
  blockDevice: 0x6000,
  file: 0x8000,
  symbolicLink: 0xa000,
  socket: 0xc000,
} as const;

export const INODE_FLAG = {
  encrypt: 0x800,
  index: 0x1000,
  hugeFile: 0x40000,
  extents: 0x80000,
  eaInode: 0x200000,
  inlineData: 0x10000000,
} as const;

export const ROOT_INODE = 2;
/** Inodes below this one are reserved. */
export const FIRST_INODE = 11;

/** A file may have this many names (EXT4_LINK_MAX). */
export const MAXIMUM_LINKS = 65_000;
export const MAXIMUM_NAME_BYTES = 255;
/** Symbolic links below this length live in i_block. */
export const FAST_SYMLINK_BYTES = 60;
/** The kernel's limit of a symbolic link (PATH_MAX without the NUL; one block with it). */
export const MAXIMUM_SYMLINK_BYTES = 4095;
