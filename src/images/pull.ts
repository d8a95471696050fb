import { isLcowError } from '../errors/index.js';
import { acquireImage, type AcquiredImage, type ContentSource, type RootDocument } from './acquire.js';
import type { ContentStore } from './content/content-store.js';
import type { Lease } from './content/leases.js';
import type { IndexEntry } from './content/layout-index.js';
import type { Digest } from './digest.js';
import { readDocuments } from './image.js';
import { MAX_MANIFEST_BYTES } from './manifest.js';
import { platformDistance, type Platform } from './platform.js';
import type { ProgressListener } from './progress.js';
import { formatReference, type ImageReference } from './reference.js';
import { RegistryClient, type RegistryOptions } from './registry/client.js';
import { downloadBlob } from './registry/download.js';
import type { Unpacker } from './unpack.js';

export interface PullContext extends RegistryOptions {
  readonly content: ContentStore;
  readonly unpacker: Unpacker;
  readonly lease: Lease;
  readonly platform: Platform;
  /** The image that has the name now. */
  readonly current: IndexEntry | undefined;
  readonly onProgress?: ProgressListener | undefined;
  readonly signal?: AbortSignal | undefined;
}

export type PullOutcome =
  | { readonly kind: 'upToDate'; readonly digest: Digest }
  | { readonly kind: 'pulled'; readonly digest: Digest; readonly image: AcquiredImage };

/** Fetches an image from its registry into the store; naming it is the caller's. */
export async function pullImage(reference: ImageReference, context: PullContext): Promise<PullOutcome> {
  const { content, signal, lease, current } = context;
  const client = await RegistryClient.open(reference, context);
  try {
    const digest = await client.resolve(signal);
    if (digest && current && (await isCurrent(context, current, digest))) return { kind: 'upToDate', digest };
    if (digest) await lease.claim([digest]);
    const root = await rootDocument(client, content, digest, signal);
    if (!digest && current && (await isCurrent(context, current, root.digest)))
      return { kind: 'upToDate', digest: root.digest };
    const image = await acquireImage(
      { ...context, name: formatReference(reference), source: new RegistrySource(client, content) },
      root,
    );
    return { kind: 'pulled', digest: root.digest, image };
  } finally {
    await client[Symbol.asyncDispose]();
  }
}

/** Whether the named image is what the registry has, and nothing of it was lost since. */
async function isCurrent(context: PullContext, current: IndexEntry, remote: Digest): Promise<boolean> {
  const { content, unpacker, platform } = context;
  if (remote !== (current.indexDigest ?? current.descriptor.digest)) return false;
  const has = current.descriptor.platform;
  if (!has || platformDistance(platform, { ...has, variant: has.variant ?? undefined }) !== 0) return false;
  try {
    const { layers } = await readDocuments(content, current.descriptor.digest);
    for (const layer of layers)
      if (!(await content.blobs.has(layer.blob, layer.blobSize)) || !(await unpacker.isUnpacked(layer.chainId)))
        return false;
    return true;
  } catch (error) {
    if (isLcowError(error, 'NOT_FOUND', 'BAD_MANIFEST', 'DIGEST_MISMATCH')) return false;
    throw error;
  }
}

async function rootDocument(
  client: RegistryClient,
  content: ContentStore,
  digest: Digest | undefined,
  signal: AbortSignal | undefined,
): Promise<RootDocument> {
  // A pull that was cut off has it already; registries count fetches of manifests.
  const bytes = digest && (await stored(content, digest));
  if (bytes) return { digest, bytes, mediaType: undefined };
  return client.manifest(digest, signal);
}

async function stored(content: ContentStore, digest: Digest): Promise<Buffer | undefined> {
  try {
    return await content.blobs.read(digest, MAX_MANIFEST_BYTES);
  } catch (error) {
    if (isLcowError(error, 'NOT_FOUND', 'DIGEST_MISMATCH', 'BAD_MANIFEST')) return undefined;
    throw error;
  }
}

class RegistrySource implements ContentSource {
  readonly #client: RegistryClient;
  readonly #content: ContentStore;

  constructor(client: RegistryClient, content: ContentStore) {
    this.#client = client;
    this.#content = content;
  }

  async manifest(digest: Digest, signal?: AbortSignal): Promise<{ bytes: Buffer; mediaType: string | undefined }> {
    const bytes = await stored(this.#content, digest);
    return bytes ? { bytes, mediaType: undefined } : this.#client.manifest(digest, signal);
  }

  async blob(
    blob: { digest: Digest; size: number },
    onBytes: (bytes: number) => void,
    signal?: AbortSignal,
  ): Promise<void> {
    await this.#content.ingests.ingest(
      blob.digest,
      blob.size,
      (ingest) => downloadBlob(this.#client, blob, ingest, onBytes, signal),
      { resumable: true, signal },
    );
  }
}
