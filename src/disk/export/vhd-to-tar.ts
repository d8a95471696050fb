import { LcowError } from '../../errors/index.js';
import { throwIfAborted } from '../../lifetime/index.js';
import { openExt4, type DirectoryEntry, type Ext4Inode, type Ext4Reader } from '../ext4/reader/index.js';
import { openDisk, type BlockSource } from '../source/index.js';
import { ChunkWriter, encodeHeader, END_BYTES, padded, readableName, type TarMember } from '../tar/index.js';
import { isDeviceWhiteout, isOpaque, isWhiteout, visibleXattrs, type Xattrs } from '../overlay/index.js';

export interface VhdToTarOptions {
  /** The directory whose content is exported, a byte string: `/` unless given; `/upper` is what a container changed. */
  readonly root?: string;
  /**
   * `oci` (default) tells of deleted names and opaque directories as OCI layers do (.wh. files), and leaves out the
   * marks of overlayfs; `keep` takes them as the devices and attributes they are.
   */
  readonly whiteouts?: 'oci' | 'keep';
  /** Tells the times of access and change too, where they are not that of modification. Layers leave them out. */
  readonly accessTimes?: boolean;
  /** Stores files without their holes, in GNU's sparse format. Not every reader of layers knows it. */
  readonly sparse?: boolean;
  /** Begins with an entry for the root itself, `./` (default). */
  readonly rootEntry?: boolean;
  /** Writes to a chunk again once the next but one is asked for: a third cheaper, and not for those who keep chunks. */
  readonly reuseChunks?: boolean;
  /** Ends the export with CANCELLED. */
  readonly signal?: AbortSignal | undefined;
  /** Called with what a tar cannot hold: sockets. */
  readonly onSkipped?: ((path: string, reason: string) => void) | undefined;
}

/** What mke2fs makes in every root, for e2fsck. */
const LOST_AND_FOUND = { name: 'lost+found', ino: 11, mode: 0o700 };
const WHITEOUT_PREFIX = '.wh.';
const OPAQUE_MARKER = '.wh..wh..opq';
const NO_XATTRS: Xattrs = new Map();
/** Docker's, for whiteouts. */
const WHITEOUT_MODE = 0o600;

/**
 * Exports an ext4 as a tar, without a mount (opengcs vhd2tar and exportSandbox): depth first, siblings by the bytes of
 * their names, so that equal trees give equal tars. Use `Readable.from` where a stream is wanted.
 * @param disk a file (raw image, fixed VHD, VHDX), or the disk itself.
 * @returns chunks of up to 1 MiB, made as they are asked for.
 * @throws LcowError NOT_FOUND (also of `root`), BAD_EXT4, BAD_VHD, BAD_VHDX, IO_FAILED, CANCELLED; NOT_SUPPORTED for
 * what no layer can tell: names that begin with .wh., and overlays with redirect_dir or metacopy.
 */
export async function* vhdToTar(
  disk: string | BlockSource,
  options: VhdToTarOptions = {},
): AsyncGenerator<Uint8Array, void, undefined> {
  throwIfAborted(options.signal);
  if (typeof disk === 'string') {
    await using opened = await openDisk(disk);
    yield* exportFrom(await openExt4(opened.source), options);
  } else yield* exportFrom(await openExt4(disk), options);
}

async function* exportFrom(reader: Ext4Reader, options: VhdToTarOptions): AsyncGenerator<Uint8Array, void, undefined> {
  const root = await reader.lookup(options.root ?? '/');
  if (root?.kind !== 'directory')
    throw new LcowError('NOT_FOUND', `${reader.name} has no directory ${readableName(options.root ?? '/')}.`);
  yield* new Export(reader, root, options).run();
}

interface Level {
  readonly prefix: string;
  readonly entries: readonly DirectoryEntry[];
  next: number;
}

class Export {
  readonly #out: ChunkWriter;
  readonly #oci: boolean;
  /** Where inodes with several names were told first. */
  readonly #firstPaths = new Map<number, string>();
  readonly #entered = new Set<number>();
  readonly #levels: Level[] = [];

  constructor(
    private readonly reader: Ext4Reader,
    private readonly root: Ext4Inode,
    private readonly options: VhdToTarOptions,
  ) {
    this.#out = new ChunkWriter(options.reuseChunks ?? false);
    this.#oci = (options.whiteouts ?? 'oci') === 'oci';
  }

  async *run(): AsyncGenerator<Uint8Array, void, undefined> {
    const out = this.#out;
    const pending = await this.#enter('', this.root);
    if (pending) yield* this.#emit(pending);
    for (let level = this.#levels.at(-1); level; level = this.#levels.at(-1)) {
      const entry = level.entries[level.next++];
      if (!entry) {
        this.#levels.pop();
        continue;
      }
      const path = level.prefix + entry.name;
      const found = this.reader.inode(entry.ino);
      const inode = found instanceof Promise ? await found : found;
      if (level.prefix === '' && this.#isLostAndFound(entry.name, inode)) continue;
      if (inode.kind === 'directory') {
        yield* this.#emit((await this.#enter(path, inode))!);
        continue;
      }
      const header = this.reader.hasXattrs(inode)
        ? await this.#withXattrs(path, inode, entry.name)
        : this.#member(path, inode, entry.name, NO_XATTRS);
      const member =
        header?.type === 'symbolicLink' ? { ...header, linkPath: await this.reader.readlink(inode) } : header;
      if (!member) continue;
      if (member.type !== 'file' || member.size === 0) {
        const { blocks } = encodeHeader(member);
        if (blocks.length <= out.room) out.append(blocks);
        else yield* this.#emit(blocks);
        continue;
      }
      const content = this.options.sparse ? undefined : this.reader.contentAtHand(inode);
      // The case of nearly all files: header and content are there, and there is room for both.
      if (content && content.length < out.room / 2) {
        const { blocks } = encodeHeader(member);
        if (blocks.length + padded(content.length) <= out.room) {
          out.append(blocks);
          out.append(content);
          out.appendZeros(padded(content.length) - content.length);
          continue;
        }
      }
      yield* this.#file(member, inode);
    }
    if (out.room < END_BYTES) yield this.#take();
    out.appendZeros(END_BYTES);
    yield this.#take();
  }

  #take(): Buffer {
    throwIfAborted(this.options.signal);
    return this.#out.take();
  }

  /** Copies bytes out, however many. */
  *#emit(bytes: Buffer): Generator<Uint8Array, void, undefined> {
    for (let at = 0; at < bytes.length;) {
      if (this.#out.room === 0) yield this.#take();
      const length = Math.min(this.#out.room, bytes.length - at);
      this.#out.append(bytes.subarray(at, at + length));
      at += length;
    }
  }

  /** Begins a directory. Returns its headers. */
  async #enter(path: string, inode: Ext4Inode): Promise<Buffer | undefined> {
    this.reader.enterDirectory(this.#entered, inode, path);
    const xattrs = this.reader.hasXattrs(inode) ? await this.reader.xattrs(inode) : NO_XATTRS;
    const isRoot = path === '';
    this.#levels.push({ prefix: isRoot ? '' : `${path}/`, entries: await this.reader.list(inode), next: 0 });
    const name = path.slice(path.lastIndexOf('/') + 1);
    const blocks: Buffer[] = [];
    if (!isRoot || (this.options.rootEntry ?? true))
      blocks.push(encodeHeader(this.#member(isRoot ? './' : path, inode, name, xattrs)!).blocks);
    if (this.#oci && isOpaque(xattrs)) {
      const marker = isRoot ? OPAQUE_MARKER : `${path}/${OPAQUE_MARKER}`;
      blocks.push(encodeHeader(this.#marker(marker, inode)).blocks);
    }
    return blocks.length === 1 ? blocks[0] : Buffer.concat(blocks);
  }

  #isLostAndFound(name: string, { ino, mode, kind }: Ext4Inode): boolean {
    return (
      name === LOST_AND_FOUND.name && ino === LOST_AND_FOUND.ino && mode === LOST_AND_FOUND.mode && kind === 'directory'
    );
  }

  async #withXattrs(path: string, inode: Ext4Inode, name: string): Promise<TarMember | undefined> {
    return this.#member(path, inode, name, await this.reader.xattrs(inode));
  }

  /** The member for a name; undefined when a tar cannot hold it. The target of a symbolic link is still to be set. */
  #member(path: string, inode: Ext4Inode, name: string, raw: Xattrs): TarMember | undefined {
    let xattrs = raw;
    if (this.#oci) {
      if (isWhiteout(inode, raw))
        return this.#marker(path.slice(0, path.length - name.length) + WHITEOUT_PREFIX + name, inode);
      if (name.startsWith(WHITEOUT_PREFIX))
        throw new LcowError(
          'NOT_SUPPORTED',
          `${JSON.stringify(readableName(path))} cannot be in a layer: there, names that begin with .wh. tell of deleted files.`,
        );
      if (raw.size > 0) xattrs = visibleXattrs(raw, path);
    }
    const { kind } = inode;
    if (kind === 'socket') {
      this.options.onSkipped?.(path, 'a tar holds no sockets');
      return undefined;
    }
    if (inode.nlink > 1 && kind !== 'directory' && !isDeviceWhiteout(inode)) {
      const first = this.#firstPaths.get(inode.ino);
      if (first !== undefined) return this.#told(path, inode, 'hardLink', 0, first);
      this.#firstPaths.set(inode.ino, path);
    }
    return this.#told(path, inode, kind, kind === 'file' ? inode.size : 0, '', xattrs.size > 0 ? xattrs : undefined);
  }

  #told(
    path: string,
    inode: Ext4Inode,
    type: TarMember['type'],
    size: number,
    linkPath = '',
    xattrs?: Xattrs,
  ): TarMember {
    const { mtime, mtimeNs, atime, atimeNs, ctime, ctimeNs } = inode;
    const all = this.options.accessTimes ?? false;
    return {
      type,
      path,
      linkPath,
      mode: inode.mode,
      uid: inode.uid,
      gid: inode.gid,
      size,
      mtime,
      mtimeNs,
      atime: all && (atime !== mtime || atimeNs !== mtimeNs) ? atime : undefined,
      atimeNs,
      ctime: all && (ctime !== mtime || ctimeNs !== mtimeNs) ? ctime : undefined,
      ctimeNs,
      deviceMajor: inode.deviceMajor,
      deviceMinor: inode.deviceMinor,
      xattrs,
    };
  }

  /** An empty file that says something about other names. */
  #marker(path: string, inode: Ext4Inode): TarMember {
    const plain = { mode: WHITEOUT_MODE, uid: 0, gid: 0, deviceMajor: 0, deviceMinor: 0 };
    return { ...this.#told(path, inode, 'file', 0), ...plain, atime: undefined, ctime: undefined };
  }

  /** A file of any size. */
  async *#file(member: TarMember, inode: Ext4Inode): AsyncGenerator<Uint8Array, void, undefined> {
    const dataRanges = this.options.sparse ? await this.#dataRanges(inode) : undefined;
    const { blocks, contentBytes } = encodeHeader({ ...member, dataRanges });
    yield* this.#emit(blocks);
    const content = this.reader.content(inode);
    const ranges = dataRanges ?? [0, inode.size];
    for (let index = 0; index < ranges.length; index += 2) {
      content.skipTo(ranges[index]!);
      for (let left = ranges[index + 1]!; left > 0;) {
        if (this.#out.room === 0) yield this.#take();
        const piece = this.#out.claim(Math.min(this.#out.room, left));
        await content.readInto(piece);
        left -= piece.length;
      }
    }
    yield* this.#emit(Buffer.alloc(padded(contentBytes) - contentBytes));
  }

  /** Where a file has data; undefined when it has no holes worth telling. */
  async #dataRanges(inode: Ext4Inode): Promise<number[] | undefined> {
    const content = this.reader.content(inode);
    const ranges: number[] = [];
    for (let data = await content.nextData(); data; data = await content.nextData()) {
      const last = ranges.length - 2;
      if (last >= 0 && ranges[last]! + ranges[last + 1]! === data.start) ranges[last + 1]! += data.end - data.start;
      else ranges.push(data.start, data.end - data.start);
      content.skipTo(data.end);
      // Readers bound the map; a file in more pieces than that is told with its zeros.
      if (ranges.length > 20_000) return undefined;
    }
    const holes = inode.size - ranges.reduce((sum, value, index) => (index % 2 === 1 ? sum + value : sum), 0);
    if (holes < 4096) return undefined;
    // GNU tar ends the map of a file that ends in a hole with an empty range.
    if ((ranges.at(-2) ?? 0) + (ranges.at(-1) ?? 0) < inode.size) ranges.push(inode.size, 0);
    return ranges;
  }
}
