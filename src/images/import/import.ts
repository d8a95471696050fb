import { createReadStream } from 'node:fs';
import { stat } from 'node:fs/promises';
import { LcowError } from '../../errors/index.js';
import { asIoError } from '../../state/index.js';
import { acquireImage, type AcquiredImage, type ContentSource, type RootDocument } from '../acquire.js';
import type { ContentStore } from '../content/content-store.js';
import { checkLayoutVersion, parseLayoutIndex, readLayout } from '../content/layout-index.js';
import type { Lease } from '../content/leases.js';
import { decompress } from '../decompress.js';
import { imageEntries, type Descriptor } from '../manifest.js';
import { OCI_INDEX } from '../media-types.js';
import type { Platform } from '../platform.js';
import type { ProgressListener } from '../progress.js';
import { formatReference, type ImageReference } from '../reference.js';
import type { Unpacker } from '../unpack.js';
import { ImageArchive, isImageArchive, type SpooledMember } from './archive.js';
import { savedImages } from './docker-archive.js';
import { LayoutSource, SpooledSource } from './layout.js';
import { entryName, givenName } from './naming.js';
import { rootfsImage, type RootfsConfig } from './rootfs.js';
import { digestOf } from '../digest.js';

export interface ImportContext extends RootfsConfig {
  readonly content: ContentStore;
  readonly unpacker: Unpacker;
  readonly lease: Lease;
  readonly platform: Platform;
  /** Name for what is imported; needed for a root file system. */
  readonly name?: string | undefined;
  readonly onProgress?: ProgressListener | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** An image that is in the store, with the names it is to get. */
export interface ImportedImage {
  readonly image: AcquiredImage;
  readonly names: readonly ImageReference[];
}

/**
 * Imports a folder (OCI image layout), a file or a stream (OCI archive, docker-save archive, root file system tar; each
 * plain, gzip or zstd). What it is shows in its content.
 */
export async function importImages(
  source: string | AsyncIterable<Uint8Array>,
  context: ImportContext,
): Promise<ImportedImage[]> {
  if (context.name !== undefined) givenName(context.name);
  if (typeof source !== 'string') return importStream(source, 'The stream', context);
  const kind = await stat(source).catch((error: unknown) => {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT')
      throw new LcowError('NOT_FOUND', `There is no file or folder ${source}.`, { cause: error });
    throw asIoError(error, `${source} cannot be read`);
  });
  if (kind.isDirectory()) return importLayout(source, context);
  // A pipe can be read only once.
  if (!kind.isFile()) return importStream(createReadStream(source), source, context);
  return importFile(source, source, context);
}

async function importStream(
  source: AsyncIterable<Uint8Array>,
  what: string,
  context: ImportContext,
): Promise<ImportedImage[]> {
  const { content, lease, signal } = context;
  const spooled = await content.spool(source, lease, undefined, signal);
  return importFile(content.blobs.path(spooled.digest), what, context, spooled);
}

async function importLayout(folder: string, context: ImportContext): Promise<ImportedImage[]> {
  const entries = await readLayout(folder);
  return importEntries(entries, new LayoutSource(folder, context.content), folder, context);
}

/** @param spooled The file's place in the store, when it has one. */
async function importFile(
  path: string,
  what: string,
  context: ImportContext,
  spooled?: SpooledMember,
): Promise<ImportedImage[]> {
  const { content, lease, signal, platform } = context;
  if (!(await isImageArchive(tarOf(path, what), what))) return importRootfs(path, what, context, spooled);

  const archive = await ImageArchive.read(tarOf(path, what), content, lease, what, signal);
  const [layout, index, saved] = ['oci-layout', 'index.json', 'manifest.json'].map((name) => archive.document(name));
  const source = new SpooledSource(content, what);
  if (layout && index) {
    checkLayoutVersion(layout, `oci-layout of ${what}`);
    return importEntries(parseLayoutIndex(index, `index.json of ${what}`), source, what, context);
  }
  if (!saved)
    throw new LcowError(
      'BAD_MANIFEST',
      `${what} begins like an image archive, but has neither index.json nor manifest.json.`,
    );
  const images = await savedImages(archive, saved, content, what);
  if (images.length > 1 && context.name !== undefined) throw severalImages(what, images.length);
  const imported: ImportedImage[] = [];
  for (const { root, names } of images) {
    const image = await acquireImage(
      { ...context, platform, source, name: names[0] ? formatReference(names[0]) : what },
      root,
    );
    imported.push({ image, names: context.name === undefined ? names : [givenName(context.name)] });
  }
  return imported;
}

async function importRootfs(
  path: string,
  what: string,
  context: ImportContext,
  spooled: SpooledMember | undefined,
): Promise<ImportedImage[]> {
  const { content, lease, signal, platform, name } = context;
  if (name === undefined)
    throw new LcowError('INVALID_ARGUMENT', `${what} is the tar of a root file system, which has no name of its own.`, {
      hint: 'Give it one: lcow image import --name NAME FILE.',
    });
  const reference = givenName(name);
  const layer = spooled ?? (await content.spool(fileStream(path), lease, undefined, signal));
  const root = await rootfsImage(content, lease, layer, context, platform, what);
  const source = new SpooledSource(content, what);
  const image = await acquireImage({ ...context, source, name: formatReference(reference) }, root);
  return [{ image, names: [reference] }];
}

/** Imports what an index.json lists: an image each, or one image for several platforms when none has a name. */
async function importEntries(
  entries: readonly Descriptor[],
  source: ContentSource,
  what: string,
  context: ImportContext,
): Promise<ImportedImage[]> {
  const images = imageEntries({ kind: 'index', mediaType: OCI_INDEX, manifests: entries });
  if (images.length === 0) throw new LcowError('BAD_MANIFEST', `${what} holds no image.`);
  const isOneImage = images.length > 1 && images.every((entry) => entry.platform && !entryName(entry, undefined));
  if (isOneImage) {
    const bytes = Buffer.from(JSON.stringify({ schemaVersion: 2, mediaType: OCI_INDEX, manifests: images }));
    const root = { digest: digestOf(bytes), bytes, mediaType: OCI_INDEX };
    return [await importRoot(root, images[0]!, source, what, context)];
  }
  const tags = new Set(images.map((entry) => format(entryName(entry, context.name))));
  if (context.name !== undefined && tags.size < images.length) throw severalImages(what, images.length);
  const imported: ImportedImage[] = [];
  for (const entry of images) {
    const { bytes } = await source.manifest(entry.digest, context.signal);
    const root = { digest: entry.digest, bytes, mediaType: entry.mediaType };
    imported.push(await importRoot(root, entry, source, what, context));
  }
  return imported;
}

async function importRoot(
  root: RootDocument,
  entry: Descriptor,
  source: ContentSource,
  what: string,
  context: ImportContext,
): Promise<ImportedImage> {
  const name = entryName(entry, context.name);
  const image = await acquireImage({ ...context, source, name: format(name) ?? what }, root);
  return { image, names: name ? [name] : [] };
}

function format(reference: ImageReference | undefined): string | undefined {
  return reference && formatReference(reference);
}

function severalImages(what: string, count: number): LcowError {
  return new LcowError('INVALID_ARGUMENT', `${what} holds ${count} images, which cannot all get one name.`, {
    hint: 'Leave the name out: the images keep theirs.',
  });
}

function fileStream(path: string): AsyncIterable<Uint8Array> {
  return createReadStream(path, { highWaterMark: 1024 * 1024 });
}

function tarOf(path: string, what: string): AsyncIterable<Uint8Array> {
  return decompress(fileStream(path), what);
}
