import { createReadStream } from 'node:fs';
import { readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { LcowError } from '../../errors/index.js';
import { throwIfAborted } from '../../lifetime/index.js';
import { asIoError } from '../../state/index.js';
import type { ContentSource } from '../acquire.js';
import type { ContentStore } from '../content/content-store.js';
import { digestAlgorithm, digestHex, digestOf, type Digest } from '../digest.js';
import { MAX_MANIFEST_BYTES } from '../manifest.js';

/** An OCI image layout folder as a source. Only digests become paths. */
export class LayoutSource implements ContentSource {
  readonly #folder: string;
  readonly #content: ContentStore;

  constructor(folder: string, content: ContentStore) {
    this.#folder = folder;
    this.#content = content;
  }

  async manifest(digest: Digest): Promise<{ bytes: Buffer; mediaType: undefined }> {
    const path = this.#path(digest);
    const bytes = await this.#reading(path, async () => {
      const { size } = await stat(path);
      if (size > MAX_MANIFEST_BYTES)
        throw new LcowError('BAD_MANIFEST', `The manifest ${path} is larger than ${MAX_MANIFEST_BYTES} bytes.`);
      return readFile(path);
    });
    if (digestOf(bytes, digestAlgorithm(digest)) !== digest)
      throw new LcowError('DIGEST_MISMATCH', `The file ${path} does not have the digest of its name.`);
    return { bytes, mediaType: undefined };
  }

  async blob(
    blob: { digest: Digest; size: number },
    onBytes: (bytes: number) => void,
    signal?: AbortSignal,
  ): Promise<void> {
    const path = this.#path(blob.digest);
    await this.#content.ingests.ingest(
      blob.digest,
      blob.size,
      async (ingest) => {
        // What a cut-off download of the same blob left is no use: the whole file is here.
        await ingest.restart();
        const source = createReadStream(path, { highWaterMark: 1024 * 1024 });
        await this.#reading(path, async () => {
          for await (const chunk of source as AsyncIterable<Buffer>) {
            throwIfAborted(signal);
            await ingest.write(chunk);
            onBytes(ingest.offset);
          }
        });
      },
      { signal },
    );
  }

  #path(digest: Digest): string {
    return join(this.#folder, 'blobs', digestAlgorithm(digest), digestHex(digest));
  }

  async #reading<T>(path: string, read: () => Promise<T>): Promise<T> {
    try {
      return await read();
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT')
        throw new LcowError('BAD_MANIFEST', `The image layout ${this.#folder} lacks the blob ${path}.`, {
          cause: error,
        });
      throw asIoError(error, `${path} cannot be read`);
    }
  }
}

/** What was spooled into the store already as a source: nothing is fetched, what is missing is missing. */
export class SpooledSource implements ContentSource {
  readonly #content: ContentStore;
  readonly #what: string;

  constructor(content: ContentStore, what: string) {
    this.#content = content;
    this.#what = what;
  }

  async manifest(digest: Digest): Promise<{ bytes: Buffer; mediaType: undefined }> {
    if ((await this.#content.blobs.size(digest)) === undefined) throw this.#lacks(digest);
    return { bytes: await this.#content.blobs.read(digest, MAX_MANIFEST_BYTES), mediaType: undefined };
  }

  async blob(blob: { digest: Digest; size: number }): Promise<void> {
    const size = await this.#content.blobs.size(blob.digest);
    if (size === undefined) throw this.#lacks(blob.digest);
    if (size !== blob.size)
      throw new LcowError(
        'DIGEST_MISMATCH',
        `The blob ${blob.digest} of ${this.#what} has ${size} bytes instead of ${blob.size}.`,
      );
  }

  #lacks(digest: Digest): LcowError {
    return new LcowError('BAD_MANIFEST', `${this.#what} names the blob ${digest} but does not hold it.`);
  }
}
