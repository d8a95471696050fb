import { createWriteStream } from 'node:fs';
import { link, mkdir, readFile, readdir, rename, rm, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { LcowError } from '../../src/errors/index.js';
import type { LayerStore } from '../../src/images/index.js';

/** A stand-in for the graphdriver that keeps each layer's tar as it came: `<id>/{parent,diff.tar}`. Usable by several processes. */
export class LayerFolder implements LayerStore {
  readonly folder: string;
  /** Ids whose tar was written by this object, in order. */
  readonly applied: string[] = [];
  readonly linked: string[] = [];
  /** Most applyDiff calls at once. */
  busiest = 0;
  #busy = 0;

  constructor(folder: string) {
    this.folder = folder;
  }

  async create(id: string, parent: string | undefined): Promise<void> {
    if (parent && !(await this.exists(parent))) throw new LcowError('NOT_FOUND', `There is no parent layer ${parent}.`);
    if (await this.exists(id)) throw new LcowError('ALREADY_EXISTS', `There is a layer ${id} already.`);
    const making = join(this.folder, `.${id}.${process.pid}`);
    await mkdir(making, { recursive: true });
    await writeFile(join(making, 'parent'), parent ?? '');
    await rename(making, join(this.folder, id));
  }

  async applyDiff(id: string, parent: string | undefined, diff: AsyncIterable<Uint8Array>): Promise<number> {
    await this.#checkEmpty(id, parent);
    this.#busy++;
    this.busiest = Math.max(this.busiest, this.#busy);
    const target = join(this.folder, id, 'diff.tar');
    try {
      await pipeline(Readable.from(diff), createWriteStream(`${target}.partial`));
      await rename(`${target}.partial`, target);
    } catch (error) {
      await rm(`${target}.partial`, { force: true });
      throw error;
    } finally {
      this.#busy--;
    }
    this.applied.push(id);
    return (await stat(target)).size;
  }

  async linkDiff(id: string, parent: string | undefined, sourceId: string): Promise<number> {
    const source = join(this.folder, sourceId, 'diff.tar');
    if (!(await present(source))) throw new LcowError('NOT_FOUND', `Layer ${sourceId} has no disk.`);
    await this.#checkEmpty(id, parent);
    await link(source, join(this.folder, id, 'diff.tar'));
    this.linked.push(id);
    return (await stat(source)).size;
  }

  async exists(id: string): Promise<boolean> {
    return present(join(this.folder, id));
  }

  async remove(id: string): Promise<void> {
    await rm(join(this.folder, id), { recursive: true, force: true });
  }

  async getMetadata(id: string): Promise<Record<string, string>> {
    return { dir: join(this.folder, id) };
  }

  /** The tar of a layer. */
  async tar(id: string): Promise<Buffer> {
    return readFile(join(this.folder, id, 'diff.tar'));
  }

  async list(): Promise<string[]> {
    return (await present(this.folder)) ? (await readdir(this.folder)).sort() : [];
  }

  async #checkEmpty(id: string, parent: string | undefined): Promise<void> {
    if (await present(join(this.folder, id, 'diff.tar')))
      throw new LcowError('ALREADY_EXISTS', `Layer ${id} has its disk already.`);
    if (!(await this.exists(id))) await this.create(id, parent);
  }
}

async function present(path: string): Promise<boolean> {
  return stat(path).then(
    () => true,
    () => false,
  );
}
