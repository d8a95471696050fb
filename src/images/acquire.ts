import type { ContentStore } from './content/content-store.js';
import type { Lease } from './content/leases.js';
import type { Digest } from './digest.js';
import { MAX_CONFIG_BYTES, configPlatform, parseImageConfig } from './image-config.js';
import { imageDocuments, type ImageDocuments } from './image.js';
import { LcowError } from '../errors/index.js';
import { Limiter, allOrNone } from './limiter.js';
import {
  descriptorPlatform,
  imageEntries,
  parseManifest,
  type Descriptor,
  type ImageIndex,
  type ImageManifest,
} from './manifest.js';
import { isIndexType } from './media-types.js';
import { choosePlatform, noMatchingPlatform, platformDistance, type Platform } from './platform.js';
import { LayerProgress, type ProgressListener } from './progress.js';
import type { LayerPlan, Unpacker } from './unpack.js';

/** As docker: three downloads at once for one pull. */
const PARALLEL_DOWNLOADS = 3;
/** Two conversions keep both the decompressor and the disk busy; more only take memory. */
const PARALLEL_CONVERSIONS = 2;
/** Deepest nesting of indexes; in practice it is one. */
const MAX_INDEX_DEPTH = 4;

/** Where content comes from: a registry, or a folder or archive that was spooled into the store. */
export interface ContentSource {
  /** A manifest or index by digest, verified. */
  manifest(digest: Digest, signal?: AbortSignal): Promise<{ bytes: Buffer; mediaType: string | undefined }>;
  /** Makes a blob be in the store. Claimed by the lease already. */
  blob(blob: { digest: Digest; size: number }, onBytes: (bytes: number) => void, signal?: AbortSignal): Promise<void>;
}

/** A manifest or index to begin with. */
export interface RootDocument {
  readonly digest: Digest;
  readonly bytes: Buffer;
  readonly mediaType: string | undefined;
}

/** An image that is in the store wholly, though nothing names it yet. */
export interface AcquiredImage {
  readonly descriptor: Descriptor;
  readonly documents: ImageDocuments;
  /** The index it was chosen from. */
  readonly indexDigest: Digest | undefined;
}

/** What the acquisition of one image needs. */
export interface Acquisition {
  readonly content: ContentStore;
  readonly unpacker: Unpacker;
  readonly source: ContentSource;
  readonly lease: Lease;
  readonly platform: Platform;
  /** The image's name in messages. */
  readonly name: string;
  readonly onProgress?: ProgressListener | undefined;
  readonly signal?: AbortSignal | undefined;
}

/**
 * Brings an image into the store, from its manifest or an index of several: documents, layer blobs, graphdriver layers.
 * @throws LcowError NO_MATCHING_PLATFORM, BAD_MANIFEST, NOT_SUPPORTED, DIGEST_MISMATCH; what the source and the
 * graphdriver throw. Layers that are not whole are removed then.
 */
export async function acquireImage(acquisition: Acquisition, root: RootDocument): Promise<AcquiredImage> {
  const { content, lease, name } = acquisition;
  await lease.claim([root.digest]);
  await content.put(root.bytes, lease, root.digest);
  const parsed = parseManifest(root.bytes, `The manifest of ${name}`, root.mediaType);
  if (parsed.kind === 'manifest') {
    const descriptor = { mediaType: parsed.mediaType, digest: root.digest, size: root.bytes.byteLength };
    return acquireManifest(acquisition, descriptor, parsed, undefined);
  }
  const { descriptor, manifest } = await chooseFrom(acquisition, parsed, 1);
  return acquireManifest(acquisition, descriptor, manifest, root.digest);
}

/** The best entry of an index for the platform. Entries that say no platform are judged by their configuration. */
async function chooseFrom(
  acquisition: Acquisition,
  index: ImageIndex,
  depth: number,
): Promise<{ descriptor: Descriptor; manifest: ImageManifest }> {
  const { platform, name } = acquisition;
  const entries = imageEntries(index);
  let chosen = choosePlatform(entries, descriptorPlatform, platform);
  const silent = entries.filter((entry) => !descriptorPlatform(entry));
  if (!chosen && silent.length === 1) chosen = silent[0];
  if (!chosen)
    throw noMatchingPlatform(
      name,
      platform,
      entries.flatMap((entry) => descriptorPlatform(entry) ?? []),
    );

  const document = await fetchDocument(acquisition, chosen);
  if (document.kind === 'manifest') return { descriptor: chosen, manifest: document };
  if (depth === MAX_INDEX_DEPTH)
    throw new LcowError('BAD_MANIFEST', `The index of ${name} is nested more than ${MAX_INDEX_DEPTH} deep.`);
  return chooseFrom(acquisition, document, depth + 1);
}

async function fetchDocument(acquisition: Acquisition, entry: Descriptor): Promise<ImageManifest | ImageIndex> {
  const { content, lease, source, signal, name } = acquisition;
  await lease.claim([entry.digest]);
  const { bytes, mediaType } = await source.manifest(entry.digest, signal);
  if (bytes.byteLength !== entry.size)
    throw new LcowError(
      'DIGEST_MISMATCH',
      `The manifest ${entry.digest} of ${name} has ${bytes.byteLength} bytes instead of ${entry.size}.`,
    );
  await content.put(bytes, lease, entry.digest);
  const what = `The ${isIndexType(entry.mediaType) ? 'index' : 'manifest'} ${entry.digest} of ${name}`;
  return parseManifest(bytes, what, mediaType ?? entry.mediaType);
}

async function acquireManifest(
  acquisition: Acquisition,
  found: Descriptor,
  manifest: ImageManifest,
  indexDigest: Digest | undefined,
): Promise<AcquiredImage> {
  const { content, lease, source, platform, name, signal } = acquisition;
  const { config: configDescriptor } = manifest;
  if (configDescriptor.size > MAX_CONFIG_BYTES)
    throw new LcowError(
      'BAD_MANIFEST',
      `The configuration of ${name} has ${configDescriptor.size} bytes, which is too much.`,
    );
  await lease.claim([configDescriptor.digest]);
  await source.blob(configDescriptor, () => {}, signal);
  const bytes = await content.blobs.read(configDescriptor.digest, MAX_CONFIG_BYTES);
  const config = parseImageConfig(bytes, `The configuration of ${name}`);
  const runsOn = configPlatform(config);
  if (platformDistance(platform, runsOn) === undefined) throw noMatchingPlatform(name, platform, [runsOn]);

  const documents = imageDocuments(manifest, config, `The manifest of ${name}`);
  await lease.claim(documents.layers.flatMap((layer) => [layer.blob, layer.chainId]));
  await acquireLayers(acquisition, documents.layers);
  const { annotations, digest, size, mediaType } = found;
  const { os, architecture, variant } = runsOn;
  const descriptor = {
    mediaType,
    digest,
    size,
    platform: { os, architecture, ...(variant && { variant }) },
    annotations: annotations ?? {},
  };
  return { descriptor, documents, indexDigest };
}

/** Downloads and converts the layers, each as soon as there is a place for it. */
async function acquireLayers(acquisition: Acquisition, layers: readonly LayerPlan[]): Promise<void> {
  const { content, unpacker, source, onProgress } = acquisition;
  const downloads = new Limiter(PARALLEL_DOWNLOADS);
  const conversions = new Limiter(PARALLEL_CONVERSIONS);
  const progress = layers.map((layer) => new LayerProgress(layer.blob, layer.blobSize, onProgress));
  const blobs = new Map<Digest, Promise<void>>();
  const unpacked = new Map<Digest, Promise<void>>();
  for (const layer of progress) layer.report('waiting');

  const steps = layers.map((layer, index) => async (signal: AbortSignal): Promise<void> => {
    const report = progress[index]!;
    // An image may hold a layer twice: one download, one conversion, and a link.
    const blob = once(blobs, layer.blob, () => downloads.run(() => fetchLayer(content, source, layer, report, signal)));
    const twin = unpacked.get(layer.diffId);
    const done = (async () => {
      await blob;
      await twin;
      await conversions.run(() => unpacker.unpack(layer, layers.slice(0, index), report, signal));
    })();
    unpacked.set(layer.diffId, done);
    await done;
  });
  try {
    await unpacker.prepare(layers, acquisition.signal);
    await allOrNone(steps, acquisition.signal);
  } catch (error) {
    await unpacker.removeUnfinished(layers.map((layer) => layer.chainId));
    throw error;
  }
}

async function fetchLayer(
  content: ContentStore,
  source: ContentSource,
  layer: LayerPlan,
  report: LayerProgress,
  signal: AbortSignal,
): Promise<void> {
  if (await content.blobs.has(layer.blob, layer.blobSize)) return;
  const blob = { digest: layer.blob, size: layer.blobSize };
  await source.blob(blob, (bytes) => report.report('downloading', bytes), signal);
  report.report('verifying', layer.blobSize);
}

function once<K>(running: Map<K, Promise<void>>, key: K, start: () => Promise<void>): Promise<void> {
  let promise = running.get(key);
  if (!promise) {
    promise = start();
    running.set(key, promise);
  }
  return promise;
}
