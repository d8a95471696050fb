import { LcowError, isLcowError } from '../errors/index.js';
import type { ContentStore } from './content/content-store.js';
import type { IndexEntry } from './content/layout-index.js';
import { isDigest, type Digest } from './digest.js';
import { configPlatform } from './image-config.js';
import { readDocuments, type Image, type ImageDocuments } from './image.js';
import {
  familiarReference,
  formatReference,
  parseReference,
  repositoryName,
  type ImageReference,
} from './reference.js';

/** An image together with the entries of the index that make it up. */
export interface StoredImage {
  readonly image: Image;
  readonly entries: readonly IndexEntry[];
}

/** Fewest hexadecimal digits that an id can be shortened to. */
const ID_PREFIX = /^(?:sha256:)?([0-9a-f]{1,64})$/;

/** All images of the store, by id. Entries whose documents are lost or damaged are left out. */
export async function loadImages(
  content: ContentStore,
  entries: readonly IndexEntry[],
): Promise<Map<Digest, StoredImage>> {
  const loaded = new Map<Digest, { entries: IndexEntry[]; documents: ImageDocuments }>();
  for (const entry of entries) {
    const documents = await readDocuments(content, entry.descriptor.digest).catch((error: unknown) => {
      if (isLcowError(error, 'NOT_FOUND', 'BAD_MANIFEST', 'DIGEST_MISMATCH', 'NOT_SUPPORTED')) return undefined;
      throw error;
    });
    if (!documents) continue;
    const id = documents.manifest.config.digest;
    const known = loaded.get(id);
    if (known) known.entries.push(entry);
    else loaded.set(id, { entries: [entry], documents });
  }
  const images = new Map<Digest, StoredImage>();
  for (const [id, { entries: own, documents }] of loaded)
    images.set(id, { entries: own, image: await toImage(content, id, own, documents) });
  return images;
}

async function toImage(
  content: ContentStore,
  id: Digest,
  entries: readonly IndexEntry[],
  { config, layers }: ImageDocuments,
): Promise<Image> {
  let sizeBytes = 0;
  for (const layer of layers) sizeBytes += (await content.layers.get(layer.chainId))?.tarBytes ?? layer.blobSize;
  const names = entries.flatMap((entry) =>
    entry.name === undefined ? [] : [{ entry, reference: parseReference(entry.name) }],
  );
  const tagged = names.filter(({ reference }) => reference.digest === undefined);
  const digests = names.map(
    ({ entry, reference }) =>
      `${repositoryName(reference)}@${reference.digest ?? entry.indexDigest ?? entry.descriptor.digest}`,
  );
  return {
    id,
    references: tagged.map(({ reference }) => formatReference(reference)).sort(),
    digestReferences: [...new Set(digests)].sort(),
    config,
    manifestDigest: entries[0]!.descriptor.digest,
    layers: layers.map(({ diffId, chainId, blob, blobSize }) => ({ diffId, chainId, digest: blob, size: blobSize })),
    sizeBytes,
    created: config.created ?? undefined,
    platform: configPlatform(config),
  };
}

/** What a user's text means: an image by one of its names, or by its id. */
export interface Resolution {
  readonly stored: StoredImage;
  /** The names that the text meant; none when it was an id. */
  readonly named: readonly IndexEntry[];
}

/**
 * Finds an image by name, name with digest, id or the beginning of an id, in this order, as docker does.
 * @throws LcowError IMAGE_NOT_FOUND with docker's words; INVALID_ARGUMENT when the beginning fits several images.
 */
export function resolveImage(images: ReadonlyMap<Digest, StoredImage>, text: string): Resolution {
  const reference = parsed(text);
  if (reference) {
    for (const stored of images.values()) {
      const named = stored.entries.filter((entry) => matches(entry, reference));
      if (named.length > 0) return { stored, named };
    }
  }
  const prefix = ID_PREFIX.exec(text)?.[1];
  if (prefix) {
    const found = [...images].filter(([id]) => id.startsWith(`sha256:${prefix}`));
    if (found.length > 1)
      throw new LcowError(
        'INVALID_ARGUMENT',
        `The image id "${text}" is ambiguous: ${found.length} images begin like that.`,
      );
    if (found[0]) return { stored: found[0][1], named: [] };
  }
  throw new LcowError('IMAGE_NOT_FOUND', `No such image: ${reference ? familiarReference(reference) : text}`);
}

function parsed(text: string): ImageReference | undefined {
  // sha256:<hex> would be a repository of that name; docker reads it as an id as well.
  if (isDigest(text)) return undefined;
  try {
    return parseReference(text);
  } catch {
    return undefined;
  }
}

/** Whether an entry is what a reference means. A digest decides alone; the tag beside it is for the reader. */
export function matches(entry: IndexEntry, reference: ImageReference): boolean {
  if (entry.name === undefined) return false;
  if (reference.digest === undefined) return entry.name === formatReference(reference);
  const name = parseReference(entry.name);
  if (repositoryName(name) !== repositoryName(reference)) return false;
  return [name.digest, entry.indexDigest, entry.descriptor.digest].includes(reference.digest);
}
