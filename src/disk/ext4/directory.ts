/** Directory blocks ("Directory Entries", "Hash Tree Directories"). */
import { LcowError } from '../../errors/index.js';
import { hashName } from './directory-hash.js';
import { BLOCK_BYTES } from './structures.js';

const ENTRY_HEADER_BYTES = 8;
const DOT_BYTES = 12;

/** An entry of a directory; the name is a byte string. */
export interface DirectoryEntry {
  readonly name: string;
  readonly inode: number;
  /** {@link directoryEntryType} of its mode. */
  readonly type: number;
}

/** Writes an ext4_dir_entry_2. */
export function writeDirectoryEntry(
  block: Buffer,
  at: number,
  inode: number,
  recordBytes: number,
  name: string,
  type: number,
): void {
  block.writeUInt32LE(inode, at);
  block.writeUInt16LE(recordBytes, at + 4);
  block[at + 6] = name.length;
  block[at + 7] = type;
  block.write(name, at + ENTRY_HEADER_BYTES, 'latin1');
}

/** Bytes an entry needs at least. */
function entryBytes(name: string): number {
  return (ENTRY_HEADER_BYTES + name.length + 3) & ~3;
}

/** The blocks of a directory, and whether they are a hash tree (inode flag `index`). */
export interface EncodedDirectory {
  readonly content: Buffer;
  readonly indexed: boolean;
}

/**
 * Encodes a directory: linear while it fits one block, else with a hash tree, so that looking up one of 100,000 names
 * costs the kernel three blocks.
 * @throws LcowError BAD_TAR above 2 million entries, or when they need more than a tree of two levels.
 */
export function encodeDirectory(self: number, parent: number, entries: Iterable<DirectoryEntry>): EncodedDirectory {
  const list = [...entries];
  let bytes = 2 * DOT_BYTES;
  for (const entry of list) {
    bytes += entryBytes(entry.name);
    if (bytes > BLOCK_BYTES) return { content: encodeIndexed(self, parent, list), indexed: true };
  }
  return { content: encodeLinear(self, parent, list), indexed: false };
}

function encodeLinear(self: number, parent: number, list: readonly DirectoryEntry[]): Buffer {
  const block = Buffer.alloc(BLOCK_BYTES);
  writeDirectoryEntry(block, 0, self, DOT_BYTES, '.', 2);
  writeDirectoryEntry(block, DOT_BYTES, parent, list.length === 0 ? BLOCK_BYTES - DOT_BYTES : DOT_BYTES, '..', 2);
  packEntries(block, 2 * DOT_BYTES, list, 0, list.length);
  return block;
}

/** Writes entries `from` to `to` behind one another; the last one reaches to the end of the block. */
function packEntries(block: Buffer, start: number, list: readonly DirectoryEntry[], from: number, to: number): void {
  let at = start;
  for (let index = from; index < to; index += 1) {
    const entry = list[index]!;
    const bytes = index === to - 1 ? BLOCK_BYTES - at : entryBytes(entry.name);
    writeDirectoryEntry(block, at, entry.inode, bytes, entry.name, entry.type);
    at += bytes;
  }
}

/** struct dx_root: the two dots, its info, then the index; struct dx_node: an empty entry, then the index. */
const ROOT_INFO_AT = 24;
const ROOT_INDEX_AT = 32;
const NODE_INDEX_AT = 8;
const INDEX_ENTRY_BYTES = 8;
const ROOT_LIMIT = (BLOCK_BYTES - ROOT_INDEX_AT) / INDEX_ENTRY_BYTES;
const NODE_LIMIT = (BLOCK_BYTES - NODE_INDEX_AT) / INDEX_ENTRY_BYTES;
/** s_def_hash_version half MD4; the kernel adds the signedness from s_flags. */
const HALF_MD4 = 1;

interface IndexEntry {
  hash: number;
  /** Block of the directory. */
  block: number;
}

function encodeIndexed(self: number, parent: number, list: readonly DirectoryEntry[]): Buffer {
  const hashes = new Float64Array(list.length);
  // Hash and place in one number: a numeric sort of a typed array is several times faster than one with a comparison.
  list.forEach((entry, index) => (hashes[index] = hashName(entry.name) * 2 ** 21 + index));
  if (list.length >= 2 ** 21) throw tooMany(list.length);
  hashes.sort();
  const sorted = Array.from(hashes, (key) => list[key % 2 ** 21]!);
  const hashAt = (index: number): number => Math.floor(hashes[index]! / 2 ** 21);

  const leaves: { from: number; to: number; hash: number }[] = [];
  for (let from = 0; from < sorted.length;) {
    let to = from;
    let bytes = 0;
    while (to < sorted.length && bytes + entryBytes(sorted[to]!.name) <= BLOCK_BYTES) {
      bytes += entryBytes(sorted[to]!.name);
      to += 1;
    }
    // The lowest bit says that names of this hash began in the block before.
    const continued = from > 0 && hashAt(from) === hashAt(from - 1) ? 1 : 0;
    leaves.push({ from, to, hash: hashAt(from) + continued });
    from = to;
  }

  const nodes = leaves.length > ROOT_LIMIT ? Math.ceil(leaves.length / NODE_LIMIT) : 0;
  if (nodes > ROOT_LIMIT) throw tooMany(list.length);
  const content = Buffer.alloc((1 + nodes + leaves.length) * BLOCK_BYTES);
  const leafEntries = leaves.map(({ hash }, index): IndexEntry => ({ hash, block: 1 + nodes + index }));
  writeDirectoryEntry(content, 0, self, DOT_BYTES, '.', 2);
  writeDirectoryEntry(content, DOT_BYTES, parent, BLOCK_BYTES - DOT_BYTES, '..', 2);
  content[ROOT_INFO_AT + 4] = HALF_MD4; // hash_version
  content[ROOT_INFO_AT + 5] = 8; // info_length
  content[ROOT_INFO_AT + 6] = nodes > 0 ? 1 : 0; // indirect_levels
  if (nodes === 0) writeIndex(content, ROOT_INDEX_AT, ROOT_LIMIT, leafEntries);
  else {
    const rootEntries: IndexEntry[] = [];
    for (let node = 0; node < nodes; node += 1) {
      const children = leafEntries.slice(node * NODE_LIMIT, (node + 1) * NODE_LIMIT);
      const at = (1 + node) * BLOCK_BYTES;
      writeDirectoryEntry(content, at, 0, BLOCK_BYTES, '', 0);
      writeIndex(content, at + NODE_INDEX_AT, NODE_LIMIT, children);
      rootEntries.push({ hash: children[0]!.hash, block: 1 + node });
    }
    writeIndex(content, ROOT_INDEX_AT, ROOT_LIMIT, rootEntries);
  }
  leaves.forEach(({ from, to }, index) => {
    const start = (1 + nodes + index) * BLOCK_BYTES;
    packEntries(content.subarray(start, start + BLOCK_BYTES), 0, sorted, from, to);
  });
  return content;
}

/** An index: limit and count stand where the hash of the first entry would be, which is 0 by definition. */
function writeIndex(content: Buffer, at: number, limit: number, entries: readonly IndexEntry[]): void {
  entries.forEach(({ hash, block }, index) => {
    if (index > 0) content.writeUInt32LE(hash, at + index * INDEX_ENTRY_BYTES);
    content.writeUInt32LE(block, at + index * INDEX_ENTRY_BYTES + 4);
  });
  content.writeUInt16LE(limit, at);
  content.writeUInt16LE(entries.length, at + 2);
}

function tooMany(entries: number): LcowError {
  return new LcowError('BAD_TAR', `A directory with ${entries} entries is more than an ext4 directory index holds.`);
}
