import { z } from 'zod';
import { open } from 'node:fs/promises';
import type { RootDocument } from '../acquire.js';
import type { ContentStore } from '../content/content-store.js';
import { MAGIC_BYTES, detectCompression } from '../decompress.js';
import { digestOf, type Digest } from '../digest.js';
import { parseJsonArray } from '../json.js';
import { checked, type Descriptor } from '../manifest.js';
import { OCI_CONFIG, OCI_LAYER, OCI_LAYER_GZIP, OCI_LAYER_ZSTD, OCI_MANIFEST } from '../media-types.js';
import { parseReference, type ImageReference } from '../reference.js';
import type { ImageArchive, SpooledMember } from './archive.js';

/** manifest.json of `docker save`. */
const archiveManifest = z.array(
  z.looseObject({
    Config: z.string(),
    RepoTags: z.array(z.string()).nullish(),
    Layers: z.array(z.string()).nullish(),
  }),
);

/** An image of a docker-save archive, with the manifest we made for it. */
export interface SavedImage {
  readonly root: RootDocument;
  readonly names: readonly ImageReference[];
}

/**
 * Makes an OCI manifest for every image of a docker-save archive, whose layers are spooled.
 * @throws LcowError BAD_MANIFEST, BAD_TAR, BAD_REFERENCE.
 */
export async function savedImages(
  archive: ImageArchive,
  json: Buffer,
  content: ContentStore,
  what: string,
): Promise<SavedImage[]> {
  const name = `manifest.json of ${what}`;
  const images: SavedImage[] = [];
  for (const { Config, RepoTags, Layers } of checked(archiveManifest, parseJsonArray(json, name), name)) {
    const layers: Descriptor[] = [];
    for (const layer of Layers ?? []) {
      const member = archive.member(layer);
      layers.push({ mediaType: await layerType(content, member.digest, what), ...member });
    }
    images.push({
      root: ociManifest(archive.member(Config), layers),
      names: (RepoTags ?? []).map(parseReference),
    });
  }
  return images;
}

/** The manifest of a configuration and layers; the same bytes for the same image. */
export function ociManifest(config: SpooledMember, layers: readonly Descriptor[]): RootDocument {
  const manifest = {
    schemaVersion: 2,
    mediaType: OCI_MANIFEST,
    config: { mediaType: OCI_CONFIG, digest: config.digest, size: config.size },
    layers: layers.map(({ mediaType, digest, size }) => ({ mediaType, digest, size })),
  };
  const bytes = Buffer.from(JSON.stringify(manifest));
  return { digest: digestOf(bytes), bytes, mediaType: OCI_MANIFEST };
}

/** The media type of a stored layer, by its first bytes. */
export async function layerType(content: ContentStore, digest: Digest, what: string): Promise<string> {
  const file = await open(content.blobs.path(digest));
  try {
    const { buffer, bytesRead } = await file.read(Buffer.alloc(MAGIC_BYTES), 0, MAGIC_BYTES, 0);
    const compression = detectCompression(buffer.subarray(0, bytesRead), `A layer of ${what}`);
    return { none: OCI_LAYER, gzip: OCI_LAYER_GZIP, zstd: OCI_LAYER_ZSTD }[compression];
  } finally {
    await file.close();
  }
}
