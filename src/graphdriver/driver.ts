import { link, lstat, mkdir, readdir, rename, rm } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { copySparse, tarToVhd } from '../disk/index.js';
import { LcowError } from '../errors/index.js';
import { createScratch, DefaultScratchSizeGB } from '../lcow/index.js';
import { asIoError, createFolderAtomic, sweepTemporary, syncFolder, withLock } from '../state/index.js';
import { readLayerChain, writeLayerChain } from './layer-chain.js';
import { isTombstoneName, tombstoneName, validateLayerId } from './layer-id.js';
import { parseDriverOptions, parseStorageOpt } from './options.js';

/** The disk of a read-only layer: ext4 in a fixed VHD. */
export const LAYER_VHD = 'layer.vhd';
/** The disk of a writable layer: ext4 in a dynamic VHDX. */
export const SANDBOX_VHDX = 'sandbox.vhdx';

/** The largest read-only layer, 128 GiB of file system (moby since October 2018). */
const MAXIMUM_LAYER_BYTES = 128 * 2 ** 30;

/** Options of one new layer (seed: graphdriver.CreateOpts). */
export interface CreateOpts {
  /** Per-layer storage options; `lcow.sandboxsize` in GB for a writable layer. */
  storageOpt?: Readonly<Record<string, string>>;
  signal?: AbortSignal;
}

/** Options of {@link Driver.applyDiff}. */
export interface ApplyDiffOptions {
  signal?: AbortSignal;
  /** Called with the number of tar bytes read so far. */
  onProgress?: (bytesIn: number) => void;
}

/**
 * Opens the layer store below a data root.
 *
 * The seed keeps layer folders beside "cache" in the data root itself; here they have a folder of their own, so that
 * no layer id can clash with it: `layers/<id>/`, `cache/sandbox.vhdx`, `locks/`. Several processes may open one root.
 * What processes that died left half-made or half-removed is deleted.
 *
 * @param dataRoot Folder of all durable data ($LCOW_ROOT).
 * @param options "key=value" items; the driver reads `lcow.sandboxsize`.
 * @throws LcowError INVALID_ARGUMENT, IO_FAILED.
 */
export async function initDriver(dataRoot: string, options: readonly string[] = []): Promise<Driver> {
  const { sandboxSizeGB } = parseDriverOptions(options);
  const root = resolve(dataRoot);
  const folders = { layers: join(root, 'layers'), cache: join(root, 'cache'), locks: join(root, 'locks') };
  try {
    for (const folder of Object.values(folders)) await mkdir(folder, { recursive: true, mode: 0o700 });
  } catch (error) {
    throw asIoError(error, `The layer store ${root} cannot be opened`);
  }
  const driver = new Driver(folders, sandboxSizeGB);
  await driver.cleanup();
  return driver;
}

interface DriverFolders {
  readonly layers: string;
  readonly cache: string;
  readonly locks: string;
}

/**
 * The layers on disk (seed: moby's lcow graph driver). A layer is a folder with `layerchain.json` and one disk,
 * `layer.vhd` or `sandbox.vhdx`. Folders appear whole and disappear by a rename, so that a process killed at any time
 * leaves no layer that only looks complete.
 */
export class Driver {
  readonly #folders: DriverFolders;
  readonly #sandboxSizeGB: number;

  /** @internal Use {@link initDriver}. */
  constructor(folders: DriverFolders, sandboxSizeGB: number) {
    this.#folders = folders;
    this.#sandboxSizeGB = sandboxSizeGB;
  }

  /** The name the driver is registered under. */
  toString(): string {
    return 'lcow';
  }

  /** What `docker info` shows of the driver. */
  status(): [string, string][] {
    return [['LCOW', '']];
  }

  /**
   * Makes the folder of a read-only layer, without a disk, above `parent` (empty or undefined: a base layer).
   * @throws LcowError INVALID_ARGUMENT; NOT_FOUND when there is no such parent; ALREADY_EXISTS; IO_FAILED, DISK_FULL.
   */
  async create(id: string, parent?: string, opts: CreateOpts = {}): Promise<void> {
    parseStorageOpt(opts.storageOpt ?? {});
    await this.#build(id, parent, async () => {});
  }

  /**
   * Makes a writable layer above `parent`: a blank scratch disk, copied from `cache/sandbox.vhdx` when it has the default
   * size. The cache is made once, whole or not at all, whoever asks first.
   * @throws LcowError as {@link create}.
   */
  async createReadWrite(id: string, parent?: string, opts: CreateOpts = {}): Promise<void> {
    const sizeGB = parseStorageOpt(opts.storageOpt ?? {}).sandboxSizeGB ?? this.#sandboxSizeGB;
    const scratchOptions = opts.signal ? { signal: opts.signal } : {};
    await this.#build(id, parent, async (folder) => {
      const disk = join(folder, SANDBOX_VHDX);
      const cache = join(this.#folders.cache, SANDBOX_VHDX);
      const make = (): Promise<void> => createScratch(undefined, disk, sizeGB, cache, scratchOptions);
      if (sizeGB === DefaultScratchSizeGB && !(await present(cache)))
        await withLock(this.#folders.locks, cache, make, opts.signal);
      else await make();
    });
  }

  /**
   * Writes the layer's disk from a tar stream, whiteouts converted to overlay form. The layer is made if it does not
   * exist; then it appears with its disk or not at all.
   * @param diff The tar stream, uncompressed; read to its end once.
   * @returns The size of layer.vhd in bytes.
   * @throws LcowError ALREADY_EXISTS when the layer has a disk; BAD_TAR; as {@link create}.
   */
  async applyDiff(
    id: string,
    parent: string | undefined,
    diff: AsyncIterable<Uint8Array>,
    opts: ApplyDiffOptions = {},
  ): Promise<number> {
    return this.#addDisk(id, parent, async (disk) => {
      const { sizeBytes } = await tarToVhd(diff, disk, { maximumDiskSizeBytes: MAXIMUM_LAYER_BYTES, ...opts });
      return sizeBytes;
    });
  }

  /**
   * Gives the layer the disk of another one with the same content, by a hard link: chains differ, contents are shared.
   * @returns The size of layer.vhd in bytes.
   * @throws LcowError NOT_FOUND when the source has no layer.vhd; otherwise as {@link applyDiff}.
   */
  async linkDiff(id: string, parent: string | undefined, sourceId: string): Promise<number> {
    const source = join(this.#folder(sourceId), LAYER_VHD);
    if (!(await present(source)))
      throw new LcowError(
        'NOT_FOUND',
        `Layer ${id} cannot share the disk of ${sourceId}: that one has no ${LAYER_VHD}.`,
      );
    return this.#addDisk(id, parent, async (disk) => {
      try {
        await link(source, disk);
      } catch (error) {
        const code = (error as NodeJS.ErrnoException).code;
        // File systems without hard links, or with a limit that is reached.
        if (code !== 'EMLINK' && code !== 'EPERM' && code !== 'ENOTSUP' && code !== 'EXDEV') throw error;
        await copySparse(source, disk);
      }
      return (await lstat(disk)).size;
    });
  }

  /** Whether the layer exists. One that was made by {@link create} alone may have no disk. */
  async exists(id: string): Promise<boolean> {
    validateLayerId(id);
    return present(this.#folder(id));
  }

  /**
   * The folder of the layer (the seed's name and meaning: not the file in it).
   * @throws LcowError INVALID_ARGUMENT, NOT_FOUND.
   */
  async getLayerPath(id: string): Promise<string> {
    const folder = this.#folder(id);
    if (!(await present(folder))) throw new LcowError('NOT_FOUND', `There is no layer ${id}.`);
    return folder;
  }

  /** What `docker inspect` shows of the layer: its folder as `dir`. */
  async getMetadata(id: string): Promise<Record<string, string>> {
    return { dir: await this.getLayerPath(id) };
  }

  /**
   * The parents of a layer: absolute folders, nearest first, base last, without the layer itself. With a writable
   * layer's own folder at the end this is the order that mountContainerLayers takes.
   * @throws LcowError INVALID_ARGUMENT, NOT_FOUND; IO_FAILED when the layer chain is damaged.
   */
  async layerChain(id: string): Promise<string[]> {
    return readLayerChain(await this.getLayerPath(id));
  }

  /**
   * Removes the layer; one that does not exist is fine. Whether another layer stands on it is for the caller to know.
   * @throws LcowError INVALID_ARGUMENT, IO_FAILED.
   */
  async remove(id: string): Promise<void> {
    const folder = this.#folder(id);
    const tombstone = join(this.#folders.layers, tombstoneName(id));
    try {
      // What a killed removal of a layer with the same id left is in the way.
      await rm(tombstone, { recursive: true, force: true });
      await rename(folder, tombstone);
      await syncFolder(this.#folders.layers);
      await rm(tombstone, { recursive: true, force: true });
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return;
      throw asIoError(error, `Layer ${id} cannot be removed`);
    }
  }

  /** Finishes removals and deletes temporaries of processes that died. Safe beside other users of the store. */
  async cleanup(): Promise<void> {
    try {
      for (const folder of [this.#folders.layers, this.#folders.cache]) await sweepTemporary(folder);
      for (const name of await readdir(this.#folders.layers))
        if (isTombstoneName(name)) await rm(join(this.#folders.layers, name), { recursive: true, force: true });
    } catch (error) {
      throw asIoError(error, `The layer store ${this.#folders.layers} cannot be cleaned up`);
    }
  }

  #folder(id: string): string {
    validateLayerId(id);
    return join(this.#folders.layers, id);
  }

  /** Makes a layer folder with its chain and whatever `fill` puts in. */
  async #build<T>(id: string, parent: string | undefined, fill: (folder: string) => Promise<T>): Promise<T> {
    const folder = this.#folder(id);
    const chain = parent ? await this.#chainAbove(parent) : [];
    if (await present(folder)) throw alreadyExists(id);
    try {
      return await createFolderAtomic(folder, async (temporary) => {
        await writeLayerChain(temporary, chain);
        return fill(temporary);
      });
    } catch (error) {
      // Another process was faster: said in the words of layers.
      if (error instanceof LcowError && error.code === 'ALREADY_EXISTS') throw alreadyExists(id, error);
      throw error;
    }
  }

  async #addDisk(id: string, parent: string | undefined, write: (disk: string) => Promise<number>): Promise<number> {
    const folder = this.#folder(id);
    if (!(await present(folder))) return this.#build(id, parent, (temporary) => write(join(temporary, LAYER_VHD)));
    const disk = join(folder, LAYER_VHD);
    for (const name of [LAYER_VHD, SANDBOX_VHDX])
      if (await present(join(folder, name)))
        throw new LcowError('ALREADY_EXISTS', `Layer ${id} has its ${name} already.`);
    await sweepTemporary(folder);
    return write(disk);
  }

  async #chainAbove(parent: string): Promise<string[]> {
    const folder = this.#folder(parent);
    if (!(await present(folder))) throw new LcowError('NOT_FOUND', `There is no parent layer ${parent}.`);
    return [folder, ...(await readLayerChain(folder))];
  }
}

function alreadyExists(id: string, cause?: unknown): LcowError {
  return new LcowError('ALREADY_EXISTS', `There is a layer ${id} already.`, { cause });
}

async function present(path: string): Promise<boolean> {
  try {
    await lstat(path);
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return false;
    throw asIoError(error, `${path} cannot be looked at`);
  }
}
