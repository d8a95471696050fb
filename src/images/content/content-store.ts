import { mkdir } from 'node:fs/promises';
import { sweepTemporary } from '../../state/index.js';
import type { Digest } from '../digest.js';
import { Blobs } from './blobs.js';
import { Ingests } from './ingest.js';
import { LayerRecords } from './layer-records.js';
import { LayoutIndex } from './layout-index.js';
import { Leases, type Lease } from './leases.js';

/**
 * The content of all images, as an OCI image layout that other tools can read: `oci-layout`, `index.json` and
 * `blobs/`. Beside them, and outside of the layout, `ingest/` (unfinished downloads), `leases/` (what running pulls
 * need) and `layers/` (which graphdriver layers are whole). Safe for several processes at once.
 */
export class ContentStore {
  readonly folder: string;
  readonly locks: string;
  readonly blobs: Blobs;
  readonly ingests: Ingests;
  readonly index: LayoutIndex;
  readonly leases: Leases;
  readonly layers: LayerRecords;

  private constructor(folder: string, locks: string) {
    this.folder = folder;
    this.locks = locks;
    this.blobs = new Blobs(folder);
    this.ingests = new Ingests(folder, locks, this.blobs);
    this.index = new LayoutIndex(folder, locks);
    this.leases = new Leases(folder, locks);
    this.layers = new LayerRecords(folder);
  }

  /** @throws LcowError BAD_MANIFEST when the folder is a layout of another version. */
  static async open(folder: string, locks: string): Promise<ContentStore> {
    await mkdir(folder, { recursive: true, mode: 0o700 });
    const store = new ContentStore(folder, locks);
    await store.index.initialise();
    return store;
  }

  /** Stores a small document. The lease claims it first. */
  async put(bytes: Uint8Array, lease: Lease, expected?: Digest): Promise<Digest> {
    const { digest } = await this.spool(once(bytes), lease, expected);
    return digest;
  }

  /** Stores content of unknown digest; see {@link Ingests.spool}. */
  async spool(
    source: AsyncIterable<Uint8Array>,
    lease: Lease,
    expected?: Digest,
    signal?: AbortSignal,
  ): Promise<{ digest: Digest; size: number }> {
    return this.ingests.spool(source, (digest) => lease.claim([digest]), expected, signal);
  }

  /** Deletes what processes that died left unfinished. Returns the names. */
  async sweep(): Promise<string[]> {
    return [...(await this.ingests.sweep()), ...(await sweepTemporary(this.folder))];
  }
}

async function* once(bytes: Uint8Array): AsyncGenerator<Uint8Array> {
  yield bytes;
}
