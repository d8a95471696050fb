import { INODE, INODE_FLAG, MODE } from '../structures.js';
import { checksumOfNumber, checksumOfZeros, metadataChecksum } from './checksum.js';
import type { Volume } from './volume.js';

const F = INODE.fields;
const CLASSIC_BYTES = 128;

/** What an inode is. */
export type InodeKind = 'file' | 'directory' | 'symbolicLink' | 'characterDevice' | 'blockDevice' | 'fifo' | 'socket';

const KINDS: ReadonlyMap<number, InodeKind> = new Map([
  [MODE.file, 'file'],
  [MODE.directory, 'directory'],
  [MODE.symbolicLink, 'symbolicLink'],
  [MODE.characterDevice, 'characterDevice'],
  [MODE.blockDevice, 'blockDevice'],
  [MODE.fifo, 'fifo'],
  [MODE.socket, 'socket'],
]);

/** An inode as stat(2) has it. Times are whole seconds since 1970, rounded down, and nanoseconds. */
export interface Ext4Inode {
  readonly ino: number;
  readonly kind: InodeKind;
  /** Permission bits, 0 to 0o7777. */
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  /** In bytes. */
  readonly size: number;
  readonly nlink: number;
  readonly mtime: number;
  readonly mtimeNs: number;
  readonly atime: number;
  readonly atimeNs: number;
  readonly ctime: number;
  readonly ctimeNs: number;
  /** Of devices; 0 for all else. */
  readonly deviceMajor: number;
  readonly deviceMinor: number;
  /** i_flags. */
  readonly flags: number;
  /** i_block: 60 bytes. */
  readonly content: Buffer;
  /** The block of its extended attributes; 0 for none. */
  readonly attributeBlock: number;
  /** What stands behind the fixed fields of the inode: attributes. Empty in inodes of 128 bytes. */
  readonly body: Buffer;
  /** The seed of the checksums of its blocks. */
  readonly checksumSeed: number;
}

/**
 * Reads the bytes of an inode.
 * @throws LcowError BAD_EXT4 when it is free, of no kind, or does not match its checksum.
 */
export function decodeInode(volume: Volume, ino: number, bytes: Buffer): Ext4Inode {
  const extra = bytes.length > CLASSIC_BYTES ? bytes.readUInt16LE(F.i_extra_isize.offset) : 0;
  if (extra % 4 !== 0 || CLASSIC_BYTES + extra > bytes.length)
    throw volume.bad(`inode ${ino} has an i_extra_isize of ${extra}`);
  let checksumSeed = 0;
  if (volume.checksums) {
    checksumSeed = checksumOfNumber(
      checksumOfNumber(volume.checksumSeed, ino),
      bytes.readUInt32LE(F.i_generation.offset),
    );
    verify(volume, ino, bytes, extra, checksumSeed);
  }
  const mode = bytes.readUInt16LE(F.i_mode.offset);
  const kind = KINDS.get(mode & MODE.mask);
  const nlink = bytes.readUInt16LE(F.i_links_count.offset);
  if (!kind) throw volume.bad(`inode ${ino} is of no kind that exists (mode ${mode.toString(8)})`);
  const low = bytes.readUInt32LE(F.i_size_lo.offset);
  // The upper half was once something else for what is neither file nor directory.
  const high = kind === 'file' || kind === 'directory' ? bytes.readUInt32LE(F.i_size_high.offset) : 0;
  const size = low + high * 2 ** 32;
  if (!Number.isSafeInteger(size)) throw volume.bad(`inode ${ino} has the size ${size}`);
  const content = bytes.subarray(F.i_block.offset, F.i_block.offset + F.i_block.size);
  const device = kind === 'characterDevice' || kind === 'blockDevice' ? readDevice(content) : NO_DEVICE;
  // Each extra word counts only where i_extra_isize reaches that far.
  const mtimeExtra = extra >= 12 ? bytes.readUInt32LE(F.i_mtime_extra.offset) : 0;
  const atimeExtra = extra >= 16 ? bytes.readUInt32LE(F.i_atime_extra.offset) : 0;
  const ctimeExtra = extra >= 8 ? bytes.readUInt32LE(F.i_ctime_extra.offset) : 0;
  return {
    ino,
    kind,
    mode: mode & 0o7777,
    uid: (bytes.readUInt16LE(F.i_uid.offset) | (bytes.readUInt16LE(F.i_uid_high.offset) << 16)) >>> 0,
    gid: (bytes.readUInt16LE(F.i_gid.offset) | (bytes.readUInt16LE(F.i_gid_high.offset) << 16)) >>> 0,
    size,
    nlink,
    mtime: bytes.readInt32LE(F.i_mtime.offset) + (mtimeExtra & 3) * 2 ** 32,
    mtimeNs: nanoseconds(mtimeExtra),
    atime: bytes.readInt32LE(F.i_atime.offset) + (atimeExtra & 3) * 2 ** 32,
    atimeNs: nanoseconds(atimeExtra),
    ctime: bytes.readInt32LE(F.i_ctime.offset) + (ctimeExtra & 3) * 2 ** 32,
    ctimeNs: nanoseconds(ctimeExtra),
    deviceMajor: device[0],
    deviceMinor: device[1],
    flags: bytes.readUInt32LE(F.i_flags.offset),
    content,
    attributeBlock: bytes.readUInt32LE(F.i_file_acl_lo.offset) + bytes.readUInt16LE(F.i_file_acl_high.offset) * 2 ** 32,
    body: bytes.subarray(bytes.length > CLASSIC_BYTES ? CLASSIC_BYTES + extra : CLASSIC_BYTES),
    checksumSeed,
  };
}

/** Thirty bits reach above a second: a damaged inode may have more. */
function nanoseconds(extra: number): number {
  return Math.min(extra >>> 2, 999_999_999);
}

const NO_DEVICE = [0, 0] as const;

/** The first word is the kernel's old form; 0 there means the second word has the new one. */
function readDevice(content: Buffer): readonly [major: number, minor: number] {
  const old = content.readUInt32LE(0);
  if (old !== 0) return [(old >>> 8) & 0xff, old & 0xff];
  const device = content.readUInt32LE(4);
  return [(device >>> 8) & 0xfff, (device & 0xff) | ((device >>> 12) & 0xfff00)];
}

function verify(volume: Volume, ino: number, bytes: Buffer, extra: number, seed: number): void {
  const lowAt = F.i_checksum_lo.offset;
  const highAt = F.i_checksum_hi.offset;
  let stored = bytes.readUInt16LE(lowAt);
  let sum = metadataChecksum(seed, bytes.subarray(0, lowAt));
  sum = checksumOfZeros(sum, 2);
  const hasHigh = extra >= 4;
  if (hasHigh) {
    sum = metadataChecksum(sum, bytes.subarray(lowAt + 2, highAt));
    sum = checksumOfZeros(sum, 2);
    sum = metadataChecksum(sum, bytes.subarray(highAt + 2));
    stored += bytes.readUInt16LE(highAt) * 2 ** 16;
  } else sum = metadataChecksum(sum, bytes.subarray(lowAt + 2)) & 0xffff;
  if (sum !== stored) throw volume.bad(`inode ${ino} does not match its checksum`);
}

/** Whether an inode has a flag of {@link INODE_FLAG}. */
export function hasFlag(inode: Ext4Inode, flag: keyof typeof INODE_FLAG): boolean {
  return (inode.flags & INODE_FLAG[flag]) !== 0;
}
