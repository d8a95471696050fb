import { createHash, type Hash } from 'node:crypto';
import { LcowError, isLcowError } from '../errors/index.js';
import { throwIfAborted } from '../lifetime/index.js';
import type { ContentStore } from './content/content-store.js';
import { withPatientLock } from './content/patient-lock.js';
import { decompress } from './decompress.js';
import { digestAlgorithm, digestHex, type Digest } from './digest.js';
import { layerId } from './image-config.js';
import type { LayerProgress } from './progress.js';

/** What unpacking needs of a graphdriver. Ids are chain ids in hexadecimal; base layers have no parent. */
export interface LayerStore {
  /** Makes a read-only layer without content on top of its parent, which has to exist (NOT_FOUND). */
  create(id: string, parent: string | undefined): Promise<void>;
  /**
   * Fills the layer from a tar, wholly or not at all. Returns the size of its disk in bytes.
   * @throws LcowError ALREADY_EXISTS, before the tar is read, when the layer is filled.
   */
  applyDiff(id: string, parent: string | undefined, diff: AsyncIterable<Uint8Array>): Promise<number>;
  /** Fills the layer with what another layer holds, without a copy. Returns the size of its disk in bytes. */
  linkDiff(id: string, parent: string | undefined, sourceId: string): Promise<number>;
  /** Whether the layer exists, filled or not. */
  exists(id: string): Promise<boolean>;
  /** Removes the layer; one that does not exist is fine. */
  remove(id: string): Promise<void>;
  /** What `docker inspect` shows of the layer. */
  getMetadata(id: string): Promise<Record<string, string>>;
}

/** A layer of an image, about to be unpacked. */
export interface LayerPlan {
  readonly blob: Digest;
  readonly blobSize: number;
  readonly diffId: Digest;
  readonly chainId: Digest;
  /** Chain id of the layer below. */
  readonly parent: Digest | undefined;
}

/** How often a parent that vanishes is made again. */
const CREATE_ATTEMPTS = 3;

/** Turns layer blobs into graphdriver layers, each once whatever the number of processes that ask. */
export class Unpacker {
  readonly #content: ContentStore;
  readonly #driver: LayerStore;

  constructor(content: ContentStore, driver: LayerStore) {
    this.#content = content;
    this.#driver = driver;
  }

  /** Whether the layer is whole. */
  async isUnpacked(chainId: Digest): Promise<boolean> {
    return (await this.#content.layers.get(chainId)) !== undefined && this.#driver.exists(layerId(chainId));
  }

  /**
   * Makes a place for every layer, so that the conversion of one does not wait for that of its parent.
   * @param layers Base first.
   */
  async prepare(layers: readonly LayerPlan[], signal?: AbortSignal): Promise<void> {
    for (const [index, layer] of layers.entries()) {
      if (await this.#driver.exists(layerId(layer.chainId))) continue;
      await this.#locked(layer.chainId, signal, () => this.#create(layer, layers.slice(0, index), signal));
    }
  }

  /**
   * Makes the layer, or links it to another with the same content, or finds it made. The layers below need not be filled
   * yet.
   * @param below The layers below, base first; they are created empty when they are not there.
   * @throws LcowError DIGEST_MISMATCH when the blob does not unpack to the diff id; BAD_TAR; and what the driver throws.
   * The layer is removed then.
   */
  async unpack(
    plan: LayerPlan,
    below: readonly LayerPlan[],
    progress: LayerProgress,
    signal?: AbortSignal,
  ): Promise<void> {
    await this.#locked(plan.chainId, signal, async () => {
      if (await this.isUnpacked(plan.chainId)) {
        progress.report('exists');
        return;
      }
      try {
        await this.#create(plan, below, signal);
        const made = await this.#fill(plan, below, progress, signal);
        await this.#content.layers.put({ chainId: plan.chainId, diffId: plan.diffId, ...made });
      } catch (error) {
        await this.#driver.remove(layerId(plan.chainId));
        throwIfAborted(signal);
        throw error;
      }
      progress.report('done');
    });
  }

  /**
   * Removes layers that are not whole: created for a pull that failed.
   * @param layers Base first.
   */
  async removeUnfinished(layers: readonly Digest[]): Promise<void> {
    for (const chainId of layers.toReversed()) {
      const id = layerId(chainId);
      if (!(await this.#driver.exists(id)) || (await this.#content.layers.get(chainId))) continue;
      await this.#locked(chainId, undefined, async () => {
        if (!(await this.#content.layers.get(chainId))) await this.#driver.remove(id);
      });
    }
  }

  /** Removes a whole layer. */
  async remove(chainId: Digest): Promise<boolean> {
    return this.#locked(chainId, undefined, async () => {
      await this.#content.layers.remove(chainId);
      const exists = await this.#driver.exists(layerId(chainId));
      if (exists) await this.#driver.remove(layerId(chainId));
      return exists;
    });
  }

  async #locked<T>(chainId: Digest, signal: AbortSignal | undefined, work: () => Promise<T>): Promise<T> {
    return withPatientLock(this.#content.locks, `layer ${chainId}`, work, signal);
  }

  /** Makes the layer's place, and those of the layers below that have none. To be called under the layer's lock. */
  async #create(plan: LayerPlan, below: readonly LayerPlan[], signal: AbortSignal | undefined): Promise<void> {
    for (let attempt = 1; !(await this.#driver.exists(layerId(plan.chainId))); attempt++) {
      const parent = below.at(-1);
      // Locks are taken downwards only, so that no two unpackings wait for each other.
      if (parent && !(await this.#driver.exists(layerId(parent.chainId))))
        await this.#locked(parent.chainId, signal, () => this.#create(parent, below.slice(0, -1), signal));
      try {
        await this.#driver.create(layerId(plan.chainId), plan.parent && layerId(plan.parent));
      } catch (error) {
        // Another process whose pull failed took the parent away in between.
        if (!isLcowError(error, 'NOT_FOUND') || attempt === CREATE_ATTEMPTS) throw error;
      }
    }
  }

  async #fill(
    plan: LayerPlan,
    below: readonly LayerPlan[],
    progress: LayerProgress,
    signal: AbortSignal | undefined,
  ): Promise<LayerSizes> {
    const fill = async (): Promise<LayerSizes> => (await this.#link(plan)) ?? this.#apply(plan, progress, signal);
    try {
      return await fill();
    } catch (error) {
      if (!isLcowError(error, 'ALREADY_EXISTS')) throw error;
      // A process died between filling the layer and recording it as whole: what it left is not verified.
      await this.#driver.remove(layerId(plan.chainId));
      await this.#create(plan, below, signal);
      return fill();
    }
  }

  /** Another layer with the same diff has the same disk: layers do not depend on what is below them. */
  async #link(plan: LayerPlan): Promise<LayerSizes | undefined> {
    for (const record of await this.#content.layers.list()) {
      if (record.diffId !== plan.diffId || record.chainId === plan.chainId) continue;
      try {
        const parent = plan.parent && layerId(plan.parent);
        const diskBytes = await this.#driver.linkDiff(layerId(plan.chainId), parent, layerId(record.chainId));
        return { tarBytes: record.tarBytes, diskBytes };
      } catch (error) {
        // It was removed meanwhile, or cannot be linked: make our own.
        if (!isLcowError(error, 'NOT_FOUND', 'IO_FAILED')) throw error;
      }
    }
    return undefined;
  }

  async #apply(plan: LayerPlan, progress: LayerProgress, signal: AbortSignal | undefined): Promise<LayerSizes> {
    const what = `layer ${plan.blob}`;
    const packed = counted(this.#content.blobs.open(plan.blob), signal, (bytes) =>
      progress.report('extracting', bytes),
    );
    const diff = new VerifiedStream(decompress(packed, what), plan.diffId, what);
    try {
      const parent = plan.parent && layerId(plan.parent);
      const diskBytes = await this.#driver.applyDiff(layerId(plan.chainId), parent, diff);
      await diff.finish();
      return { tarBytes: diff.size, diskBytes };
    } finally {
      await diff.close();
    }
  }
}

interface LayerSizes {
  readonly tarBytes: number;
  readonly diskBytes: number;
}

async function* counted(
  source: AsyncIterable<unknown>,
  signal: AbortSignal | undefined,
  onBytes: (bytes: number) => void,
): AsyncGenerator<Uint8Array> {
  let bytes = 0;
  for await (const chunk of source as AsyncIterable<Uint8Array>) {
    throwIfAborted(signal);
    onBytes(bytes);
    bytes += chunk.byteLength;
    yield chunk;
  }
}

/**
 * Passes a stream through and fails at its end, before the reader learns that it has ended, when its digest is wrong.
 * A tar reader may stop at the archive's end marker; {@link finish} then reads on to the end of the stream.
 */
class VerifiedStream implements AsyncIterable<Uint8Array> {
  readonly #source: AsyncGenerator<Uint8Array>;
  readonly #hash: Hash;
  readonly #expected: Digest;
  readonly #what: string;
  #ended = false;
  size = 0;

  constructor(source: AsyncGenerator<Uint8Array>, expected: Digest, what: string) {
    this.#source = source;
    this.#expected = expected;
    this.#what = what;
    this.#hash = createHash(digestAlgorithm(expected));
  }

  [Symbol.asyncIterator](): AsyncIterator<Uint8Array> {
    // No return(): a reader that stops early does not end the stream, finish() does.
    return { next: () => this.#next() };
  }

  async #next(): Promise<IteratorResult<Uint8Array>> {
    if (this.#ended) return { done: true, value: undefined };
    const next = await this.#source.next();
    if (next.done) {
      this.#ended = true;
      const actual = this.#hash.digest('hex');
      if (actual !== digestHex(this.#expected))
        throw new LcowError(
          'DIGEST_MISMATCH',
          `The ${this.#what} unpacks to ${digestAlgorithm(this.#expected)}:${actual}, but the image says ${this.#expected}.`,
        );
      return { done: true, value: undefined };
    }
    this.#hash.update(next.value);
    this.size += next.value.byteLength;
    return next;
  }

  /** @throws LcowError DIGEST_MISMATCH, BAD_TAR. */
  async finish(): Promise<void> {
    while (!(await this.#next()).done);
  }

  async close(): Promise<void> {
    this.#ended = true;
    await this.#source.return(undefined);
  }
}
