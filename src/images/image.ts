import { LcowError } from '../errors/index.js';
import type { ContentStore } from './content/content-store.js';
import type { IndexEntry } from './content/layout-index.js';
import type { Digest } from './digest.js';
import { MAX_CONFIG_BYTES, chainIds, layerId, parseImageConfig, type OciImageConfig } from './image-config.js';
import { MAX_MANIFEST_BYTES, parseManifest, type ImageManifest } from './manifest.js';
import type { Platform } from './platform.js';
import type { LayerPlan } from './unpack.js';

/** A layer of an image. */
export interface ImageLayer {
  /** The digest of the uncompressed tar. */
  readonly diffId: Digest;
  /** The digest of this layer and all below it: its graphdriver layer. */
  readonly chainId: Digest;
  /** The blob. */
  readonly digest: Digest;
  /** The size of the blob in bytes. */
  readonly size: number;
}

/** An image in the store. */
export interface Image {
  /** The digest of the configuration, which is docker's image id. */
  readonly id: Digest;
  /** Full names with tag, sorted; none for an image whose names all went to others. */
  readonly references: readonly string[];
  /** Full names with digest under which registries serve it, sorted. */
  readonly digestReferences: readonly string[];
  readonly config: OciImageConfig;
  readonly manifestDigest: Digest;
  /** Base first. */
  readonly layers: readonly ImageLayer[];
  /** Bytes of the layers' files, uncompressed: what docker shows as size. */
  readonly sizeBytes: number;
  /** When the image was built, RFC 3339; undefined when it does not say. */
  readonly created: string | undefined;
  readonly platform: Platform;
}

/** The manifest and configuration of one image, read and checked against each other. */
export interface ImageDocuments {
  readonly manifest: ImageManifest;
  readonly config: OciImageConfig;
  readonly layers: readonly LayerPlan[];
}

/**
 * Puts manifest and configuration together.
 * @throws LcowError BAD_MANIFEST when they do not have the same number of layers.
 */
export function imageDocuments(manifest: ImageManifest, config: OciImageConfig, what: string): ImageDocuments {
  const diffIds = config.rootfs.diff_ids;
  if (diffIds.length !== manifest.layers.length)
    throw new LcowError(
      'BAD_MANIFEST',
      `${what} has ${manifest.layers.length} layers, but its configuration names ${diffIds.length}.`,
    );
  const chain = chainIds(diffIds);
  const layers = manifest.layers.map((layer, index): LayerPlan => ({
    blob: layer.digest,
    blobSize: layer.size,
    diffId: diffIds[index]!,
    chainId: chain[index]!,
    parent: chain[index - 1],
  }));
  return { manifest, config, layers };
}

/**
 * Reads the documents of a stored image.
 * @throws LcowError NOT_FOUND, BAD_MANIFEST, DIGEST_MISMATCH when the store lost or damaged them.
 */
export async function readDocuments(content: ContentStore, manifestDigest: Digest): Promise<ImageDocuments> {
  const what = `The manifest ${manifestDigest}`;
  const manifest = parseManifest(await content.blobs.read(manifestDigest, MAX_MANIFEST_BYTES), what);
  if (manifest.kind !== 'manifest')
    throw new LcowError('BAD_MANIFEST', `${what} is an index where an image is expected.`);
  const { digest } = manifest.config;
  const config = parseImageConfig(
    await content.blobs.read(digest, MAX_CONFIG_BYTES),
    `The image configuration ${digest}`,
  );
  return imageDocuments(manifest, config, what);
}

/** Everything an image keeps in the store: blobs and chain ids. */
export function contentOf(entry: IndexEntry, { manifest, layers }: ImageDocuments): Digest[] {
  return [
    entry.descriptor.digest,
    ...(entry.indexDigest ? [entry.indexDigest] : []),
    manifest.config.digest,
    ...layers.flatMap((layer) => [layer.blob, layer.chainId]),
  ];
}

/** The id of the graphdriver layer that a container of the image stands on; undefined for an image without layers. */
export function topLayerId(image: Pick<Image, 'layers'>): string | undefined {
  const top = image.layers.at(-1);
  return top && layerId(top.chainId);
}
