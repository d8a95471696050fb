import { EXTRA_ISIZE, INODE, MODE } from './structures.js';
import { timeExtra, timeSeconds } from './time.js';

const F = INODE.fields;

/** The fixed part of an inode. */
export interface InodeFacts {
  mode: number;
  links: number;
  uid: number;
  gid: number;
  size: number;
  /** Blocks of 4096 bytes: content, extent tree and attributes. */
  blocks: number;
  flags: number;
  /** Block of the extended attributes; 0 for none. */
  attributeBlock: number;
  mtime: number;
  mtimeNs: number;
  atime: number;
  atimeNs: number;
  ctime: number;
  ctimeNs: number;
}

/** Writes an inode, all but i_block and the attributes in its body, into zeros. Creation time is the change of content. */
export function writeInode(view: DataView, at: number, facts: InodeFacts): void {
  view.setUint16(at + F.i_mode.offset, facts.mode, true);
  view.setUint16(at + F.i_uid.offset, facts.uid & 0xffff, true);
  view.setUint16(at + F.i_uid_high.offset, facts.uid >>> 16, true);
  view.setUint16(at + F.i_gid.offset, facts.gid & 0xffff, true);
  view.setUint16(at + F.i_gid_high.offset, facts.gid >>> 16, true);
  view.setUint32(at + F.i_size_lo.offset, facts.size % 2 ** 32, true);
  view.setUint32(at + F.i_size_high.offset, Math.floor(facts.size / 2 ** 32), true);
  view.setUint16(at + F.i_links_count.offset, facts.links, true);
  // Counted in sectors of 512 bytes; the upper half is there with the huge_file feature.
  const sectors = facts.blocks * 8;
  view.setUint32(at + F.i_blocks_lo.offset, sectors % 2 ** 32, true);
  view.setUint16(at + F.i_blocks_high.offset, Math.floor(sectors / 2 ** 32), true);
  view.setUint32(at + F.i_flags.offset, facts.flags, true);
  view.setUint32(at + F.i_file_acl_lo.offset, facts.attributeBlock, true);
  view.setUint16(at + F.i_extra_isize.offset, EXTRA_ISIZE, true);
  const mtime = timeSeconds(facts.mtime);
  const mtimeExtra = timeExtra(facts.mtime, facts.mtimeNs);
  view.setUint32(at + F.i_mtime.offset, mtime, true);
  view.setUint32(at + F.i_mtime_extra.offset, mtimeExtra, true);
  view.setUint32(at + F.i_crtime.offset, mtime, true);
  view.setUint32(at + F.i_crtime_extra.offset, mtimeExtra, true);
  view.setUint32(at + F.i_atime.offset, timeSeconds(facts.atime), true);
  view.setUint32(at + F.i_atime_extra.offset, timeExtra(facts.atime, facts.atimeNs), true);
  view.setUint32(at + F.i_ctime.offset, timeSeconds(facts.ctime), true);
  view.setUint32(at + F.i_ctime_extra.offset, timeExtra(facts.ctime, facts.ctimeNs), true);
}

/** Writes the device number of a device inode into i_block, in the kernel's old form where it fits, else the new one. */
export function writeDevice(view: DataView, at: number, major: number, minor: number): void {
  const block = at + F.i_block.offset;
  // ext4_iget reads the first word (old_decode_dev) unless it is 0, then the second (new_decode_dev).
  if (major < 256 && minor < 256) view.setUint32(block, (major << 8) | minor, true);
  else view.setUint32(block + 4, (minor & 0xff) | (major << 8) | ((minor & ~0xff) << 12), true);
}

/** Largest device number of Linux. */
export const MAXIMUM_MAJOR = 0xfff;
export const MAXIMUM_MINOR = 0xf_ffff;

/** The file type of a directory entry for a mode. */
export function directoryEntryType(mode: number): number {
  switch (mode & MODE.mask) {
    case MODE.file:
      return 1;
    case MODE.directory:
      return 2;
    case MODE.characterDevice:
      return 3;
    case MODE.blockDevice:
      return 4;
    case MODE.fifo:
      return 5;
    case MODE.socket:
      return 6;
    case MODE.symbolicLink:
      return 7;
    default:
      return 0;
  }
}
