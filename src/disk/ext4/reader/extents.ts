/** Where the content of a file is: extent trees, and the indirect blocks of before. */
import type { Run } from '../extents.js';
import { metadataChecksum } from './checksum.js';
import { hasFlag, type Ext4Inode } from './inode.js';
import type { Volume } from './volume.js';

const RECORD_BYTES = 12;
const MAGIC = 0xf30a;
/** EXT4_MAX_EXTENT_DEPTH. */
const MAXIMUM_DEPTH = 5;
/** An extent of more is one of blocks that are allocated and not written: they read as zeros. */
const WRITTEN_BLOCKS = 32768;
const DIRECT_BLOCKS = 12;

/**
 * The runs of a small or orderly file, known without a promise: those of extents in the inode itself, and of files
 * in direct blocks. undefined for all others: see {@link fileRuns}. What no run covers is a hole.
 * @throws LcowError BAD_EXT4
 */
export function runsAtHand(volume: Volume, inode: Ext4Inode): Run[] | undefined {
  const runs: Run[] = [];
  if (hasFlag(inode, 'extents')) {
    if (inode.content.readUInt16LE(6) !== 0) return undefined;
    readLeaf(volume, inode, inode.content, 0, 2 ** 32, runs);
    return runs;
  }
  const blocks = Math.ceil(inode.size / volume.blockBytes);
  if (blocks > DIRECT_BLOCKS) return undefined;
  for (const run of pointers(volume, inode, inode.content, 0, blocks)) runs.push(run);
  return runs;
}

/**
 * The runs of a file, ascending and not overlapping, one block of its tree at a time.
 * @param from first block of the file that matters: subtrees below are passed over.
 * @throws LcowError BAD_EXT4
 */
export async function* fileRuns(volume: Volume, inode: Ext4Inode, from = 0): AsyncGenerator<Run, void, undefined> {
  const atHand = runsAtHand(volume, inode);
  if (atHand) yield* atHand;
  else if (hasFlag(inode, 'extents')) {
    const depth = inode.content.readUInt16LE(6);
    if (depth > MAXIMUM_DEPTH) throw volume.bad(`inode ${inode.ino} has an extent tree ${depth} levels deep`);
    yield* extentRuns(volume, inode, inode.content, depth, 0, 2 ** 32, from);
  } else yield* indirectRuns(volume, inode, from);
}

/** Checks a node's header. Returns the number of its entries. */
function entriesOf(volume: Volume, inode: Ext4Inode, node: Buffer, depth: number): number {
  const entries = node.readUInt16LE(2);
  const capacity = Math.floor((node.length - RECORD_BYTES) / RECORD_BYTES);
  const maximum = node.readUInt16LE(4);
  if (node.readUInt16LE(0) !== MAGIC || entries > maximum || maximum > capacity || node.readUInt16LE(6) !== depth)
    throw volume.bad(`inode ${inode.ino} has a damaged extent tree`);
  return entries;
}

/**
 * The part of a tree below a node that covers blocks `start` to `end` of the file. Every entry lies within what its
 * parent's entry covers, and behind its neighbour: so no block of the tree can hold entries for two places, and a
 * tree that refers to itself ends.
 */
async function* extentRuns(
  volume: Volume,
  inode: Ext4Inode,
  node: Buffer,
  depth: number,
  start: number,
  end: number,
  from: number,
): AsyncGenerator<Run, void, undefined> {
  if (depth === 0) {
    const runs: Run[] = [];
    readLeaf(volume, inode, node, start, end, runs);
    yield* runs;
    return;
  }
  const entries = entriesOf(volume, inode, node, depth);
  let previous = start - 1;
  for (let index = 1; index <= entries; index += 1) {
    const at = index * RECORD_BYTES;
    const first = node.readUInt32LE(at);
    const next = index < entries ? node.readUInt32LE(at + RECORD_BYTES) : end;
    if (first <= previous || next <= first || next > end)
      throw volume.bad(`inode ${inode.ino} has an extent tree out of order`);
    previous = first;
    if (next <= from) continue;
    const child = node.readUInt32LE(at + 4) + node.readUInt16LE(at + 8) * 2 ** 32;
    const block = await volume.block(child, `the extent tree of inode ${inode.ino}`);
    verifyNode(volume, inode, block);
    yield* extentRuns(volume, inode, block, depth - 1, first, next, from);
  }
}

function readLeaf(volume: Volume, inode: Ext4Inode, node: Buffer, start: number, end: number, runs: Run[]): void {
  const entries = entriesOf(volume, inode, node, 0);
  let reached = start;
  for (let index = 1; index <= entries; index += 1) {
    const at = index * RECORD_BYTES;
    const logical = node.readUInt32LE(at);
    const stored = node.readUInt16LE(at + 4);
    const unwritten = stored > WRITTEN_BLOCKS;
    const length = unwritten ? stored - WRITTEN_BLOCKS : stored;
    if (logical < reached || length === 0 || logical + length > end)
      throw volume.bad(`inode ${inode.ino} has an extent tree out of order`);
    reached = logical + length;
    const physical = node.readUInt32LE(at + 8) + node.readUInt16LE(at + 6) * 2 ** 32;
    volume.checkBlocks(physical, length, `inode ${inode.ino}`);
    if (!unwritten) runs.push({ logical, physical, length });
  }
}

/** struct ext4_extent_tail, behind the last entry that fits. */
function verifyNode(volume: Volume, inode: Ext4Inode, block: Buffer): void {
  if (!volume.checksums) return;
  const at = RECORD_BYTES + block.readUInt16LE(4) * RECORD_BYTES;
  if (at + 4 > block.length || metadataChecksum(inode.checksumSeed, block.subarray(0, at)) !== block.readUInt32LE(at))
    throw volume.bad(`the extent tree of inode ${inode.ino} does not match its checksum`);
}

/** Runs of block pointers, neighbours joined; 0 is a hole. */
function* pointers(
  volume: Volume,
  inode: Ext4Inode,
  table: Buffer,
  logical: number,
  count: number,
): Generator<Run, void, undefined> {
  for (let index = 0; index < count;) {
    const physical = table.readUInt32LE(index * 4);
    let length = 1;
    if (physical !== 0) {
      while (index + length < count && table.readUInt32LE((index + length) * 4) === physical + length) length += 1;
      volume.checkBlocks(physical, length, `inode ${inode.ino}`);
      yield { logical: logical + index, physical, length };
    }
    index += length;
  }
}

async function* indirectRuns(volume: Volume, inode: Ext4Inode, from: number): AsyncGenerator<Run, void, undefined> {
  const blocks = Math.ceil(inode.size / volume.blockBytes);
  const perBlock = volume.blockBytes / 4;
  yield* pointers(volume, inode, inode.content, 0, DIRECT_BLOCKS);
  let logical = DIRECT_BLOCKS;
  for (let level = 1; level <= 3 && logical < blocks; level += 1) {
    const pointer = inode.content.readUInt32LE((DIRECT_BLOCKS + level - 1) * 4);
    const covered = perBlock ** level;
    if (pointer !== 0 && logical + covered > from)
      yield* indirectBlock(volume, inode, pointer, level, logical, blocks, from);
    logical += covered;
  }
  if (logical < blocks) throw volume.bad(`inode ${inode.ino} is larger than its blocks can be`);
}

async function* indirectBlock(
  volume: Volume,
  inode: Ext4Inode,
  number: number,
  level: number,
  logical: number,
  blocks: number,
  from: number,
): AsyncGenerator<Run, void, undefined> {
  const table = await volume.block(number, `inode ${inode.ino}`);
  const perBlock = volume.blockBytes / 4;
  if (level === 1) {
    yield* pointers(volume, inode, table, logical, Math.min(perBlock, blocks - logical));
    return;
  }
  const covered = perBlock ** (level - 1);
  for (let index = 0; index < perBlock; index += 1) {
    const start = logical + index * covered;
    if (start >= blocks) return;
    const pointer = table.readUInt32LE(index * 4);
    if (pointer !== 0 && start + covered > from)
      yield* indirectBlock(volume, inode, pointer, level - 1, start, blocks, from);
  }
}
