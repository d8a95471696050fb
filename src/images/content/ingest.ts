import { createHash, randomBytes, type Hash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { mkdir, open, rm, stat, type FileHandle } from 'node:fs/promises';
import { join } from 'node:path';
import { LcowError, isLcowError } from '../../errors/index.js';
import { abortable } from '../../lifetime/index.js';
import { asIoError, isAlive, ownIdentity, sweepTemporary, tryLock } from '../../state/index.js';
import { digestAlgorithm, digestHex, type Digest } from '../digest.js';
import { namesIn, type Blobs } from './blobs.js';
import { ABANDONED_LIFETIME_MS } from './leases.js';
import { withPatientLock } from './patient-lock.js';

const PARTIAL = /^(sha256|sha512)-([0-9a-f]+)\.partial$/;
const SPOOL = /^spool-(\d+)-(\d+)-[0-9a-f]{8}$/;

/** What a download is written to. Bytes are hashed as they arrive. */
export interface Ingest {
  /** Bytes already here, from this or an earlier download: the next byte wanted. */
  readonly offset: number;
  /**
   * Appends bytes. Awaiting it is the back-pressure.
   * @throws LcowError DIGEST_MISMATCH as soon as there are more bytes than the content has; DISK_FULL; IO_FAILED.
   */
  write(chunk: Uint8Array): Promise<void>;
  /** Forgets all bytes: the source cannot continue where it stopped. */
  restart(): Promise<void>;
}

export interface IngestOptions {
  /** Keep the bytes that arrived before the source failed, for the next attempt. */
  readonly resumable?: boolean;
  readonly signal?: AbortSignal | undefined;
}

/**
 * Content on its way into the store, in `ingest/`. A download whose digest is known keeps its file across failures, so
 * that it can be resumed; one whose digest is not known yet is spooled and has a name only this process uses.
 */
export class Ingests {
  readonly #folder: string;
  readonly #locks: string;
  readonly #blobs: Blobs;

  constructor(contentFolder: string, locksFolder: string, blobs: Blobs) {
    this.#folder = join(contentFolder, 'ingest');
    this.#locks = locksFolder;
    this.#blobs = blobs;
  }

  /**
   * Brings a blob of known digest and size into the store, once even when several processes ask. `fill` is not called
   * when the blob is already there.
   * @throws LcowError DIGEST_MISMATCH when what `fill` wrote is not the content; DISK_FULL; IO_FAILED; and what `fill`
   * throws.
   */
  async ingest(
    digest: Digest,
    size: number,
    fill: (ingest: Ingest) => Promise<void>,
    options: IngestOptions = {},
  ): Promise<void> {
    if (await this.#blobs.has(digest, size)) return;
    await withPatientLock(
      this.#locks,
      lockKey(digest),
      async () => {
        if (await this.#blobs.has(digest, size)) return;
        await mkdir(this.#folder, { recursive: true, mode: 0o700 });
        const path = join(this.#folder, `${digestAlgorithm(digest)}-${digestHex(digest)}.partial`);
        try {
          const partial = await PartialFile.open(path, digest, size);
          try {
            await fill(partial);
            await partial.verify();
          } finally {
            await partial.close();
          }
          await this.#blobs.adopt(path, digest);
        } catch (error) {
          const failure = asIoError(error, `The blob ${digest} cannot be written`);
          if (!options.resumable || !isResumable(failure) || (await isEmpty(path))) await rm(path, { force: true });
          throw failure;
        }
      },
      options.signal,
    );
  }

  /**
   * Writes content of unknown digest into the store.
   * @param expected Digest the content must have.
   * @param register Told the digest before the blob becomes visible.
   * @throws LcowError DIGEST_MISMATCH, DISK_FULL, IO_FAILED, CANCELLED, or what the source throws; nothing is left then.
   */
  async spool(
    source: AsyncIterable<Uint8Array>,
    register: (digest: Digest) => Promise<void>,
    expected?: Digest,
    signal?: AbortSignal,
  ): Promise<{ digest: Digest; size: number }> {
    await mkdir(this.#folder, { recursive: true, mode: 0o700 });
    const { pid, startTime } = ownIdentity();
    const path = join(this.#folder, `spool-${pid}-${startTime}-${randomBytes(4).toString('hex')}`);
    const algorithm = expected ? digestAlgorithm(expected) : 'sha256';
    const hash = createHash(algorithm);
    let size = 0;
    try {
      const file = await open(path, 'wx', 0o600);
      try {
        for await (const chunk of untilAborted(source, signal)) {
          hash.update(chunk);
          size += chunk.byteLength;
          await writeAll(file, chunk);
        }
        await file.sync();
      } finally {
        await file.close();
      }
      const digest: Digest = `${algorithm}:${hash.digest('hex')}`;
      if (expected && digest !== expected)
        throw new LcowError('DIGEST_MISMATCH', `Content named ${expected} has the digest ${digest}.`);
      await register(digest);
      await this.#blobs.adopt(path, digest);
      return { digest, size };
    } catch (error) {
      await rm(path, { force: true });
      throw asIoError(error, 'Content cannot be written to the store');
    }
  }

  /** Deletes what dead processes spooled and partial downloads that nobody resumed for a week. Returns the names. */
  async sweep(now: number = Date.now()): Promise<string[]> {
    const swept: string[] = [];
    for (const name of await namesIn(this.#folder)) {
      const path = join(this.#folder, name);
      const spool = SPOOL.exec(name);
      if (spool) {
        if (isAlive({ pid: Number(spool[1]), startTime: Number(spool[2]) })) continue;
        await rm(path, { force: true });
        swept.push(name);
      }
      const partial = PARTIAL.exec(name);
      if (partial && (await this.#sweepPartial(path, `${partial[1]}:${partial[2]}` as Digest, now))) swept.push(name);
    }
    if (swept.length === 0 && (await namesIn(this.#folder)).length === 0) return swept;
    return [...swept, ...(await sweepTemporary(this.#folder))];
  }

  async #sweepPartial(path: string, digest: Digest, now: number): Promise<boolean> {
    const age = now - ((await stat(path).catch(() => undefined))?.mtimeMs ?? now);
    if (age < ABANDONED_LIFETIME_MS) return false;
    const lock = await tryLock(this.#locks, lockKey(digest));
    if (!lock) return false;
    try {
      await rm(path, { force: true });
      return true;
    } finally {
      await lock.release();
    }
  }
}

/** Failures of the source and not of the bytes: another attempt can continue after them. */
export function isResumable(error: unknown): boolean {
  return isLcowError(error, 'CANCELLED', 'TIMED_OUT', 'REGISTRY_UNREACHABLE', 'REGISTRY_FAILED');
}

async function isEmpty(path: string): Promise<boolean> {
  return (await stat(path).catch(() => undefined))?.size === 0;
}

function lockKey(digest: Digest): string {
  return `blob ${digest}`;
}

/** Reads a source that may never send its next chunk: somebody's standard input. */
async function* untilAborted(
  source: AsyncIterable<Uint8Array>,
  signal: AbortSignal | undefined,
): AsyncGenerator<Uint8Array> {
  const chunks = source[Symbol.asyncIterator]();
  try {
    for (;;) {
      const next = await abortable(chunks.next(), signal);
      if (next.done) return;
      yield next.value;
    }
  } finally {
    // A generator ends only after the chunk it waits for, which is not waited for here.
    const ended = Promise.resolve(chunks.return?.());
    if (signal?.aborted) ended.catch(() => {});
    else await ended;
  }
}

async function writeAll(file: FileHandle, chunk: Uint8Array, position?: number): Promise<void> {
  let done = 0;
  while (done < chunk.byteLength) {
    const at = position === undefined ? null : position + done;
    done += (await file.write(chunk, done, chunk.byteLength - done, at)).bytesWritten;
  }
}

class PartialFile implements Ingest {
  readonly #file: FileHandle;
  readonly #digest: Digest;
  readonly #size: number;
  #hash: Hash;
  #offset: number;

  private constructor(file: FileHandle, digest: Digest, size: number, hash: Hash, offset: number) {
    this.#file = file;
    this.#digest = digest;
    this.#size = size;
    this.#hash = hash;
    this.#offset = offset;
  }

  static async open(path: string, digest: Digest, size: number): Promise<PartialFile> {
    const file = await open(path, 'a+', 0o600);
    try {
      const hash = createHash(digestAlgorithm(digest));
      let offset = (await file.stat()).size;
      if (offset > size) {
        await file.truncate(0);
        offset = 0;
      }
      if (offset > 0)
        for await (const chunk of createReadStream(path, { end: offset - 1, highWaterMark: 1024 * 1024 }))
          hash.update(chunk as Buffer);
      return new PartialFile(file, digest, size, hash, offset);
    } catch (error) {
      await file.close();
      throw error;
    }
  }

  get offset(): number {
    return this.#offset;
  }

  async write(chunk: Uint8Array): Promise<void> {
    if (this.#offset + chunk.byteLength > this.#size)
      throw new LcowError(
        'DIGEST_MISMATCH',
        `The blob ${this.#digest} has more than the ${this.#size} bytes it should have.`,
      );
    this.#hash.update(chunk);
    try {
      // The file is open for appending: bytes land at its end, which is the offset.
      await writeAll(this.#file, chunk);
    } catch (error) {
      throw asIoError(error, `The blob ${this.#digest} cannot be written`);
    }
    this.#offset += chunk.byteLength;
  }

  async restart(): Promise<void> {
    await this.#file.truncate(0);
    this.#hash = createHash(digestAlgorithm(this.#digest));
    this.#offset = 0;
  }

  async verify(): Promise<void> {
    if (this.#offset !== this.#size)
      throw new LcowError(
        'DIGEST_MISMATCH',
        `The blob ${this.#digest} has ${this.#offset} bytes instead of ${this.#size}.`,
      );
    const actual = this.#hash.digest('hex');
    if (actual !== digestHex(this.#digest))
      throw new LcowError(
        'DIGEST_MISMATCH',
        `The content served as ${this.#digest} has the digest ${digestAlgorithm(this.#digest)}:${actual}.`,
      );
    await this.#file.sync();
  }

  async close(): Promise<void> {
    await this.#file.close();
  }
}
