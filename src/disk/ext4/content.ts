import { LcowError } from '../../errors/index.js';
import { buildExtentTree, fitsRoot, type ExtentTree, type Run } from './extents.js';
import { MAXIMUM_MAJOR, MAXIMUM_MINOR } from './inode-encoding.js';
import { InodeTable, type InodeAttributes } from './inode-table.js';
import type { ForwardSink } from './sink.js';
import {
  BITS_PER_BITMAP,
  BLOCK_BYTES,
  DESCRIPTOR_BYTES,
  FAST_SYMLINK_BYTES,
  MAXIMUM_BLOCKS,
  MAXIMUM_SYMLINK_BYTES,
  MODE,
} from './structures.js';
import { bad, FileTree, type Directory, type Place } from './tree.js';
import type { Xattrs } from './xattr.js';
import { XattrStore } from './xattr-store.js';

/** Attributes of a new file: a tar member's header is one. */
export interface FileAttributes extends InodeAttributes {
  readonly xattrs: Xattrs | undefined;
}

export interface Ext4WriterOptions {
  /**
   * Largest image, in bytes: 256 GiB unless given, up to 16 TiB. It sets how much room is kept for group descriptors at
   * the front (4 KiB for each 16 GiB), and how much a hostile archive can write.
   */
  readonly maximumBytes?: number;
}

const DEFAULT_MAXIMUM_BYTES = 256 * 2 ** 30;

/** Kinds of nodes without content. */
export type SpecialKind = 'characterDevice' | 'blockDevice' | 'fifo' | 'socket';

/**
 * The content of an image: takes files and directories, writes what files hold, remembers the rest for the end.
 */
export class ImageContent {
  readonly inodes = new InodeTable();
  readonly xattrs = new XattrStore();
  readonly tree = new FileTree(this.inodes, (inode) => this.#forget(inode));
  /** Blocks set aside behind the super block for group descriptors. */
  readonly descriptorBlocks: number;
  /** Runs of blocks that replaced files had. */
  readonly freed: Run[] = [];
  /** Runs of files with holes. */
  readonly sparse = new Map<number, Run[]>();

  readonly maximumBytes: number;
  /** The file being written; 0 for none. */
  #file = 0;
  #filePath = '';
  #fileAt = 0;
  #runs: Run[] | undefined;
  #runLogical = 0;
  #runPhysical = 0;

  /** @throws LcowError INVALID_ARGUMENT */
  constructor(
    readonly sink: ForwardSink,
    options: Ext4WriterOptions = {},
  ) {
    this.maximumBytes = options.maximumBytes ?? DEFAULT_MAXIMUM_BYTES;
    const maximumBlocks = Math.ceil(this.maximumBytes / BLOCK_BYTES);
    if (!(maximumBlocks >= 32) || maximumBlocks > MAXIMUM_BLOCKS + 1)
      throw new LcowError(
        'INVALID_ARGUMENT',
        `The maximum size ${this.maximumBytes} of an ext4 image is out of range: it must be from 128 KiB to 16 TiB.`,
      );
    const groups = Math.ceil(maximumBlocks / BITS_PER_BITMAP);
    this.descriptorBlocks = Math.ceil((groups * DESCRIPTOR_BYTES) / BLOCK_BYTES);
    sink.appendZeros((1 + this.descriptorBlocks) * BLOCK_BYTES);
  }

  /** Makes a directory, or changes the attributes of the one that is there. */
  makeDirectory(path: string, attributes: FileAttributes): void {
    const place = this.tree.place(path);
    const directory = this.#directoryAt(place);
    this.inodes.setAttributes(directory.inode, attributes);
    this.#setXattrs(directory.inode, attributes, path);
  }

  #directoryAt({ directory, name }: Place): Directory {
    if (name === '') return directory;
    const there = directory.children.get(name);
    const existing = there === undefined ? undefined : this.tree.directories.get(there);
    if (existing) return existing;
    const opaque = there !== undefined && this.tree.isWhiteout(there);
    this.tree.remove(directory, name);
    const made = this.tree.makeDirectory(directory, name);
    made.opaque = opaque;
    return made;
  }

  /** Begins a regular file, whose `size` bytes follow by {@link write} and {@link hole}. */
  beginFile(path: string, attributes: FileAttributes, size: number): void {
    this.#filePath = path;
    const inode = this.#make(path, MODE.file, attributes);
    this.inodes.size[inode] = size;
    this.#file = inode;
    this.#fileAt = 0;
    this.#runs = undefined;
    this.#runLogical = 0;
    this.#runPhysical = this.sink.position / BLOCK_BYTES;
    this.inodes.start[inode] = this.#runPhysical;
    if (size > 2 ** 44 - BLOCK_BYTES) throw bad(path, `has ${size} bytes; an ext4 file has at most 16 TiB`);
  }

  /** The next bytes of the file: `start` to `end` of `data`. */
  write(data: Buffer, start: number, end: number): void {
    if (this.sink.position + (end - start) > this.maximumBytes) throw this.#full();
    this.sink.append(data, start, end);
    this.#fileAt += end - start;
  }

  /** The next `bytes` of the file are zeros: whole blocks of them take no room. */
  hole(bytes: number): void {
    let left = bytes;
    const within = this.#fileAt % BLOCK_BYTES;
    if (within > 0) left -= this.#zeros(Math.min(left, BLOCK_BYTES - within));
    const toEnd = this.#fileAt + left === this.inodes.size[this.#file];
    const skipped = toEnd ? left : left - (left % BLOCK_BYTES);
    if (skipped > 0 && this.#fileAt % BLOCK_BYTES === 0) {
      this.#closeRun();
      this.#fileAt += skipped;
      left -= skipped;
      this.#runLogical = Math.ceil(this.#fileAt / BLOCK_BYTES);
      this.#runPhysical = this.sink.position / BLOCK_BYTES;
    }
    if (left > 0) this.#zeros(left);
  }

  #zeros(bytes: number): number {
    if (this.sink.position + bytes > this.maximumBytes) throw this.#full();
    this.sink.appendZeros(bytes);
    this.#fileAt += bytes;
    return bytes;
  }

  #closeRun(): void {
    this.#runs ??= [];
    const length = this.sink.position / BLOCK_BYTES - this.#runPhysical;
    if (length > 0) this.#runs.push({ logical: this.#runLogical, physical: this.#runPhysical, length });
  }

  /** Ends the file. */
  endFile(): void {
    const size = this.inodes.size[this.#file]!;
    if (this.#fileAt !== size) throw bad(this.#filePath, `has ${this.#fileAt} bytes instead of ${size}`);
    this.#padBlock();
    if (this.#runs) {
      this.#closeRun();
      this.sparse.set(this.#file, this.#runs);
    }
    this.#file = 0;
  }

  #padBlock(): void {
    const over = this.sink.position % BLOCK_BYTES;
    if (over > 0) this.sink.appendZeros(BLOCK_BYTES - over);
  }

  /** Makes a symbolic link. */
  makeSymlink(path: string, attributes: FileAttributes, target: string): void {
    if (target.length > MAXIMUM_SYMLINK_BYTES)
      throw bad(path, `is a symbolic link of ${target.length} bytes; Linux allows ${MAXIMUM_SYMLINK_BYTES}`);
    const inode = this.#make(path, MODE.symbolicLink, attributes);
    this.inodes.size[inode] = target.length;
    this.tree.symlinks.set(inode, target);
    if (target.length < FAST_SYMLINK_BYTES) return;
    if (this.sink.position + BLOCK_BYTES > this.maximumBytes) throw this.#full();
    this.inodes.start[inode] = this.sink.position / BLOCK_BYTES;
    this.sink.append(Buffer.from(target, 'latin1'), 0, target.length);
    this.#padBlock();
  }

  /** Makes a device, fifo or socket. */
  makeSpecial(path: string, attributes: FileAttributes, kind: SpecialKind, major = 0, minor = 0): void {
    if (!(major >= 0 && major <= MAXIMUM_MAJOR && minor >= 0 && minor <= MAXIMUM_MINOR))
      throw bad(path, `is device ${major}:${minor}; Linux has numbers up to ${MAXIMUM_MAJOR}:${MAXIMUM_MINOR}`);
    const inode = this.#make(path, MODE[kind], attributes);
    this.inodes.start[inode] = major * 2 ** 20 + minor;
  }

  /** Gives the file at `target` a further name. */
  makeLink(path: string, target: string): void {
    const inode = this.tree.lookup(target);
    if (inode === undefined)
      throw bad(
        path,
        `is a hard link to ${JSON.stringify(Buffer.from(target, 'latin1').toString())}, which is not in the archive before it`,
      );
    if (this.tree.directories.has(inode)) throw bad(path, 'is a hard link to a directory');
    this.tree.link(this.#named(this.tree.place(path), path), inode, path);
  }

  /** Hides a name of the layers below: a character device 0:0, or opaqueness when this layer has a directory there. */
  makeWhiteout(path: string): void {
    const place = this.#named(this.tree.place(path), path);
    const there = place.directory.children.get(place.name);
    if (there === undefined) {
      const inode = this.inodes.allocate(MODE.characterDevice);
      this.tree.put(place, inode);
      return;
    }
    // What this layer has under the name is not meant (OCI image-spec, layer.md, "Whiteouts"), only what is below.
    const directory = this.tree.directories.get(there);
    if (directory) directory.opaque = true;
  }

  /** Hides all that the layers below have in a directory. Makes it when it is missing. */
  makeOpaque(path: string): void {
    this.tree.directory(path).opaque = true;
  }

  #make(path: string, kind: number, attributes: FileAttributes): number {
    const place = this.#named(this.tree.place(path), path);
    const inode = this.inodes.allocate(kind);
    this.inodes.setAttributes(inode, attributes);
    if (attributes.xattrs) this.#setXattrs(inode, attributes, path);
    this.tree.put(place, inode);
    return inode;
  }

  #named(place: Place, path: string): Place {
    if (place.name === '') throw bad(path, 'would replace the root directory');
    return place;
  }

  #setXattrs(inode: number, attributes: FileAttributes, path: string): void {
    try {
      this.xattrs.set(inode, attributes.xattrs);
    } catch (error) {
      if (error instanceof LcowError)
        throw new LcowError(error.code, bad(path, 'cannot be stored').message + ` ${error.message}`, { cause: error });
      throw error;
    }
  }

  #forget(inode: number): void {
    this.xattrs.delete(inode);
    const runs = this.sparse.get(inode);
    if (runs) this.freed.push(...runs);
    else if (this.contentBlocks(inode) > 0)
      this.freed.push({ logical: 0, physical: this.inodes.start[inode]!, length: this.contentBlocks(inode) });
    this.sparse.delete(inode);
  }

  /** Blocks of content of an inode, holes not counted. */
  contentBlocks(inode: number): number {
    const kind = this.inodes.kind(inode);
    const size = this.inodes.size[inode]!;
    if (kind === MODE.symbolicLink && size < FAST_SYMLINK_BYTES) return 0;
    const runs = this.sparse.get(inode);
    return runs ? runs.reduce((sum, run) => sum + run.length, 0) : Math.ceil(size / BLOCK_BYTES);
  }

  /** The extent tree of an inode that needs more than its root, or has holes; undefined for all others. */
  extentTree(inode: number, writeBlock: (block: Buffer) => number): ExtentTree | undefined {
    const runs = this.sparse.get(inode);
    if (runs) return buildExtentTree(runs, writeBlock);
    const length = this.contentBlocks(inode);
    if (fitsRoot(length)) return undefined;
    return buildExtentTree([{ logical: 0, physical: this.inodes.start[inode]!, length }], writeBlock);
  }

  #full(): LcowError {
    return imageTooLarge(this.maximumBytes);
  }
}

/** The error for an image above its limit. */
export function imageTooLarge(maximumBytes: number): LcowError {
  return new LcowError(
    'BAD_TAR',
    `The content of the tar does not fit the maximum disk size of ${maximumBytes} bytes.`,
  );
}
