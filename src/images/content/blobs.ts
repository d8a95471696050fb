import { createReadStream, type ReadStream } from 'node:fs';
import { mkdir, readFile, readdir, rename, rm, stat } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { LcowError } from '../../errors/index.js';
import { asIoError, syncFolder } from '../../state/index.js';
import { digestAlgorithm, digestHex, digestOf, isDigest, type Digest } from '../digest.js';

/** Read-ahead of a blob, in bytes: large enough that decompression, not system calls, sets the pace. */
const READ_CHUNK_BYTES = 1024 * 1024;

/** The blobs of an OCI image layout: `blobs/<algorithm>/<hex>`. Every file there has been verified. */
export class Blobs {
  readonly #folder: string;

  constructor(contentFolder: string) {
    this.#folder = join(contentFolder, 'blobs');
  }

  /** Where a blob is, or would be. */
  path(digest: Digest): string {
    return join(this.#folder, digestAlgorithm(digest), digestHex(digest));
  }

  /** The size of a blob in bytes; undefined when it is not here. */
  async size(digest: Digest): Promise<number | undefined> {
    try {
      return (await stat(this.path(digest))).size;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
      throw asIoError(error, `The blob ${digest} cannot be examined`);
    }
  }

  /** Whether a blob of this size is here. */
  async has(digest: Digest, size: number): Promise<boolean> {
    return (await this.size(digest)) === size;
  }

  /**
   * Reads a small blob and verifies it again.
   * @throws LcowError NOT_FOUND; BAD_MANIFEST when it is larger than `maxBytes`; DIGEST_MISMATCH when the disk changed it.
   */
  async read(digest: Digest, maxBytes: number): Promise<Buffer> {
    const size = await this.size(digest);
    if (size === undefined) throw new LcowError('NOT_FOUND', `The blob ${digest} is not in the content store.`);
    if (size > maxBytes)
      throw new LcowError(
        'BAD_MANIFEST',
        `The document ${digest} has ${size} bytes, more than the ${maxBytes} allowed.`,
      );
    const bytes = await readFile(this.path(digest));
    if (digestOf(bytes, digestAlgorithm(digest)) !== digest)
      throw new LcowError('DIGEST_MISMATCH', `The blob ${this.path(digest)} was damaged on disk.`, {
        hint: 'Delete that file and pull or import the image again.',
      });
    return bytes;
  }

  /** Opens a blob for reading. Errors arrive on the stream. */
  open(digest: Digest): ReadStream {
    return createReadStream(this.path(digest), { highWaterMark: READ_CHUNK_BYTES });
  }

  /** Makes a verified file a blob, durably. The file has to be on the same file system, and synced. */
  async adopt(file: string, digest: Digest): Promise<void> {
    const path = this.path(digest);
    await mkdir(dirname(path), { recursive: true, mode: 0o700 });
    await rename(file, path);
    await syncFolder(dirname(path));
  }

  /** Deletes a blob. Returns its size; undefined when it was not here. */
  async remove(digest: Digest): Promise<number | undefined> {
    const size = await this.size(digest);
    await rm(this.path(digest), { force: true });
    return size;
  }

  /** The digests of all blobs. */
  async list(): Promise<Digest[]> {
    const digests: Digest[] = [];
    for (const algorithm of ['sha256', 'sha512']) {
      for (const name of await namesIn(join(this.#folder, algorithm))) {
        const digest = `${algorithm}:${name}`;
        if (isDigest(digest)) digests.push(digest);
      }
    }
    return digests;
  }
}

/** The names in a folder; none when there is no such folder. */
export async function namesIn(folder: string): Promise<string[]> {
  try {
    return await readdir(folder);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return [];
    throw error;
  }
}
