import { z } from 'zod';
import { LcowError } from '../errors/index.js';
import { isDigest, type Digest } from './digest.js';
import { parseJson } from './json.js';
import * as media from './media-types.js';
import { formatPlatform, type Platform } from './platform.js';

/** Largest manifest or index we read, in bytes (distribution-spec: registries should take at least 4 MiB). */
export const MAX_MANIFEST_BYTES = 4 * 1024 * 1024;
/** Most layers of an image; docker stops at 127. */
const MAX_LAYERS = 1024;
/** Most manifests of an index. */
const MAX_MANIFESTS = 4096;

const digest = z.custom<Digest>(isDigest, 'is not a sha256 or sha512 digest');
const size = z.number().int().nonnegative();
const annotations = z.record(z.string(), z.string()).nullish();

const platform = z.looseObject({
  os: z.string(),
  architecture: z.string(),
  variant: z.string().nullish(),
});

/** Points at content: what it is, its digest and size in bytes (image-spec descriptor.md). */
export const descriptorSchema = z.looseObject({
  mediaType: z.string(),
  digest,
  size,
  annotations,
  platform: platform.nullish(),
});
export type Descriptor = z.infer<typeof descriptorSchema>;

const manifestSchema = z.looseObject({
  schemaVersion: z.literal(2),
  mediaType: z.string().nullish(),
  config: descriptorSchema,
  layers: z.array(descriptorSchema).max(MAX_LAYERS),
  annotations,
});

const indexSchema = z.looseObject({
  schemaVersion: z.literal(2),
  mediaType: z.string().nullish(),
  manifests: z.array(descriptorSchema).max(MAX_MANIFESTS),
  annotations,
});

/** An image manifest, of OCI or docker schema 2. */
export interface ImageManifest {
  readonly kind: 'manifest';
  readonly mediaType: string;
  readonly config: Descriptor;
  readonly layers: readonly Descriptor[];
}

/** An image index, or docker's manifest list. */
export interface ImageIndex {
  readonly kind: 'index';
  readonly mediaType: string;
  readonly manifests: readonly Descriptor[];
}

/**
 * Reads a manifest or index. What it is follows from its fields, and its `mediaType` and the media type it was served
 * with have to agree: content that could be read as both is refused (CVE-2021-41190).
 * @param what Names the document in errors.
 * @throws LcowError BAD_MANIFEST; NOT_SUPPORTED for schema 1 and for what is no container image.
 */
export function parseManifest(bytes: Uint8Array, what: string, servedAs?: string): ImageManifest | ImageIndex {
  if (bytes.byteLength > MAX_MANIFEST_BYTES)
    throw new LcowError('BAD_MANIFEST', `${what} is larger than ${MAX_MANIFEST_BYTES} bytes.`);
  const document = parseJson(bytes, what);
  refuseSchema1(document, what, servedAs);
  const isIndex = 'manifests' in document;
  if (isIndex && ('layers' in document || 'config' in document))
    throw new LcowError('BAD_MANIFEST', `${what} is ambiguous: it has the fields of an index and of a manifest.`);

  if (isIndex) {
    const index = checked(indexSchema, document, what);
    const mediaType = agreed(index.mediaType, servedAs, media.isIndexType, media.OCI_INDEX, what);
    return { kind: 'index', mediaType, manifests: index.manifests };
  }
  const manifest = checked(manifestSchema, document, what);
  const guess = manifest.config.mediaType === media.DOCKER_CONFIG ? media.DOCKER_MANIFEST : media.OCI_MANIFEST;
  const mediaType = agreed(manifest.mediaType, servedAs, media.isManifestType, guess, what);
  refuseArtifacts(manifest, what);
  return { kind: 'manifest', mediaType, config: manifest.config, layers: manifest.layers };
}

function refuseSchema1(document: Record<string, unknown>, what: string, servedAs?: string): void {
  if (document['schemaVersion'] !== 1 && !(servedAs && media.isSchema1Type(servedAs))) return;
  throw new LcowError('NOT_SUPPORTED', `${what} is of docker's schema 1, which has been withdrawn.`, {
    hint: 'Pull and push the image again with a current client, which converts it.',
  });
}

/** The one media type both sides name. Registries that serve application/json or nothing are forgiven. */
function agreed(
  stated: string | null | undefined,
  servedAs: string | undefined,
  isOfKind: (mediaType: string) => boolean,
  fallback: string,
  what: string,
): string {
  if (stated && !isOfKind(stated))
    throw new LcowError('BAD_MANIFEST', `${what} says it is "${stated}", which does not fit its fields.`);
  const served = servedAs && (media.isIndexType(servedAs) || media.isManifestType(servedAs)) ? servedAs : undefined;
  if (served && !isOfKind(served))
    throw new LcowError('BAD_MANIFEST', `${what} was served as "${served}", which does not fit its fields.`);
  return stated ?? served ?? fallback;
}

function refuseArtifacts(manifest: z.infer<typeof manifestSchema>, what: string): void {
  if (!media.isConfigType(manifest.config.mediaType))
    throw new LcowError(
      'NOT_SUPPORTED',
      `${what} is no container image: its configuration is "${manifest.config.mediaType}".`,
    );
  const odd = manifest.layers.find((layer) => !media.isLayerType(layer.mediaType));
  if (odd) throw new LcowError('NOT_SUPPORTED', `${what} has a layer of the unsupported type "${odd.mediaType}".`);
}

/** The platform of an index entry; undefined when it says none. */
export function descriptorPlatform(descriptor: Descriptor): Platform | undefined {
  const { platform } = descriptor;
  if (!platform) return undefined;
  return { os: platform.os, architecture: platform.architecture, variant: platform.variant ?? undefined };
}

/** The entries of an index that can be an image: no attestations, no unknown platforms, no foreign media types. */
export function imageEntries(index: ImageIndex): Descriptor[] {
  return index.manifests.filter((entry) => {
    if (!media.isManifestType(entry.mediaType) && !media.isIndexType(entry.mediaType)) return false;
    // BuildKit attaches provenance and bills of materials this way.
    if (entry.annotations?.['vnd.docker.reference.type']) return false;
    const platform = descriptorPlatform(entry);
    return !platform || !formatPlatform(platform).split('/').includes('unknown');
  });
}

/** @throws LcowError BAD_MANIFEST naming the first field that is wrong. */
export function checked<T extends z.ZodType>(schema: T, document: unknown, what: string): z.infer<T> {
  const result = schema.safeParse(document);
  if (result.success) return result.data;
  const issue = result.error.issues[0]!;
  const field = issue.path.map(String).join('.') || 'the document';
  throw new LcowError('BAD_MANIFEST', `${what} is not well formed: ${field}: ${issue.message}.`, {
    cause: result.error,
  });
}
