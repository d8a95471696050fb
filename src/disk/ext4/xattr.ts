/** Extended attributes ("Extended Attributes" of the kernel's ext4 documents; fs/ext4/xattr.c). */
import { LcowError } from '../../errors/index.js';
import { encodePosixAcl } from './posix-acl.js';
import { BLOCK_BYTES, EXTRA_ISIZE, INODE_BYTES } from './structures.js';

const MAGIC = 0xea020000;
/** e_name_index, longest prefixes first. POSIX ACLs are whole names; the rest is a prefix. */
const NAME_INDEXES: readonly (readonly [prefix: string, index: number])[] = [
  ['system.posix_acl_access', 2],
  ['system.posix_acl_default', 3],
  ['user.', 1],
  ['trusted.', 4],
  ['security.', 6],
];
const ENTRY_BYTES = 16;
const BLOCK_HEADER_BYTES = 32;
const BODY_HEADER_BYTES = 4;
/** Four zero bytes end the entries. */
const TERMINATOR_BYTES = 4;
const BODY_BYTES = INODE_BYTES - 128 - EXTRA_ISIZE;

/** Extended attributes by full name (a byte string), without those in namespaces that Linux has not. */
export type Xattrs = ReadonlyMap<string, Buffer>;

/** One attribute as it is stored. */
export interface Attribute {
  readonly index: number;
  /** The name behind the prefix, as bytes. */
  readonly name: Buffer;
  readonly value: Buffer;
}

/** Attributes by where they are stored: in the inode behind i_extra_isize, the rest in a block of its own. */
export interface XattrLayout {
  readonly inBody: readonly Attribute[];
  readonly inBlock: readonly Attribute[];
}

/**
 * Decides where attributes go. Those in namespaces that no Linux file system takes (a tar from macOS has `com.apple.*`)
 * are left out, as they would be by extraction.
 * @throws LcowError BAD_TAR when they do not fit the inode and one block.
 */
export function layOutXattrs(xattrs: Xattrs): XattrLayout {
  const attributes: Attribute[] = [];
  for (const [name, value] of xattrs) {
    const attribute = split(name, value);
    if (attribute) attributes.push(attribute);
  }
  // ext4_xattr_block_find relies on this order and stops at the first entry that is greater.
  attributes.sort((a, b) => a.index - b.index || a.name.length - b.name.length || Buffer.compare(a.name, b.name));
  const inBody: Attribute[] = [];
  const inBlock: Attribute[] = [];
  let bodyLeft = BODY_BYTES - BODY_HEADER_BYTES - TERMINATOR_BYTES;
  let blockLeft = BLOCK_BYTES - BLOCK_HEADER_BYTES - TERMINATOR_BYTES;
  for (const attribute of attributes) {
    const bytes = ENTRY_BYTES + padded(attribute.name.length) + padded(attribute.value.length);
    if (bytes <= bodyLeft) {
      inBody.push(attribute);
      bodyLeft -= bytes;
    } else {
      inBlock.push(attribute);
      blockLeft -= bytes;
    }
  }
  if (blockLeft < 0)
    throw new LcowError('BAD_TAR', `Its extended attributes need ${-blockLeft} bytes more than ext4 has room for.`);
  return { inBody, inBlock };
}

function split(fullName: string, value: Buffer): Attribute | undefined {
  for (const [prefix, index] of NAME_INDEXES) {
    if (!fullName.startsWith(prefix)) continue;
    const name = Buffer.from(fullName.slice(prefix.length), 'latin1');
    const isAcl = !prefix.endsWith('.');
    if (isAcl !== (name.length === 0)) continue;
    if (name.length > 255)
      throw new LcowError(
        'BAD_TAR',
        `The name of an extended attribute has ${name.length} bytes; ext4 has room for 255.`,
      );
    return { index, name, value: isAcl ? encodePosixAcl(value) : value };
  }
  return undefined;
}

function padded(bytes: number): number {
  return (bytes + 3) & ~3;
}

/** The part behind i_extra_isize. */
export function encodeXattrBody(attributes: readonly Attribute[]): Buffer {
  const body = Buffer.alloc(BODY_BYTES);
  body.writeUInt32LE(MAGIC, 0);
  // Offsets count from the first entry. e_hash stays 0 here, as in what the kernel's tools write.
  writeEntries(body.subarray(BODY_HEADER_BYTES), 0, attributes);
  return body;
}

/** @param references h_refcount: how many inodes share the block, at most {@link MAXIMUM_REFERENCES}. */
export function encodeXattrBlock(attributes: readonly Attribute[], references: number): Buffer {
  const block = Buffer.alloc(BLOCK_BYTES);
  block.writeUInt32LE(MAGIC, 0); // h_magic
  block.writeUInt32LE(references, 4); // h_refcount
  block.writeUInt32LE(1, 8); // h_blocks
  const hashes = writeEntries(block, BLOCK_HEADER_BYTES, attributes);
  let hash = 0;
  for (const entryHash of hashes) hash = ((hash << 16) ^ (hash >>> 16) ^ entryHash) >>> 0;
  // A block with an entry that has no hash is not to be shared: hash 0.
  block.writeUInt32LE(hashes.includes(0) ? 0 : hash, 12); // h_hash
  return block;
}

/** EXT4_XATTR_REFCOUNT_MAX */
export const MAXIMUM_REFERENCES = 1024;

/** Writes entries upwards from `at` and values downwards from the end. Returns the entries' hashes, as written in a block. */
function writeEntries(area: Buffer, at: number, attributes: readonly Attribute[]): number[] {
  const inBlock = at > 0;
  const hashes: number[] = [];
  let entry = at;
  let end = area.length;
  for (const { index, name, value } of attributes) {
    const hash = hashAttribute(name, value);
    hashes.push(hash);
    end -= padded(value.length);
    value.copy(area, end);
    area[entry] = name.length; // e_name_len
    area[entry + 1] = index; // e_name_index
    area.writeUInt16LE(value.length === 0 ? 0 : end, entry + 2); // e_value_offs
    area.writeUInt32LE(value.length, entry + 8); // e_value_size
    if (inBlock) area.writeUInt32LE(hash, entry + 12); // e_hash
    name.copy(area, entry + ENTRY_BYTES);
    entry += ENTRY_BYTES + padded(name.length);
  }
  return hashes;
}

/** ext4_xattr_hash_entry, with unsigned characters. */
function hashAttribute(name: Buffer, value: Buffer): number {
  let hash = 0;
  for (const character of name) hash = (hash << 5) ^ (hash >>> 27) ^ character;
  const words = Buffer.alloc(padded(value.length));
  value.copy(words);
  for (let at = 0; at < words.length; at += 4) hash = (hash << 16) ^ (hash >>> 16) ^ words.readInt32LE(at);
  return hash >>> 0;
}
