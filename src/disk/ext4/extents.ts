import { BLOCK_BYTES } from './structures.js';

/** "Extent Tree": header and entries have 12 bytes each. */
const RECORD_BYTES = 12;
const MAGIC = 0xf30a;
/** An extent of initialised blocks has at most this many. */
const MAXIMUM_EXTENT_BLOCKS = 32768;
/** Entries that fit into i_block, and into a block. */
export const ROOT_ENTRIES = 4;
const NODE_ENTRIES = Math.floor((BLOCK_BYTES - RECORD_BYTES) / RECORD_BYTES);

/** A stretch of a file that lies in one piece on the disk. All in blocks. */
export interface Run {
  /** First block of the file. */
  readonly logical: number;
  /** First block of the disk. */
  readonly physical: number;
  readonly length: number;
}

/** The extent tree of one file. */
export interface ExtentTree {
  /** The 60 bytes of i_block. */
  readonly root: Buffer;
  /** Blocks of the tree below the root. */
  readonly blocks: number;
}

/**
 * Builds the extent tree of a file, of any depth. A tree that fits into the inode calls neither function.
 * @param runs ascending, not overlapping.
 * @param writeBlock stores one block of the tree and returns its number.
 */
export function buildExtentTree(runs: Iterable<Run>, writeBlock: (block: Buffer) => number): ExtentTree {
  let depth = 0;
  let blocks = 0;
  let entries: { logical: number; bytes: Buffer }[] = [];
  for (const run of runs) {
    for (let done = 0; done < run.length; done += MAXIMUM_EXTENT_BLOCKS) {
      const bytes = Buffer.alloc(RECORD_BYTES);
      bytes.writeUInt32LE(run.logical + done, 0); // ee_block
      bytes.writeUInt16LE(Math.min(run.length - done, MAXIMUM_EXTENT_BLOCKS), 4); // ee_len
      bytes.writeUInt32LE(run.physical + done, 8); // ee_start_lo
      entries.push({ logical: run.logical + done, bytes });
    }
  }
  while (entries.length > ROOT_ENTRIES) {
    const parents: typeof entries = [];
    for (let at = 0; at < entries.length; at += NODE_ENTRIES) {
      const children = entries.slice(at, at + NODE_ENTRIES);
      const number = writeBlock(encodeNode(children, depth, BLOCK_BYTES, NODE_ENTRIES));
      blocks += 1;
      const bytes = Buffer.alloc(RECORD_BYTES);
      bytes.writeUInt32LE(children[0]!.logical, 0); // ei_block
      bytes.writeUInt32LE(number, 4); // ei_leaf_lo
      parents.push({ logical: children[0]!.logical, bytes });
    }
    entries = parents;
    depth += 1;
  }
  return { root: encodeNode(entries, depth, (ROOT_ENTRIES + 1) * RECORD_BYTES, ROOT_ENTRIES), blocks };
}

function encodeNode(entries: readonly { bytes: Buffer }[], depth: number, size: number, capacity: number): Buffer {
  const node = Buffer.alloc(size);
  node.writeUInt16LE(MAGIC, 0); // eh_magic
  node.writeUInt16LE(entries.length, 2); // eh_entries
  node.writeUInt16LE(capacity, 4); // eh_max
  node.writeUInt16LE(depth, 6); // eh_depth
  entries.forEach((entry, index) => entry.bytes.copy(node, (index + 1) * RECORD_BYTES));
  return node;
}

/** Whether one run fits into the root without a tree: the case of nearly every file. */
export function fitsRoot(blocks: number): boolean {
  return blocks <= ROOT_ENTRIES * MAXIMUM_EXTENT_BLOCKS;
}

/** Writes the i_block of a file in one run that {@link fitsRoot}, at `at`, into zeros; nothing is allocated. */
export function writeRootExtents(view: DataView, at: number, physical: number, blocks: number): void {
  let entries = 0;
  for (let done = 0; done < blocks; done += MAXIMUM_EXTENT_BLOCKS) {
    entries += 1;
    const entry = at + entries * RECORD_BYTES;
    view.setUint32(entry, done, true);
    view.setUint16(entry + 4, Math.min(blocks - done, MAXIMUM_EXTENT_BLOCKS), true);
    view.setUint32(entry + 8, physical + done, true);
  }
  view.setUint16(at, MAGIC, true);
  view.setUint16(at + 2, entries, true);
  view.setUint16(at + 4, ROOT_ENTRIES, true);
}
