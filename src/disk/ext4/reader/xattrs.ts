/** Extended attributes, read: those in the inode, in a block, and values in inodes of their own (ea_inode). */
import { checksumOfLong, checksumOfZeros, metadataChecksum } from './checksum.js';
import type { Ext4Inode } from './inode.js';
import type { Volume } from './volume.js';

const MAGIC = 0xea020000;
const ENTRY_BYTES = 16;
const BLOCK_HEADER_BYTES = 32;
const BODY_HEADER_BYTES = 4;
/** XATTR_SIZE_MAX: no call takes or gives more. */
const MAXIMUM_VALUE_BYTES = 65536;

/** e_name_index. 9 is the context of encryption, which is no attribute to users. */
const PREFIXES: readonly (string | undefined)[] = [
  '',
  'user.',
  'system.posix_acl_access',
  'system.posix_acl_default',
  'trusted.',
  undefined,
  'security.',
  'system.',
  'system.richacl',
];
const ACL_INDEXES: ReadonlySet<number> = new Set([2, 3]);
const SYSTEM_INDEX = 7;

/** Reads the value of an attribute that has an inode of its own. */
export type ReadValueInode = (ino: number, bytes: number) => Promise<Buffer>;

/** An attribute as it stands on the disk. */
interface RawAttribute {
  readonly index: number;
  /** Byte string, behind the prefix. */
  readonly name: string;
  readonly valueBytes: number;
  readonly value: Buffer | undefined;
  readonly valueInode: number;
}

/** Whether an inode has any attributes, at a glance. */
export function hasXattrs(inode: Ext4Inode): boolean {
  return inode.attributeBlock !== 0 || (inode.body.length >= BODY_HEADER_BYTES && inode.body.readUInt32LE(0) === MAGIC);
}

/**
 * The attributes of an inode by full name (a byte string), as getxattr(2) gives them.
 * @throws LcowError BAD_EXT4
 */
export async function readXattrs(
  volume: Volume,
  inode: Ext4Inode,
  readValueInode: ReadValueInode,
): Promise<Map<string, Buffer>> {
  const found = new Map<string, Buffer>();
  const raw = attributesInBody(volume, inode);
  if (inode.attributeBlock !== 0) raw.push(...(await attributesInBlock(volume, inode)));
  for (const { index, name, valueBytes, value, valueInode } of raw) {
    const prefix = PREFIXES[index];
    // system.data is the rest of a file that lives in its inode.
    if (prefix === undefined || (index === SYSTEM_INDEX && name === 'data')) continue;
    const whole = value ?? (await readValueInode(valueInode, valueBytes));
    found.set(prefix + name, ACL_INDEXES.has(index) ? decodePosixAcl(volume, inode, whole) : Buffer.from(whole));
  }
  return found;
}

/** The rest of a file or directory that lives in its inode: what did not fit into i_block. */
export function inlineRest(volume: Volume, inode: Ext4Inode): Buffer {
  const data = attributesInBody(volume, inode).find(({ index, name }) => index === SYSTEM_INDEX && name === 'data');
  return data?.value ?? Buffer.alloc(0);
}

function attributesInBody(volume: Volume, inode: Ext4Inode): RawAttribute[] {
  const { body } = inode;
  if (body.length < BODY_HEADER_BYTES || body.readUInt32LE(0) !== MAGIC) return [];
  return readEntries(volume, inode, body.subarray(BODY_HEADER_BYTES), 0);
}

async function attributesInBlock(volume: Volume, inode: Ext4Inode): Promise<RawAttribute[]> {
  const number = inode.attributeBlock;
  const block = await volume.block(number, `inode ${inode.ino}`);
  if (block.readUInt32LE(0) !== MAGIC || block.readUInt32LE(8) !== 1)
    throw volume.bad(`the attribute block of inode ${inode.ino} is none`);
  if (volume.checksums) {
    let sum = metadataChecksum(checksumOfLong(volume.checksumSeed, number), block.subarray(0, 16));
    sum = metadataChecksum(checksumOfZeros(sum, 4), block.subarray(20));
    if (sum !== block.readUInt32LE(16))
      throw volume.bad(`the attribute block of inode ${inode.ino} does not match its checksum`);
  }
  return readEntries(volume, inode, block, BLOCK_HEADER_BYTES);
}

/** Entries go upwards from `at` and end with four zeros; offsets of values count from the start of `area`. */
function readEntries(volume: Volume, inode: Ext4Inode, area: Buffer, at: number): RawAttribute[] {
  const attributes: RawAttribute[] = [];
  const bad = () => volume.bad(`the extended attributes of inode ${inode.ino} are damaged`);
  while (at + 4 <= area.length && area.readUInt32LE(at) !== 0) {
    const nameBytes = area[at]!;
    const end = at + ENTRY_BYTES + nameBytes;
    if (end > area.length) throw bad();
    const offset = area.readUInt16LE(at + 2);
    const valueInode = area.readUInt32LE(at + 4);
    const valueBytes = area.readUInt32LE(at + 8);
    if (valueBytes > MAXIMUM_VALUE_BYTES || (valueInode === 0 && valueBytes > 0 && offset + valueBytes > area.length))
      throw bad();
    attributes.push({
      index: area[at + 1]!,
      name: area.toString('latin1', at + ENTRY_BYTES, end),
      valueBytes,
      value: valueInode !== 0 ? undefined : valueBytes === 0 ? EMPTY : area.subarray(offset, offset + valueBytes),
      valueInode,
    });
    at = (end + 3) & ~3;
  }
  return attributes;
}

const EMPTY = Buffer.alloc(0);
const DISK_ACL_VERSION = 1;
const CALL_ACL_VERSION = 2;
/** Tags of entries that name a user or a group; only they have an id on disk. */
const NAMED_TAGS: ReadonlySet<number> = new Set([0x02, 0x08]);
const NO_ID = 0xffffffff;

/** The inverse of encodePosixAcl: from the form on the disk (fs/ext4/acl.h) to that of the system call. */
function decodePosixAcl(volume: Volume, inode: Ext4Inode, value: Buffer): Buffer {
  const bad = () => volume.bad(`the access control list of inode ${inode.ino} is damaged`);
  if (value.length < 4 || value.readUInt32LE(0) !== DISK_ACL_VERSION) throw bad();
  const header = Buffer.alloc(4);
  header.writeUInt32LE(CALL_ACL_VERSION);
  const parts: Buffer[] = [header];
  for (let at = 4; at < value.length;) {
    const named = at + 2 <= value.length && NAMED_TAGS.has(value.readUInt16LE(at));
    if (at + (named ? 8 : 4) > value.length) throw bad();
    const entry = Buffer.alloc(8);
    value.copy(entry, 0, at, at + (named ? 8 : 4));
    if (!named) entry.writeUInt32LE(NO_ID, 4);
    parts.push(entry);
    at += named ? 8 : 4;
  }
  return Buffer.concat(parts);
}
