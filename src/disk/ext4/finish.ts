import type { Hash } from 'node:crypto';
import { imageTooLarge, type ImageContent } from './content.js';
import { clearBits, setBits } from './bitmap.js';
import { encodeDirectory, type DirectoryEntry } from './directory.js';
import { writeRootExtents, type ExtentTree, type Run } from './extents.js';
import { planImage, type ImageGeometry } from './geometry.js';
import { directoryEntryType, writeDevice, writeInode, type InodeFacts } from './inode-encoding.js';
import type { InodeTable } from './inode-table.js';
import { encodeSuperblock } from './superblock.js';
import {
  BITS_PER_BITMAP,
  BLOCK_BYTES,
  DESCRIPTOR_BYTES,
  DESCRIPTORS_PER_BLOCK,
  FIRST_INODE,
  GROUP_DESCRIPTOR,
  GROUP_INODES_ZEROED,
  INODE,
  INODE_BYTES,
  INODE_FLAG,
  MODE,
  ROOT_INODE,
  SUPERBLOCK_OFFSET,
} from './structures.js';
import type { Directory } from './tree.js';

/** The file system that was written. */
export interface WrittenExt4 {
  /** Multiple of 4096. */
  readonly imageBytes: number;
  /** Follows from names, attributes, sizes and places: equal input, equal UUID. */
  readonly uuid: Buffer;
  /** Sixteen more bytes of the same kind, for an identifier of what the image is wrapped in. */
  readonly secondUuid: Buffer;
}

/** Between two waits for the disk. */
const BATCH_BYTES = 1024 * 1024;
const I_BLOCK = INODE.fields.i_block.offset;
const XATTRS = INODE.fields.xattrs.offset;

/** What the inodes need besides their columns. */
interface Placed {
  readonly indexed: ReadonlySet<number>;
  readonly trees: ReadonlyMap<number, ExtentTree>;
}

/** Writes everything behind the content of files, and then the front of the image. */
export async function finishImage(writer: ImageContent, hash: Hash): Promise<WrittenExt4> {
  const { sink, inodes, maximumBytes } = writer;
  const indexed = await writeDirectories(writer, hash);
  const trees = writeExtentTrees(writer);
  await sink.drain();
  await writeXattrBlocks(writer, hash);
  const geometry = planImage(sink.position / BLOCK_BYTES, inodes.end - 1);
  if (
    !geometry ||
    geometry.blocks * BLOCK_BYTES > maximumBytes ||
    geometry.groups > writer.descriptorBlocks * DESCRIPTORS_PER_BLOCK
  )
    throw imageTooLarge(maximumBytes);
  const { uuid, secondUuid } = identify(writer, hash);
  await writeInodeTable(writer, geometry, { indexed, trees });
  const free = freeRuns(writer, geometry);
  const descriptors = await writeBitmaps(writer, geometry, free);
  sink.appendZeros((geometry.blocks - geometry.usedBlocks) * BLOCK_BYTES);
  await sink.drain();
  await sink.writeAt(BLOCK_BYTES, descriptors.encoded);
  // Last, so that an image that was not finished is not an ext4.
  await sink.writeAt(
    SUPERBLOCK_OFFSET,
    encodeSuperblock({
      blocks: geometry.blocks,
      freeBlocks: descriptors.freeBlocks,
      groups: geometry.groups,
      blocksPerGroup: geometry.blocksPerGroup,
      inodesPerGroup: geometry.inodesPerGroup,
      freeInodes: descriptors.freeInodes,
      uuid,
      readOnly: true,
    }),
  );
  return { imageBytes: geometry.blocks * BLOCK_BYTES, uuid, secondUuid };
}

async function writeDirectories({ sink, tree, inodes, xattrs }: ImageContent, hash: Hash): Promise<Set<number>> {
  const indexed = new Set<number>();
  let nextDrain = sink.position + BATCH_BYTES;
  for (const directory of tree.directories.values()) {
    if (directory.opaque)
      xattrs.set(
        directory.inode,
        new Map([...(xattrs.get(directory.inode) ?? []), ['trusted.overlay.opaque', Buffer.from('y')]]),
      );
    const parent = directory.parent?.inode ?? ROOT_INODE;
    const encoded = encodeDirectory(directory.inode, parent, entriesOf(directory, inodes));
    if (encoded.indexed) indexed.add(directory.inode);
    hash.update(encoded.content);
    inodes.start[directory.inode] = sink.position / BLOCK_BYTES;
    inodes.size[directory.inode] = encoded.content.length;
    sink.append(encoded.content, 0, encoded.content.length);
    if (sink.position >= nextDrain) {
      await sink.drain();
      nextDrain = sink.position + BATCH_BYTES;
    }
  }
  return indexed;
}

function* entriesOf(directory: Directory, inodes: InodeTable): Generator<DirectoryEntry> {
  for (const [name, inode] of directory.children) yield { name, inode, type: directoryEntryType(inodes.mode[inode]!) };
}

function writeExtentTrees(writer: ImageContent): Map<number, ExtentTree> {
  const { sink, inodes } = writer;
  const trees = new Map<number, ExtentTree>();
  const writeBlock = (block: Buffer): number => {
    const number = sink.position / BLOCK_BYTES;
    sink.append(block, 0, BLOCK_BYTES);
    return number;
  };
  for (let inode = FIRST_INODE; inode < inodes.end; inode += 1) {
    if (inodes.kind(inode) !== MODE.file) continue;
    const extents = writer.extentTree(inode, writeBlock);
    if (extents) trees.set(inode, extents);
  }
  return trees;
}

async function writeXattrBlocks({ sink, xattrs }: ImageContent, hash: Hash): Promise<void> {
  if (xattrs.isEmpty) return;
  for (const block of xattrs.placeBlocks(sink.position / BLOCK_BYTES)) {
    hash.update(block);
    sink.append(block, 0, BLOCK_BYTES);
    if (sink.position % BATCH_BYTES < BLOCK_BYTES) await sink.drain();
  }
}

/** The identity of an image: names, attributes and sizes, but not the content of files, which would take a second. */
function identify({ inodes, tree, xattrs }: ImageContent, hash: Hash): { uuid: Buffer; secondUuid: Buffer } {
  for (const column of inodes.columns()) hash.update(column.subarray(0, inodes.end));
  for (const target of tree.symlinks.values()) hash.update(`${target}\0`, 'latin1');
  if (!xattrs.isEmpty)
    for (let inode = 0; inode < inodes.end; inode += 1) {
      const body = xattrs.body(inode);
      if (body) hash.update(body);
    }
  const digest = hash.digest();
  return { uuid: asUuid(digest.subarray(0, 16)), secondUuid: asUuid(digest.subarray(16, 32)) };
}

/** RFC 9562, version 8: bits of one's own making. */
function asUuid(digest: Buffer): Buffer {
  const uuid = Buffer.from(digest);
  uuid[6] = (uuid[6]! & 0x0f) | 0x80;
  uuid[8] = (uuid[8]! & 0x3f) | 0x80;
  return uuid;
}

async function writeInodeTable(writer: ImageContent, geometry: ImageGeometry, placed: Placed): Promise<void> {
  const { sink, inodes } = writer;
  const total = geometry.groups * geometry.inodesPerGroup;
  const batch = Buffer.alloc(Math.min(total * INODE_BYTES, 256 * 1024));
  const view = new DataView(batch.buffer, batch.byteOffset, batch.byteLength);
  const facts: InodeFacts = {
    mode: 0,
    links: 0,
    uid: 0,
    gid: 0,
    size: 0,
    blocks: 0,
    flags: 0,
    attributeBlock: 0,
    mtime: 0,
    mtimeNs: 0,
    atime: 0,
    atimeNs: 0,
    ctime: 0,
    ctimeNs: 0,
  };
  const perBatch = batch.length / INODE_BYTES;
  for (let first = 1; first <= total; first += perBatch) {
    batch.fill(0);
    const count = Math.min(perBatch, total - first + 1);
    for (let inode = first; inode < Math.min(first + count, inodes.end); inode += 1)
      if (inodes.mode[inode] !== 0)
        encodeInode(writer, placed, facts, inode, batch, view, (inode - first) * INODE_BYTES);
    sink.append(batch, 0, count * INODE_BYTES);
    await sink.drain();
  }
}

function encodeInode(
  writer: ImageContent,
  { indexed, trees }: Placed,
  facts: InodeFacts,
  inode: number,
  batch: Buffer,
  view: DataView,
  at: number,
): void {
  const { inodes, xattrs, tree } = writer;
  const kind = inodes.kind(inode);
  const extents = trees.get(inode);
  const content = writer.contentBlocks(inode);
  const attributeBlock = xattrs.block(inode);
  const fastSymlink = kind === MODE.symbolicLink && content === 0;
  const hasExtents = kind === MODE.file || kind === MODE.directory || (kind === MODE.symbolicLink && !fastSymlink);
  facts.mode = inodes.mode[inode]!;
  // dir_nlink: more subdirectories than can be counted are not counted.
  facts.links = kind === MODE.directory && inodes.links[inode]! > 65_000 ? 1 : inodes.links[inode]!;
  facts.uid = inodes.uid[inode]!;
  facts.gid = inodes.gid[inode]!;
  facts.size = inodes.size[inode]!;
  facts.blocks = content + (extents?.blocks ?? 0) + (attributeBlock > 0 ? 1 : 0);
  facts.flags = (hasExtents ? INODE_FLAG.extents : 0) | (indexed.has(inode) ? INODE_FLAG.index : 0);
  facts.attributeBlock = attributeBlock;
  facts.mtime = inodes.mtime[inode]!;
  facts.mtimeNs = inodes.mtimeNs[inode]!;
  facts.atime = inodes.atime[inode]!;
  facts.atimeNs = inodes.atimeNs[inode]!;
  facts.ctime = inodes.ctime[inode]!;
  facts.ctimeNs = inodes.ctimeNs[inode]!;
  writeInode(view, at, facts);
  if (extents) extents.root.copy(batch, at + I_BLOCK);
  else if (hasExtents) writeRootExtents(view, at + I_BLOCK, inodes.start[inode]!, content);
  else if (fastSymlink) batch.write(tree.symlinks.get(inode)!, at + I_BLOCK, 'latin1');
  else if (kind === MODE.characterDevice || kind === MODE.blockDevice)
    writeDevice(view, at, inodes.start[inode]! >>> 20, inodes.start[inode]! & 0xf_ffff);
  xattrs.body(inode)?.copy(batch, at + XATTRS);
}

/** All blocks that belong to nothing, ascending: descriptors not needed, files replaced, the rest of the last group. */
function freeRuns({ freed, descriptorBlocks }: ImageContent, geometry: ImageGeometry): Run[] {
  const usedDescriptors = Math.ceil(geometry.groups / DESCRIPTORS_PER_BLOCK);
  return [
    { logical: 0, physical: 1 + usedDescriptors, length: descriptorBlocks - usedDescriptors },
    ...freed.sort((a, b) => a.physical - b.physical),
    { logical: 0, physical: geometry.usedBlocks, length: geometry.blocks - geometry.usedBlocks },
  ];
}

interface Descriptors {
  readonly encoded: Buffer;
  readonly freeBlocks: number;
  readonly freeInodes: number;
}

async function writeBitmaps(writer: ImageContent, geometry: ImageGeometry, free: readonly Run[]): Promise<Descriptors> {
  const { sink } = writer;
  const { groups, blocksPerGroup, inodesPerGroup } = geometry;
  const encoded = Buffer.alloc(Math.ceil((groups * DESCRIPTOR_BYTES) / BLOCK_BYTES) * BLOCK_BYTES);
  const bitmap = Buffer.alloc(BLOCK_BYTES);
  const freeBlocks: number[] = [];
  let firstRun = 0;
  for (let group = 0; group < groups; group += 1) {
    const start = group * blocksPerGroup;
    const end = Math.min(start + blocksPerGroup, geometry.blocks);
    // Bits behind the end of the group are set as well: the padding that e2fsck looks at.
    bitmap.fill(0xff);
    let count = 0;
    while (firstRun < free.length && free[firstRun]!.physical + free[firstRun]!.length <= start) firstRun += 1;
    for (let index = firstRun; index < free.length && free[index]!.physical < end; index += 1) {
      const from = Math.max(free[index]!.physical, start);
      const to = Math.min(free[index]!.physical + free[index]!.length, end);
      clearBits(bitmap, from - start, to - start);
      count += Math.max(0, to - from);
    }
    freeBlocks.push(count);
    sink.append(bitmap, 0, BLOCK_BYTES);
    if (group % 64 === 63) await sink.drain();
  }
  let freeInodes = 0;
  for (let group = 0; group < groups; group += 1) {
    const counts = fillInodeBitmap(writer, bitmap, group * inodesPerGroup + 1, inodesPerGroup);
    freeInodes += inodesPerGroup - counts.used;
    sink.append(bitmap, 0, BLOCK_BYTES);
    GROUP_DESCRIPTOR.encode({
      bg_block_bitmap_lo: geometry.blockBitmaps + group,
      bg_inode_bitmap_lo: geometry.inodeBitmaps + group,
      bg_inode_table_lo: geometry.inodeTable + group * ((inodesPerGroup * INODE_BYTES) / BLOCK_BYTES),
      bg_free_blocks_count_lo: freeBlocks[group]!,
      bg_free_inodes_count_lo: inodesPerGroup - counts.used,
      bg_used_dirs_count_lo: counts.directories,
      bg_flags: GROUP_INODES_ZEROED,
    }).copy(encoded, group * DESCRIPTOR_BYTES);
    if (group % 64 === 63) await sink.drain();
  }
  return { encoded, freeBlocks: freeBlocks.reduce((sum, count) => sum + count, 0), freeInodes };
}

function fillInodeBitmap(
  { inodes }: ImageContent,
  bitmap: Buffer,
  first: number,
  count: number,
): { used: number; directories: number } {
  bitmap.fill(0);
  setBits(bitmap, count, BITS_PER_BITMAP);
  let used = 0;
  let directories = 0;
  for (let index = 0; index < count; index += 1) {
    if (!inodes.isUsed(first + index)) continue;
    bitmap[index >>> 3]! |= 1 << (index & 7);
    used += 1;
    if (inodes.kind(first + index) === MODE.directory) directories += 1;
  }
  return { used, directories };
}
