import { LcowError } from '../../errors/index.js';
import { openExt4, type Ext4Inode, type InodeKind } from '../ext4/reader/index.js';
import { visibleXattrs } from '../overlay/index.js';
import { openDisk, type BlockSource, type OpenDisk } from '../source/index.js';
import { readableName } from '../tar/index.js';
import { MergedDirectory, notFound, type Found, type Placed } from './merged-directory.js';

/** A layer: a disk, and where in it the files are. */
export interface ViewLayer {
  /** A file (raw image, fixed VHD, VHDX), or the disk itself. */
  readonly disk: string | BlockSource;
  /** Byte string: `/` unless given; `/upper` in the writable layer of a container. */
  readonly root?: string;
}

/** A name in a directory. */
export interface ViewEntry {
  /** Byte string. */
  readonly name: string;
  readonly kind: InodeKind;
  readonly inode: Ext4Inode;
}

/** MAXSYMLINKS of Linux. */
const MAXIMUM_LINKS = 40;
/** Directories whose names are kept in memory. */
const REMEMBERED_DIRECTORIES = 256;

/**
 * The files of a layer, or of a chain of layers merged as overlayfs does, without a VM. Paths are byte strings; they
 * and symbolic links are resolved within the view: its root is `/`, and `..` does not lead out of it.
 *
 * All methods throw LcowError NOT_FOUND for what is not there, INVALID_ARGUMENT for a wrong kind of file or too many
 * symbolic links, and BAD_EXT4 for damaged layers.
 */
export class FileView implements AsyncDisposable {
  /** By path without symbolic links; the oldest are dropped. */
  readonly #directories = new Map<string, MergedDirectory>();

  private constructor(
    private readonly disks: readonly OpenDisk[],
    private readonly root: MergedDirectory,
  ) {}

  /** See {@link openView}. */
  static async open(layers: readonly ViewLayer[]): Promise<FileView> {
    const disks: OpenDisk[] = [];
    try {
      const roots: Placed[] = [];
      for (const layer of layers) roots.push(await openLayer(layer, disks));
      const root = await MergedDirectory.merge(roots);
      if (!root) throw new LcowError('INVALID_ARGUMENT', 'A view needs at least one layer.');
      return new FileView(disks, root);
    } catch (error) {
      await closeAll(disks);
      throw error;
    }
  }

  /** What is at a path; the last part is followed when it is a symbolic link, unless told otherwise. */
  async stat(path: string, { follow = true }: { follow?: boolean } = {}): Promise<Ext4Inode> {
    return (await this.#resolve(path, follow)).found.inode;
  }

  /** The path without symbolic links, from the root of the view. */
  async realpath(path: string): Promise<string> {
    return (await this.#resolve(path, true)).path;
  }

  /** The names in a directory, sorted by their bytes. */
  async readdir(path: string): Promise<ViewEntry[]> {
    const { found } = await this.#resolve(path, true);
    if (!found.directory) throw wrongKind(path, 'directory');
    const children = await found.directory.children();
    return children.map(({ name, found: { inode } }) => ({ name, kind: inode.kind, inode }));
  }

  /** The target of a symbolic link. */
  async readlink(path: string): Promise<string> {
    const { found } = await this.#resolve(path, false);
    if (found.inode.kind !== 'symbolicLink') throw wrongKind(path, 'symbolic link');
    return found.reader.readlink(found.inode);
  }

  /** The extended attributes as users of the container see them. */
  async xattrs(path: string, { follow = true }: { follow?: boolean } = {}): Promise<Map<string, Buffer>> {
    const { found } = await this.#resolve(path, follow);
    return visibleXattrs(await found.reader.xattrs(found.inode), path);
  }

  /** Reads a part of a file, less at its end. The caller bounds `length`: it is what is allocated. */
  async read(path: string, offset: number, length: number): Promise<Buffer> {
    const { reader, inode } = await this.#file(path);
    return reader.read(inode, offset, length);
  }

  /** Streams a file, from an offset. */
  async *stream(path: string, start = 0): AsyncGenerator<Uint8Array, void, undefined> {
    const { reader, inode } = await this.#file(path);
    yield* reader.stream(inode, start);
  }

  /** Closes the files that were opened for the view. */
  async close(): Promise<void> {
    await closeAll(this.disks);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  async #file(path: string): Promise<Placed> {
    const { found } = await this.#resolve(path, true);
    if (found.inode.kind !== 'file') throw wrongKind(path, 'file');
    // Metadata that was copied up without its content.
    if (found.reader.hasXattrs(found.inode)) visibleXattrs(await found.reader.xattrs(found.inode), path);
    return found;
  }

  async #resolve(path: string, followLast: boolean): Promise<{ found: Found; path: string }> {
    const root: Found = { ...this.root.parts[0], directory: this.root };
    const trail: { name: string; found: Found }[] = [];
    // What is still to be gone through, the next part last.
    const left = partsOf(path);
    for (let links = 0; left.length > 0;) {
      const part = left.pop()!;
      const at = trail.at(-1)?.found ?? root;
      if (!at.directory) throw notFound(path);
      if (part === '..') {
        trail.pop();
        continue;
      }
      const found = await this.#child(at.directory, [...trail.map(({ name }) => name), part]);
      if (!found) throw notFound(path);
      if (found.inode.kind === 'symbolicLink' && (left.length > 0 || followLast)) {
        if ((links += 1) > MAXIMUM_LINKS)
          throw new LcowError(
            'INVALID_ARGUMENT',
            `${JSON.stringify(readableName(path))} goes through more than ${MAXIMUM_LINKS} symbolic links.`,
          );
        const target = await found.reader.readlink(found.inode);
        if (target.startsWith('/')) trail.length = 0;
        left.push(...partsOf(target));
        continue;
      }
      trail.push({ name: part, found });
    }
    return { found: trail.at(-1)?.found ?? root, path: `/${trail.map(({ name }) => name).join('/')}` };
  }

  /** A child, its directory the one that was used before, since that has its names in memory. */
  async #child(parent: MergedDirectory, parts: readonly string[]): Promise<Found | undefined> {
    const found = await parent.child(parts.at(-1)!);
    if (!found?.directory) return found;
    const path = parts.join('/');
    const directory = this.#directories.get(path) ?? found.directory;
    this.#directories.delete(path);
    this.#directories.set(path, directory);
    for (const oldest of this.#directories.keys()) {
      if (this.#directories.size <= REMEMBERED_DIRECTORIES) break;
      this.#directories.delete(oldest);
    }
    return { ...found, directory };
  }
}

/**
 * Opens a view of layers.
 * @param layers the uppermost first.
 * @throws LcowError NOT_FOUND (a disk, or a root in it), BAD_EXT4, BAD_VHD, BAD_VHDX, IO_FAILED.
 */
export async function openView(layers: readonly ViewLayer[]): Promise<FileView> {
  return FileView.open(layers);
}

/** Opens one layer; a disk that is opened for it is added to `disks`, for the caller to close. */
export async function openLayer({ disk, root = '/' }: ViewLayer, disks: OpenDisk[]): Promise<Placed> {
  let source = disk;
  if (typeof source === 'string') {
    const opened = await openDisk(source);
    disks.push(opened);
    source = opened.source;
  }
  const reader = await openExt4(source);
  const inode = await reader.lookup(root);
  if (inode?.kind !== 'directory')
    throw new LcowError('NOT_FOUND', `${source.name} has no directory ${readableName(root)}.`);
  return { reader, inode };
}

/** Closes disks. */
export async function closeAll(disks: readonly OpenDisk[]): Promise<void> {
  for (const disk of disks) await disk.close();
}

function partsOf(path: string): string[] {
  return path
    .split('/')
    .filter((part) => part !== '' && part !== '.')
    .reverse();
}

function wrongKind(path: string, wanted: string): LcowError {
  return new LcowError('INVALID_ARGUMENT', `${JSON.stringify(readableName(path))} is no ${wanted}.`);
}
