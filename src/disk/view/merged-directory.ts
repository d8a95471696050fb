/** Directories of several layers as one, as overlayfs has them. */
import { LcowError } from '../../errors/index.js';
import type { DirectoryEntry, Ext4Inode, Ext4Reader } from '../ext4/reader/index.js';
import { isDeviceWhiteout, isOpaque, isWhiteout, visibleXattrs } from '../overlay/index.js';

/** An inode of one layer. */
export interface Placed {
  readonly reader: Ext4Reader;
  readonly inode: Ext4Inode;
}

/** What a name in a merged directory stands for. */
export interface Found extends Placed {
  /** The directories that make it up, the uppermost first; undefined for what is no directory. */
  readonly directory: MergedDirectory | undefined;
}

/** Directories of one path, the uppermost first. */
export class MergedDirectory {
  readonly #names: (Promise<ReadonlyMap<string, DirectoryEntry>> | undefined)[] = [];

  constructor(readonly parts: readonly [Placed, ...Placed[]]) {}

  /** Merges directories that may hide those below them. */
  static async merge(parts: Iterable<Placed> | AsyncIterable<Placed>): Promise<MergedDirectory | undefined> {
    const merged: Placed[] = [];
    for await (const part of parts) {
      if (part.inode.kind !== 'directory') break;
      merged.push(part);
      if (part.reader.hasXattrs(part.inode)) {
        const xattrs = await part.reader.xattrs(part.inode);
        visibleXattrs(xattrs, '');
        if (isOpaque(xattrs)) break;
      }
    }
    const [first, ...rest] = merged;
    return first ? new MergedDirectory([first, ...rest]) : undefined;
  }

  /** What a name stands for; undefined when there is nothing, or it is hidden. @param name byte string. */
  async child(name: string): Promise<Found | undefined> {
    const candidates = this.#candidates(name);
    const first = await candidates.next();
    if (first.done) return undefined;
    const top = first.value;
    if (top.inode.kind !== 'directory') {
      await candidates.return();
      return { ...top, directory: undefined };
    }
    const directory = await MergedDirectory.merge(
      (async function* () {
        yield top;
        yield* candidates;
      })(),
    );
    return { ...top, directory };
  }

  /** All names with what they stand for, sorted by their bytes. */
  async children(): Promise<{ name: string; found: Found }[]> {
    const all = new Set<string>();
    for (const index of this.parts.keys()) for (const name of (await this.#listed(index)).keys()) all.add(name);
    const children: { name: string; found: Found }[] = [];
    for (const name of [...all].sort()) {
      const found = await this.child(name);
      if (found) children.push({ name, found });
    }
    return children;
  }

  /** What the parts have under a name, from the uppermost down to the mark of its deletion. */
  async *#candidates(name: string): AsyncGenerator<Placed, void, undefined> {
    for (const [index, { reader }] of this.parts.entries()) {
      const entry = (await this.#listed(index)).get(name);
      if (!entry) continue;
      const inode = await reader.inode(entry.ino);
      if (await whiteout(reader, inode)) return;
      yield { reader, inode };
    }
  }

  /** The names of one part, read once. */
  #listed(index: number): Promise<ReadonlyMap<string, DirectoryEntry>> {
    const { reader, inode } = this.parts[index]!;
    return (this.#names[index] ??= reader
      .list(inode)
      .then((entries) => new Map(entries.map((entry) => [entry.name, entry]))));
  }
}

/** Whether an inode marks a deleted name. */
export async function whiteout(reader: Ext4Reader, inode: Ext4Inode): Promise<boolean> {
  if (isDeviceWhiteout(inode)) return true;
  return inode.kind === 'file' && inode.size === 0 && reader.hasXattrs(inode)
    ? isWhiteout(inode, await reader.xattrs(inode))
    : false;
}

/** The error for a path that leads nowhere. */
export function notFound(path: string): LcowError {
  return new LcowError('NOT_FOUND', `${JSON.stringify(Buffer.from(path, 'latin1').toString())} does not exist there.`);
}
