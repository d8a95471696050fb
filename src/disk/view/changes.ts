import type { Ext4Inode, Ext4Reader } from '../ext4/reader/index.js';
import { isOpaque, visibleXattrs } from '../overlay/index.js';
import type { OpenDisk } from '../source/index.js';
import { closeAll, openLayer, type ViewLayer } from './file-view.js';
import { MergedDirectory, whiteout, type Found, type Placed } from './merged-directory.js';

/** What `docker diff` prints as A, C and D. */
export type ChangeKind = 'added' | 'modified' | 'deleted';

/** A path that the upper layer has otherwise than those below. */
export interface Change {
  /** Byte string with a leading slash. */
  readonly path: string;
  readonly kind: ChangeKind;
}

const CAPABILITY = 'security.capability';

/**
 * Lists what an upper layer changes of the layers below, as Docker's diff does: a directory is modified when anything
 * in it is, or its mode or owner; a file when its mode, owner, size, time of modification or capabilities are.
 * @param lower the chain below, the uppermost first; may be empty.
 * @param upper the writable layer; its root is `/upper` in a scratch.
 * @returns changes sorted as paths are walked, parents first.
 * @throws LcowError as openView; NOT_SUPPORTED for overlays with redirect_dir or metacopy.
 */
export async function changes(lower: readonly ViewLayer[], upper: ViewLayer): Promise<Change[]> {
  return (await compare(lower, upper)).changes;
}

/** The bytes of all files that are added or modified; of hard links once (Docker's DiffSize). */
export async function diffSize(lower: readonly ViewLayer[], upper: ViewLayer): Promise<number> {
  return (await compare(lower, upper)).sizeBytes;
}

async function compare(lower: readonly ViewLayer[], upper: ViewLayer): Promise<Comparison> {
  const disks: OpenDisk[] = [];
  try {
    const below: Placed[] = [];
    for (const layer of lower) below.push(await openLayer(layer, disks));
    const top = await openLayer(upper, disks);
    const comparison = new Comparison(top.reader);
    await comparison.directory('', top.inode, await MergedDirectory.merge(below));
    return comparison;
  } finally {
    await closeAll(disks);
  }
}

class Comparison {
  readonly changes: Change[] = [];
  sizeBytes = 0;
  readonly #counted = new Set<number>();
  readonly #entered = new Set<number>();

  constructor(private readonly reader: Ext4Reader) {}

  /** Compares a directory of the upper layer with what is below it. */
  async directory(path: string, inode: Ext4Inode, below: MergedDirectory | undefined): Promise<void> {
    const { reader } = this;
    reader.enterDirectory(this.#entered, inode, path);
    const found: { name: string; inode: Ext4Inode | undefined }[] = [];
    for (const { name, ino } of await reader.list(inode)) {
      const child = await reader.inode(ino);
      // A mark of deletion is a name without an inode.
      found.push({ name, inode: (await whiteout(reader, child)) ? undefined : child });
    }
    if (below && reader.hasXattrs(inode) && isOpaque(await reader.xattrs(inode))) {
      const kept = new Set(found.map(({ name }) => name));
      for (const { name } of await below.children()) if (!kept.has(name)) found.push({ name, inode: undefined });
      found.sort((one, other) => (one.name < other.name ? -1 : 1));
    }
    for (const { name, inode: child } of found) await this.#child(`${path}/${name}`, child, await below?.child(name));
  }

  async #child(path: string, inode: Ext4Inode | undefined, below: Found | undefined): Promise<void> {
    if (!inode) {
      if (below) this.changes.push({ path, kind: 'deleted' });
      return;
    }
    const xattrs = this.reader.hasXattrs(inode) ? await this.reader.xattrs(inode) : new Map<string, Buffer>();
    visibleXattrs(xattrs, path);
    const at = this.changes.length;
    if (inode.kind === 'directory') await this.directory(path, inode, below?.directory);
    else if (below?.directory)
      for (const { name } of await below.directory.children())
        this.changes.push({ path: `${path}/${name}`, kind: 'deleted' });
    const kind = !below
      ? 'added'
      : this.changes.length > at || (await differs(inode, xattrs.get(CAPABILITY), below))
        ? 'modified'
        : undefined;
    if (!kind) return;
    // In front of what is below it.
    this.changes.splice(at, 0, { path, kind });
    if (inode.kind !== 'file' || this.#counted.has(inode.ino)) return;
    this.#counted.add(inode.ino);
    this.sizeBytes += inode.size;
  }
}

async function differs(
  inode: Ext4Inode,
  capability: Buffer | undefined,
  { reader, inode: below }: Found,
): Promise<boolean> {
  if (
    inode.kind !== below.kind ||
    inode.mode !== below.mode ||
    inode.uid !== below.uid ||
    inode.gid !== below.gid ||
    inode.deviceMajor !== below.deviceMajor ||
    inode.deviceMinor !== below.deviceMinor
  )
    return true;
  if (inode.kind !== 'directory' && (inode.size !== below.size || !sameTime(inode, below))) return true;
  const other = reader.hasXattrs(below) ? (await reader.xattrs(below)).get(CAPABILITY) : undefined;
  return !(capability ?? NONE).equals(other ?? NONE);
}

const NONE = Buffer.alloc(0);

/** Layers that were tars without parts of a second have none: those are taken for equal. */
function sameTime(one: Ext4Inode, other: Ext4Inode): boolean {
  return one.mtime === other.mtime && (one.mtimeNs === other.mtimeNs || one.mtimeNs === 0 || other.mtimeNs === 0);
}
