import type { BlockSource } from '../../source/index.js';
import { FAST_SYMLINK_BYTES, INCOMPAT, ROOT_INODE } from '../structures.js';
import { contentAtHand, FileContent, inlineContent } from './content.js';
import { readEntries, verifyDirectoryBlock, type DirectoryEntry } from './directory.js';
import { fileRuns } from './extents.js';
import { decodeInode, hasFlag, type Ext4Inode } from './inode.js';
import { replayJournal } from './journal.js';
import { Volume } from './volume.js';
import { hasXattrs, inlineRest, readXattrs } from './xattrs.js';

const CHUNK_BYTES = 1024 * 1024;
/** The kernel's limit (PATH_MAX), NUL included. */
const MAXIMUM_SYMLINK_BYTES = 4096;
/** Longest path of a walk, in bytes: what readTar takes, several times what any Linux call does. */
const MAXIMUM_PATH_BYTES = 32 * 1024;

/** A name found by {@link Ext4Reader.walk}. */
export interface WalkedEntry {
  /** Byte string without a leading slash; the root of the walk is ''. */
  readonly path: string;
  readonly inode: Ext4Inode;
}

/**
 * Reads an ext4 without mounting it: what Linux and mke2fs make, of ext2 and ext3 too. Names are byte strings: one
 * character, one byte. All methods throw LcowError BAD_EXT4 for what is damaged, and what the source throws.
 */
export class Ext4Reader {
  private constructor(
    private readonly volume: Volume,
    readonly root: Ext4Inode,
  ) {}

  /** See {@link openExt4}. */
  static async open(source: BlockSource): Promise<Ext4Reader> {
    let volume = await Volume.open(source);
    if (volume.hasIncompat(INCOMPAT.recover)) {
      const replayed = await replayJournal(volume);
      if (replayed) volume = await Volume.open(replayed);
    }
    const root = decodeInode(volume, ROOT_INODE, Buffer.from(await volume.inode(ROOT_INODE)));
    if (root.kind !== 'directory') throw volume.bad('its root is no directory');
    return new Ext4Reader(volume, root);
  }

  /** What the disk is called in errors. */
  get name(): string {
    return this.volume.cache.source.name;
  }

  /** An inode by number, at once when it is in memory. */
  inode(ino: number): Ext4Inode | Promise<Ext4Inode> {
    const bytes = this.volume.inode(ino);
    // Copied: a view would hold on to a page of the cache for as long as the caller to the inode.
    if (Buffer.isBuffer(bytes)) return decodeInode(this.volume, ino, Buffer.from(bytes));
    return bytes.then((loaded) => decodeInode(this.volume, ino, Buffer.from(loaded)));
  }

  /**
   * What is at a path, symbolic links not followed; undefined when there is nothing.
   * @param path byte string; empty parts and `.` mean nothing, `..` is a name like others, which no directory has.
   */
  async lookup(path: string, from: Ext4Inode = this.root): Promise<Ext4Inode | undefined> {
    let at = from;
    for (const part of path.split('/')) {
      if (part === '' || part === '.') continue;
      if (at.kind !== 'directory') return undefined;
      let found: number | undefined;
      for await (const { name, ino } of this.readdir(at)) if (name === part) found = ino;
      if (found === undefined) return undefined;
      at = await this.inode(found);
    }
    return at;
  }

  /** The entries of a directory, in the order they are stored in, without the two dots. */
  async *readdir(inode: Ext4Inode): AsyncGenerator<DirectoryEntry, void, undefined> {
    for await (const entries of this.#directoryBlocks(inode)) yield* entries;
  }

  /** All entries of a directory, sorted by the bytes of their names. */
  async list(inode: Ext4Inode): Promise<DirectoryEntry[]> {
    const all: DirectoryEntry[] = [];
    for await (const entries of this.#directoryBlocks(inode)) for (const entry of entries) all.push(entry);
    all.sort((one, other) => (one.name < other.name ? -1 : 1));
    for (let index = 1; index < all.length; index += 1)
      if (all[index]!.name === all[index - 1]!.name) throw this.volume.bad(`directory ${inode.ino} has a name twice`);
    return all;
  }

  async *#directoryBlocks(inode: Ext4Inode): AsyncGenerator<DirectoryEntry[], void, undefined> {
    const { volume } = this;
    if (inode.kind !== 'directory') throw volume.bad(`inode ${inode.ino} is taken for a directory`);
    if (hasFlag(inode, 'inlineData')) {
      const entries: DirectoryEntry[] = [];
      // The number of the parent, then entries; what does not fit is in the attribute.
      readEntries(volume, inode, inode.content.subarray(4), entries);
      readEntries(volume, inode, inlineRest(volume, inode), entries);
      yield entries;
      return;
    }
    const blocks = Math.ceil(inode.size / volume.blockBytes);
    // No block is read twice: what is listed is bounded by what is there.
    const seen = new Set<number>();
    let next = 0;
    for await (const { logical, physical, length } of fileRuns(volume, inode)) {
      if (logical >= blocks) break;
      if (logical !== next) throw volume.bad(`directory ${inode.ino} has a hole`);
      next = Math.min(blocks, logical + length);
      for (let index = logical; index < next; index += 1) {
        const number = physical + index - logical;
        if (seen.has(number)) throw volume.bad(`directory ${inode.ino} refers to block ${number} twice`);
        seen.add(number);
        const block = await volume.block(number, `directory ${inode.ino}`);
        verifyDirectoryBlock(volume, inode, block, index);
        const entries: DirectoryEntry[] = [];
        readEntries(volume, inode, block, entries);
        if (entries.length > 0) yield entries;
      }
    }
    if (next < blocks) throw volume.bad(`directory ${inode.ino} has a hole`);
  }

  /** The target of a symbolic link, a byte string. */
  async readlink(inode: Ext4Inode): Promise<string> {
    const { volume } = this;
    if (inode.kind !== 'symbolicLink') throw volume.bad(`inode ${inode.ino} is taken for a symbolic link`);
    if (inode.size === 0 || inode.size > MAXIMUM_SYMLINK_BYTES)
      throw volume.bad(`symbolic link ${inode.ino} has a target of ${inode.size} bytes`);
    let target: Buffer;
    if (hasFlag(inode, 'inlineData')) target = inlineContent(volume, inode);
    else if (inode.size < FAST_SYMLINK_BYTES && !hasFlag(inode, 'extents'))
      target = inode.content.subarray(0, inode.size);
    else target = await this.read(inode, 0, inode.size);
    if (target.includes(0)) throw volume.bad(`symbolic link ${inode.ino} has a NUL in its target`);
    return target.toString('latin1');
  }

  /** The extended attributes by full name (a byte string), values as getxattr(2) gives them. */
  async xattrs(inode: Ext4Inode): Promise<Map<string, Buffer>> {
    if (!hasXattrs(inode)) return new Map();
    return readXattrs(this.volume, inode, async (ino, bytes) => {
      const value = await this.inode(ino);
      if (!hasFlag(value, 'eaInode') || value.kind !== 'file' || value.size !== bytes)
        throw this.volume.bad(`inode ${ino} is no value of an extended attribute`);
      return this.read(value, 0, bytes);
    });
  }

  /** Whether there may be extended attributes: a cheap question. */
  hasXattrs(inode: Ext4Inode): boolean {
    return hasXattrs(inode);
  }

  /** Reads a part of a file, less at its end. The caller bounds `length`: it is what is allocated. */
  async read(inode: Ext4Inode, offset: number, length: number): Promise<Buffer> {
    this.#checkHasContent(inode);
    const target = Buffer.allocUnsafe(Math.max(0, Math.min(length, inode.size - offset)));
    if (target.length > 0) await new FileContent(this.volume, inode, offset).readInto(target);
    return target;
  }

  /** Streams a file, from an offset. */
  async *stream(inode: Ext4Inode, start = 0): AsyncGenerator<Uint8Array, void, undefined> {
    const content = this.content(inode, start);
    while (content.position < inode.size) {
      const chunk = Buffer.allocUnsafeSlow(Math.min(CHUNK_BYTES, inode.size - content.position));
      await content.readInto(chunk);
      yield chunk;
    }
  }

  /** The whole of a small file when it is in memory in one piece. */
  contentAtHand(inode: Ext4Inode): Buffer | undefined {
    return contentAtHand(this.volume, inode);
  }

  /** A forward reader of a file. */
  content(inode: Ext4Inode, start = 0): FileContent {
    this.#checkHasContent(inode);
    return new FileContent(this.volume, inode, start);
  }

  /**
   * Everything below a directory and itself, parents first, siblings in the order of their names' bytes.
   * A directory that is met twice is an error, so that a walk ends.
   */
  async *walk(from: Ext4Inode = this.root): AsyncGenerator<WalkedEntry, void, undefined> {
    const entered = new Set<number>([from.ino]);
    yield { path: '', inode: from };
    const levels: { prefix: string; entries: DirectoryEntry[]; next: number }[] = [
      { prefix: '', entries: await this.list(from), next: 0 },
    ];
    for (let level = levels[0]; level; level = levels.at(-1)) {
      const entry = level.entries[level.next++];
      if (!entry) {
        levels.pop();
        continue;
      }
      const path = level.prefix + entry.name;
      const found = this.inode(entry.ino);
      const inode = found instanceof Promise ? await found : found;
      yield { path, inode };
      if (inode.kind !== 'directory') continue;
      this.enterDirectory(entered, inode, path);
      levels.push({ prefix: `${path}/`, entries: await this.list(inode), next: 0 });
    }
  }

  /** Notes a directory of a walk. @throws LcowError BAD_EXT4 when it was there before, or is too deep. */
  enterDirectory(entered: Set<number>, inode: Ext4Inode, path: string): void {
    if (entered.has(inode.ino)) throw this.volume.bad(`directory ${inode.ino} is in two places`);
    if (path.length > MAXIMUM_PATH_BYTES)
      throw this.volume.bad(`directory ${inode.ino} is ${path.length} bytes of path deep`);
    entered.add(inode.ino);
  }

  #checkHasContent(inode: Ext4Inode): void {
    if (inode.kind !== 'file' && inode.kind !== 'symbolicLink')
      throw this.volume.bad(`inode ${inode.ino} is taken for a file`);
  }
}

/**
 * Opens an ext4 for reading. A journal that must be replayed is, in memory: the source is only read.
 * @throws LcowError BAD_EXT4 when there is none, it is damaged, or has features that cannot be read (named).
 */
export async function openExt4(source: BlockSource): Promise<Ext4Reader> {
  return Ext4Reader.open(source);
}
