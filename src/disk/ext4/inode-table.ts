import { LcowError } from '../../errors/index.js';
import { FIRST_INODE, MODE, ROOT_INODE } from './structures.js';

/** Owner, permissions and times of an inode. A tar member's header is one. */
export interface InodeAttributes {
  /** Permission bits only. */
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  /** Whole seconds since 1970, rounded down, and nanoseconds. */
  readonly mtime: number;
  readonly mtimeNs: number;
  /** The modification time where undefined. */
  readonly atime: number | undefined;
  readonly atimeNs: number;
  readonly ctime: number | undefined;
  readonly ctimeNs: number;
}

/** Inodes an image may have: what keeps a small archive of deep paths from filling the memory of the host. */
export const MAXIMUM_INODES = 4 * 1024 * 1024;

/**
 * The inodes of an image under construction, one typed array for each property: 66 bytes an inode, and no object.
 * The arrays are replaced when they grow; read them from here each time.
 */
export class InodeTable {
  mode = new Uint16Array(0);
  links = new Uint32Array(0);
  uid = new Uint32Array(0);
  gid = new Uint32Array(0);
  size = new Float64Array(0);
  /** First block of content in one run; of a device, its number as major * 2^20 + minor. */
  start = new Uint32Array(0);
  mtime = new Float64Array(0);
  atime = new Float64Array(0);
  ctime = new Float64Array(0);
  mtimeNs = new Uint32Array(0);
  atimeNs = new Uint32Array(0);
  ctimeNs = new Uint32Array(0);

  /** Inode numbers are below this one. */
  end = FIRST_INODE;
  readonly #free: number[] = [];

  constructor() {
    this.#grow(1024);
  }

  /** A new inode with one link fewer than it will have. `mode` has the kind as well. */
  allocate(mode: number): number {
    const inode = this.#free.pop() ?? this.end;
    if (inode === this.end) {
      if (inode >= MAXIMUM_INODES)
        throw new LcowError('BAD_TAR', `The tar makes more than ${MAXIMUM_INODES} files and directories.`);
      if (inode === this.mode.length) this.#grow(this.mode.length * 2);
      this.end += 1;
    }
    this.mode[inode] = mode;
    return inode;
  }

  /** Gives a number back. */
  release(inode: number): void {
    for (const column of this.columns()) column[inode] = 0;
    this.#free.push(inode);
  }

  setAttributes(inode: number, attributes: InodeAttributes): void {
    this.mode[inode] = (this.mode[inode]! & MODE.mask) | attributes.mode;
    this.uid[inode] = attributes.uid;
    this.gid[inode] = attributes.gid;
    const { mtime, mtimeNs } = attributes;
    this.mtime[inode] = mtime;
    this.mtimeNs[inode] = mtimeNs;
    const { atime, ctime } = attributes;
    this.atime[inode] = atime ?? mtime;
    this.atimeNs[inode] = atime === undefined ? mtimeNs : attributes.atimeNs;
    this.ctime[inode] = ctime ?? mtime;
    this.ctimeNs[inode] = ctime === undefined ? mtimeNs : attributes.ctimeNs;
  }

  /** Takes permissions, owner and times over from another inode. */
  copyAttributes(inode: number, from: number): void {
    this.mode[inode] = (this.mode[inode]! & MODE.mask) | (this.mode[from]! & ~MODE.mask);
    for (const column of [
      this.uid,
      this.gid,
      this.mtime,
      this.mtimeNs,
      this.atime,
      this.atimeNs,
      this.ctime,
      this.ctimeNs,
    ])
      column[inode] = column[from]!;
  }

  kind(inode: number): number {
    return this.mode[inode]! & MODE.mask;
  }

  /** Whether the number is taken: by a file, or by the file system itself. */
  isUsed(inode: number): boolean {
    return (inode < FIRST_INODE && inode > 0) || (inode < this.end && this.mode[inode] !== 0);
  }

  /** Every property, in a fixed order. */
  columns(): (Uint16Array | Uint32Array | Float64Array)[] {
    return [
      this.mode,
      this.links,
      this.uid,
      this.gid,
      this.size,
      this.start,
      this.mtime,
      this.atime,
      this.ctime,
      this.mtimeNs,
      this.atimeNs,
      this.ctimeNs,
    ];
  }

  #grow(capacity: number): void {
    this.mode = grown(this.mode, new Uint16Array(capacity));
    this.links = grown(this.links, new Uint32Array(capacity));
    this.uid = grown(this.uid, new Uint32Array(capacity));
    this.gid = grown(this.gid, new Uint32Array(capacity));
    this.size = grown(this.size, new Float64Array(capacity));
    this.start = grown(this.start, new Uint32Array(capacity));
    this.mtime = grown(this.mtime, new Float64Array(capacity));
    this.atime = grown(this.atime, new Float64Array(capacity));
    this.ctime = grown(this.ctime, new Float64Array(capacity));
    this.mtimeNs = grown(this.mtimeNs, new Uint32Array(capacity));
    this.atimeNs = grown(this.atimeNs, new Uint32Array(capacity));
    this.ctimeNs = grown(this.ctimeNs, new Uint32Array(capacity));
    this.mode[ROOT_INODE] ||= MODE.directory | 0o755;
  }
}

function grown<T extends Uint16Array | Uint32Array | Float64Array>(old: T, larger: T): T {
  larger.set(old);
  return larger;
}
