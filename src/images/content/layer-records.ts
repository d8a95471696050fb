import { mkdir, readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { asIoError, writeFileAtomic } from '../../state/index.js';
import { isDigest, type Digest } from '../digest.js';
import { namesIn } from './blobs.js';

const digest = z.custom<Digest>(isDigest);
const recordSchema = z.object({
  chainId: digest,
  diffId: digest,
  /** Bytes of the uncompressed tar: what docker calls the size of a layer. */
  tarBytes: z.number().int().nonnegative(),
  /** Bytes of the layer's disk. */
  diskBytes: z.number().int().nonnegative(),
});

/** A layer that was unpacked whole and verified. */
export type LayerRecord = z.infer<typeof recordSchema>;

/**
 * Which graphdriver layers are whole: `layers/<hex>.json`, written after the last byte of a layer is verified and on
 * disk. A graphdriver layer without its record is one whose making was cut off.
 */
export class LayerRecords {
  readonly #folder: string;

  constructor(contentFolder: string) {
    this.#folder = join(contentFolder, 'layers');
  }

  #path(chainId: Digest): string {
    return join(this.#folder, `${chainId.replace(':', '-')}.json`);
  }

  /** The record of a layer; undefined when it is not whole. */
  async get(chainId: Digest): Promise<LayerRecord | undefined> {
    try {
      const record = recordSchema.safeParse(JSON.parse(await readFile(this.#path(chainId), 'utf8')));
      return record.success && record.data.chainId === chainId ? record.data : undefined;
    } catch (error) {
      if (error instanceof SyntaxError || (error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
      throw asIoError(error, `The record of layer ${chainId} cannot be read`);
    }
  }

  /** Declares a layer whole. */
  async put(record: LayerRecord): Promise<void> {
    await mkdir(this.#folder, { recursive: true, mode: 0o700 });
    await writeFileAtomic(this.#path(record.chainId), JSON.stringify(record));
  }

  /** Takes the declaration back; before a layer is removed, so that a cut-off removal is not taken for a whole layer. */
  async remove(chainId: Digest): Promise<void> {
    await rm(this.#path(chainId), { force: true });
  }

  /** All whole layers. */
  async list(): Promise<LayerRecord[]> {
    const records: LayerRecord[] = [];
    for (const name of await namesIn(this.#folder)) {
      const match = /^(sha256|sha512)-([0-9a-f]+)\.json$/.exec(name);
      const chainId = match ? `${match[1]}:${match[2]}` : undefined;
      const record = isDigest(chainId) ? await this.get(chainId) : undefined;
      if (record) records.push(record);
    }
    return records;
  }
}
