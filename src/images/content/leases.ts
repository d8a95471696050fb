import { randomBytes } from 'node:crypto';
import { mkdir, readFile, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { isAlive, ownIdentity, withLock, writeFileAtomic, type ProcessIdentity } from '../../state/index.js';
import { isDigest, type Digest } from '../digest.js';
import { namesIn } from './blobs.js';
import { IMAGES_LOCK } from './layout-index.js';

const leaseSchema = z.object({
  /** 0 when the owner gave it up but means to come back. */
  pid: z.number(),
  startTime: z.number(),
  digests: z.array(z.custom<Digest>(isDigest)),
});

/** How long what an interrupted pull brought is kept for the next one, in milliseconds. */
export const ABANDONED_LIFETIME_MS = 7 * 24 * 3600 * 1000;

/**
 * What a running pull or import needs, although no image names it yet: blobs by digest, layers by chain id. Collection
 * of garbage spares it. A lease of a dead process counts no more.
 */
export class Lease {
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
    await withLock(this.#locks, IMAGES_LOCK, () => this.#write(ownIdentity()));
  }

  /** Ends the lease: its content is named by an image, or garbage. */
  async release(): Promise<void> {
    await rm(this.#path, { force: true });
  }

  /** Ends the lease, and remembers what it was for: the content is garbage if nobody comes back for it in time. */
  async abandon(): Promise<void> {
    if (this.#digests.size > 0) await this.#write({ pid: 0, startTime: 0 });
  }

  async #write(owner: ProcessIdentity): Promise<void> {
    await writeFileAtomic(this.#path, JSON.stringify({ ...owner, digests: [...this.#digests] }));
  }
}

/** A lease whose owner died or gave it up. */
export interface DeadLease {
  readonly digests: readonly Digest[];
  /** Nobody came back for its content. */
  readonly expired: boolean;
  remove(): Promise<void>;
}

/** The leases of all processes on this store: `leases/<random>.json`. */
export class Leases {
  readonly #folder: string;
  readonly #locks: string;

  constructor(contentFolder: string, locksFolder: string) {
    this.#folder = join(contentFolder, 'leases');
    this.#locks = locksFolder;
  }

  /** A new lease that claims nothing yet. */
  async acquire(): Promise<Lease> {
    await mkdir(this.#folder, { recursive: true, mode: 0o700 });
    return new Lease(join(this.#folder, `${randomBytes(8).toString('hex')}.json`), this.#locks);
  }

  /** All leases, to be called under the images' lock: what living processes claim, and the leases of the others. */
  async read(now: number = Date.now()): Promise<{ claimed: Set<string>; dead: DeadLease[] }> {
    const claimed = new Set<string>();
    const dead: DeadLease[] = [];
    for (const name of await namesIn(this.#folder)) {
      const path = join(this.#folder, name);
      const text = name.endsWith('.json') ? await readFile(path, 'utf8').catch(() => undefined) : undefined;
      // Released meanwhile.
      if (text === undefined) continue;
      const lease = leaseSchema.safeParse(parsed(text));
      if (lease.success && isAlive(lease.data)) {
        for (const digest of lease.data.digests) claimed.add(digest);
        continue;
      }
      const age = now - ((await stat(path).catch(() => undefined))?.mtimeMs ?? now);
      dead.push({
        digests: lease.success ? lease.data.digests : [],
        expired: !lease.success || age > ABANDONED_LIFETIME_MS,
        remove: () => rm(path, { force: true }),
      });
    }
    return { claimed, dead };
  }

  /** Whether there is any lease at all: cheap, without the lock. */
  async any(): Promise<boolean> {
    return (await namesIn(this.#folder)).length > 0;
  }
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
