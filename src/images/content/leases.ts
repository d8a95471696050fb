import { randomBytes } from 'node:crypto';
import { mkdir, readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { isAlive, ownIdentity, withLock, writeFileAtomic } from '../../state/index.js';
import type { Digest } from '../digest.js';
import { namesIn } from './blobs.js';
import { IMAGES_LOCK } from './layout-index.js';

const leaseSchema = z.object({
  pid: z.number(),
  startTime: z.number(),
  digests: z.array(z.string()),
});

/**
 * What a running pull or import needs, although no image names it yet: blobs by digest, layers by chain id. Collection
 * of garbage spares it. A lease of a dead process counts no more.
 */
export class Lease implements AsyncDisposable {
  readonly #path: string;
  readonly #locks: string;
  readonly #digests = new Set<Digest>();

  constructor(path: string, locks: string) {
    this.#path = path;
    this.#locks = locks;
  }

  /** Everything claimed so far. */
  get digests(): ReadonlySet<Digest> {
    return this.#digests;
  }

  /**
   * Claims content. Claim first, then look whether it is there: what is claimed and there stays there, because claims
   * and deletions exclude each other.
   */
  async claim(digests: readonly Digest[]): Promise<void> {
    const fresh = digests.filter((digest) => !this.#digests.has(digest));
    if (fresh.length === 0) return;
    for (const digest of fresh) this.#digests.add(digest);
    await withLock(this.#locks, IMAGES_LOCK, () =>
      writeFileAtomic(this.#path, JSON.stringify({ ...ownIdentity(), digests: [...this.#digests] })),
    );
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await rm(this.#path, { force: true });
  }
}

/** The leases of all processes on this store: `leases/<random>.json`. */
export class Leases {
  readonly #folder: string;
  readonly #locks: string;

  constructor(contentFolder: string, locksFolder: string) {
    this.#folder = join(contentFolder, 'leases');
    this.#locks = locksFolder;
  }

  /** A new lease that claims nothing yet. Dispose of it when an image names its content, or when it failed. */
  async acquire(): Promise<Lease> {
    await mkdir(this.#folder, { recursive: true, mode: 0o700 });
    return new Lease(join(this.#folder, `${randomBytes(8).toString('hex')}.json`), this.#locks);
  }

  /** Everything that living processes claim. To be called under the images' lock; deletes leases of the dead. */
  async claimed(): Promise<Set<string>> {
    const claimed = new Set<string>();
    for (const name of await namesIn(this.#folder)) {
      const path = join(this.#folder, name);
      if (!name.endsWith('.json')) continue;
      const text = await readFile(path, 'utf8').catch(() => undefined);
      // Released meanwhile.
      if (text === undefined) continue;
      const lease = leaseSchema.safeParse(parsed(text));
      if (lease.success && isAlive(lease.data)) for (const digest of lease.data.digests) claimed.add(digest);
      else await rm(path, { force: true });
    }
    return claimed;
  }
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
