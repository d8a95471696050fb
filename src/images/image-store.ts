import { LcowError } from '../errors/index.js';
import { withLock, type StateFolders } from '../state/index.js';
import type { AcquiredImage } from './acquire.js';
import { loadImages, resolveImage, type StoredImage } from './catalog.js';
import { ContentStore } from './content/content-store.js';
import { isResumable } from './content/ingest.js';
import { IMAGES_LOCK, isNameless, withoutName, type IndexEntry } from './content/layout-index.js';
import type { Lease } from './content/leases.js';
import type { Digest } from './digest.js';
import { collect, collectAbandoned, collectLocked } from './garbage.js';
import { contentOf, readDocuments, topLayerId, type Image } from './image.js';
import { importImages } from './import/import.js';
import type { RootfsConfig } from './import/rootfs.js';
import { inspectImage, type ImageInspect } from './inspect.js';
import { hostPlatform, parsePlatform, type Platform } from './platform.js';
import type { ProgressListener } from './progress.js';
import { familiarName, familiarReference, formatReference, parseReference, repositoryName } from './reference.js';
import type { RegistryOptions } from './registry/client.js';
import { Unpacker, type LayerStore } from './unpack.js';

export interface PullOptions extends RegistryOptions {
  /** `os/architecture[/variant]`; linux on the host's architecture when not given. */
  readonly platform?: string | undefined;
  readonly onProgress?: ProgressListener | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** An image that was pulled, and how that went. */
export interface PulledImage extends Image {
  /** The digest the name stands for in the registry: of an index, where there is one. */
  readonly pulledDigest: Digest;
  /** Nothing was to be fetched. */
  readonly upToDate: boolean;
}

export interface ImportOptions extends RootfsConfig {
  /** Name for the image; needed for the tar of a root file system. An archive's own names are used otherwise. */
  readonly name?: string | undefined;
  /** As {@link PullOptions.platform}. */
  readonly platform?: string | undefined;
  readonly onProgress?: ProgressListener | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** A line of `docker image ls`. */
export interface ImageSummary {
  /** Familiar name, or `<none>`. */
  readonly repository: string;
  /** Tag, or `<none>`. */
  readonly tag: string;
  readonly id: Digest;
  readonly created: string | undefined;
  readonly sizeBytes: number;
}

export interface RemoveOptions {
  /** Remove an image by its id even when several repositories name it. */
  readonly force?: boolean | undefined;
  /** Who uses an image, as they are to be named in the refusal: containers. Asked before layers are deleted. */
  readonly usedBy?: ((image: Image) => Promise<readonly string[]> | readonly string[]) | undefined;
}

export interface RemovedImage {
  /** Familiar names that are gone. */
  readonly untagged: readonly string[];
  /** Blobs and layers that are gone. */
  readonly deleted: readonly Digest[];
  /** The image's id when nothing of it is left. */
  readonly id?: Digest;
}

/** The images of one data root. Several processes may use one root at once. */
export class ImageStore {
  readonly #content: ContentStore;
  readonly #unpacker: Unpacker;
  readonly #driver: LayerStore;

  private constructor(content: ContentStore, driver: LayerStore) {
    this.#content = content;
    this.#driver = driver;
    this.#unpacker = new Unpacker(content, driver);
  }

  /** @throws LcowError BAD_MANIFEST when the content folder is a layout of another version; IO_FAILED. */
  static async open(folders: Pick<StateFolders, 'content' | 'locks'>, driver: LayerStore): Promise<ImageStore> {
    return new ImageStore(await ContentStore.open(folders.content, folders.locks), driver);
  }

  /**
   * Pulls an image from its registry. An image that is here already, as the registry has it, is left alone.
   * @throws LcowError BAD_REFERENCE, IMAGE_NOT_FOUND, NO_MATCHING_PLATFORM, REGISTRY_DENIED, REGISTRY_UNREACHABLE,
   * REGISTRY_FAILED, DIGEST_MISMATCH, BAD_MANIFEST, BAD_TAR, NOT_SUPPORTED, DISK_FULL, CANCELLED. Nothing half-made
   * stays, but for partial downloads that the next pull resumes.
   */
  async pull(text: string, options: PullOptions = {}): Promise<PulledImage> {
    const parsed = parseReference(text);
    // With a digest the tag decides nothing, as in docker.
    const reference = parsed.digest ? { domain: parsed.domain, path: parsed.path, digest: parsed.digest } : parsed;
    const name = formatReference(reference);
    const platform = platformOf(options.platform);
    return this.#leased('resumable', async (lease) => {
      const current = (await this.#content.index.read()).find((entry) => entry.name === name);
      const { onProgress, signal, credentials, insecure, retries } = options;
      const context = { content: this.#content, unpacker: this.#unpacker, lease, platform, current };
      // The registry client takes long to load, and most commands need none.
      const { pullImage } = await import('./pull.js');
      const outcome = await pullImage(reference, { ...context, onProgress, signal, credentials, insecure, retries });
      if (outcome.kind === 'pulled') await this.#name([{ name, image: outcome.image }]);
      const image = await this.resolve(name);
      return { ...image, pulledDigest: outcome.digest, upToDate: outcome.kind === 'upToDate' };
    });
  }

  /**
   * Imports images from an OCI image layout folder, an OCI archive, a docker-save archive or the tar of a root file
   * system, told apart by what they hold.
   * @param source A path, or a stream of an archive.
   * @returns The images, in the archive's order.
   * @throws LcowError NOT_FOUND, BAD_TAR, BAD_MANIFEST, DIGEST_MISMATCH, NOT_SUPPORTED, INVALID_ARGUMENT,
   * NO_MATCHING_PLATFORM, DISK_FULL, CANCELLED. Nothing is left then.
   */
  async import(source: string | AsyncIterable<Uint8Array>, options: ImportOptions = {}): Promise<Image[]> {
    const platform = platformOf(options.platform);
    return this.#leased('final', async (lease) => {
      const context = { ...options, content: this.#content, unpacker: this.#unpacker, lease, platform };
      const imported = await importImages(source, context);
      await this.#name(
        imported.flatMap(({ image, names }) => {
          const texts = names.length > 0 ? names.map(formatReference) : [undefined];
          return texts.map((name) => ({ name, image }));
        }),
      );
      const images = await this.#load();
      return imported.map(({ image }) => images.get(image.documents.manifest.config.digest)!.image);
    });
  }

  /**
   * Finds an image by name, id or the beginning of an id.
   * @throws LcowError IMAGE_NOT_FOUND, INVALID_ARGUMENT.
   */
  async resolve(text: string): Promise<Image> {
    return resolveImage(await this.#load(), text).stored.image;
  }

  /** All images, one line a name, the newest first. */
  async list(): Promise<ImageSummary[]> {
    const lines: ImageSummary[] = [];
    for (const { image } of (await this.#load()).values()) {
      const { id, created, sizeBytes } = image;
      const names = image.references.length > 0 ? image.references : image.digestReferences;
      for (const name of names) {
        const reference = parseReference(name);
        lines.push({ repository: familiarName(reference), tag: reference.tag ?? '<none>', id, created, sizeBytes });
      }
      if (names.length === 0) lines.push({ repository: '<none>', tag: '<none>', id, created, sizeBytes });
    }
    return lines.sort((a, b) => timeOf(b.created) - timeOf(a.created) || a.repository.localeCompare(b.repository));
  }

  /**
   * Docker's view of an image.
   * @throws LcowError IMAGE_NOT_FOUND, INVALID_ARGUMENT.
   */
  async inspect(text: string): Promise<ImageInspect> {
    const image = await this.resolve(text);
    const top = topLayerId(image);
    return inspectImage(
      image,
      top && (await this.#driver.exists(top)) ? await this.#driver.getMetadata(top) : undefined,
    );
  }

  /**
   * Gives an image one more name; the image that had it loses it.
   * @throws LcowError IMAGE_NOT_FOUND, BAD_REFERENCE, INVALID_ARGUMENT when the name has a digest.
   */
  async tag(source: string, name: string): Promise<void> {
    const reference = parseReference(name);
    if (reference.digest)
      throw new LcowError('INVALID_ARGUMENT', `refusing to create a tag with a digest reference: ${name}`);
    await this.#content.index.update(async (entries) => {
      const { stored, named } = resolveImage(await loadImages(this.#content, entries), source);
      const tagged = { ...(named[0] ?? stored.entries[0]!), name: formatReference(reference) };
      return { entries: withName(entries, tagged), result: undefined };
    });
  }

  /**
   * Takes a name from an image, and deletes the image with its last name: documents, blobs and layers that no other
   * image needs.
   * @throws LcowError IMAGE_NOT_FOUND; IN_USE when somebody uses the image, or when it is given by id and several
   * repositories name it.
   */
  async remove(text: string, options: RemoveOptions = {}): Promise<RemovedImage> {
    const { candidates, ...removed } = await this.#content.index.update((entries) =>
      this.#unname(entries, text, options),
    );
    // The names went first: an image that has a name is whole at any moment.
    return { ...removed, deleted: await collectLocked(this.#content, this.#unpacker, candidates) };
  }

  /**
   * Deletes blobs and layers that no image names and no running pull needs, and what dead processes left unfinished.
   * @param isUsed Whether a layer, by its graphdriver id, is part of something else: a container of an image that is gone.
   */
  async prune(isUsed: (layerId: string) => boolean): Promise<Digest[]> {
    await this.sweep();
    return withLock(this.#content.locks, IMAGES_LOCK, async () => {
      const layers = (await this.#content.layers.list()).map((record) => record.chainId);
      const used = layers.filter((chainId) => isUsed(chainId.slice(chainId.indexOf(':') + 1)));
      const candidates = [...(await this.#content.blobs.list()), ...layers].filter((digest) => !used.includes(digest));
      return collect(this.#content, this.#unpacker, await this.#content.index.read(), candidates);
    });
  }

  /** Deletes what dead processes left unfinished, and what nobody resumed for a week. Every pull begins with it. */
  async sweep(): Promise<void> {
    await this.#content.sweep();
    await collectAbandoned(this.#content, this.#unpacker);
  }

  /** The first half of a removal: what is left of the index, and what may be deleted then. */
  async #unname(
    entries: IndexEntry[],
    text: string,
    options: RemoveOptions,
  ): Promise<{ entries: IndexEntry[]; result: Omit<RemovedImage, 'deleted'> & { candidates: Digest[] } }> {
    const { stored, named } = resolveImage(await loadImages(this.#content, entries), text);
    if (named.length === 0 && !options.force) refuseSeveralRepositories(stored, text);
    const going = named.length > 0 ? withOwnDigests(stored, named) : stored.entries;
    const left = entries.filter((entry) => !going.includes(entry));
    const untagged = going.flatMap((entry) => (entry.name ? [familiarReference(parseReference(entry.name))] : []));
    if (going.length < stored.entries.length) return { entries: left, result: { untagged, candidates: [] } };

    await refuseUsed(stored.image, text, options);
    const candidates: Digest[] = [];
    for (const entry of stored.entries)
      candidates.push(...contentOf(entry, await readDocuments(this.#content, entry.descriptor.digest)));
    return { entries: left, result: { untagged, id: stored.image.id, candidates } };
  }

  async #load(): Promise<Map<Digest, StoredImage>> {
    return loadImages(this.#content, await this.#content.index.read());
  }

  /** Runs a pull or import with a lease. What it brought and nothing names afterwards is deleted, unless it can go on. */
  async #leased<T>(failures: 'resumable' | 'final', work: (lease: Lease) => Promise<T>): Promise<T> {
    await this.sweep();
    const lease = await this.#content.leases.acquire();
    try {
      const result = await work(lease);
      await this.#end(lease);
      return result;
    } catch (error) {
      if (failures === 'resumable' && isResumable(error)) await lease.abandon();
      else await this.#end(lease);
      throw error;
    }
  }

  async #end(lease: Lease): Promise<void> {
    await lease.release();
    await collectLocked(this.#content, this.#unpacker, lease.digests);
  }

  async #name(named: readonly { name: string | undefined; image: AcquiredImage }[]): Promise<void> {
    await this.#content.index.update(async (before) => {
      let entries = before;
      for (const { name, image } of named) {
        const { descriptor, indexDigest } = image;
        entries = withName(entries, { descriptor, ...(name && { name }), ...(indexDigest && { indexDigest }) });
      }
      return { entries, result: undefined };
    });
  }
}

/** Puts an entry in. The image that had its name stays without it; a nameless entry goes when the image has a name. */
function withName(entries: readonly IndexEntry[], added: IndexEntry): IndexEntry[] {
  const { digest } = added.descriptor;
  const isSame = (entry: IndexEntry): boolean => entry.descriptor.digest === digest;
  if (added.name === undefined) return entries.some(isSame) ? [...entries] : [...entries, added];
  const result: IndexEntry[] = [];
  for (const entry of entries) {
    if (isSame(entry) && (isNameless(entry) || entry.name === added.name)) continue;
    if (entry.name !== added.name) {
      result.push(entry);
      continue;
    }
    const others = entries.filter((other) => other !== entry && other.descriptor.digest === entry.descriptor.digest);
    if (others.length === 0) result.push(withoutName(entry));
  }
  return [...result, added];
}

/** The names that go with the given ones: digests of a repository whose last tag goes. */
function withOwnDigests(stored: StoredImage, named: readonly IndexEntry[]): readonly IndexEntry[] {
  const left = stored.entries.filter((entry) => !named.includes(entry));
  const repositories = new Set(named.map((entry) => repositoryName(parseReference(entry.name!))));
  const isOwnDigest = (entry: IndexEntry): boolean => {
    if (entry.name === undefined) return true;
    const reference = parseReference(entry.name);
    return reference.digest !== undefined && repositories.has(repositoryName(reference));
  };
  return left.every(isOwnDigest) ? stored.entries : named;
}

function refuseSeveralRepositories({ image, entries }: StoredImage, text: string): void {
  const names = entries.flatMap((entry) => (entry.name ? [repositoryName(parseReference(entry.name))] : []));
  if (new Set(names).size > 1)
    throw new LcowError(
      'IN_USE',
      `conflict: unable to delete ${text} (must be forced) - image is referenced in multiple repositories`,
      { details: { references: image.references } },
    );
}

async function refuseUsed(image: Image, text: string, options: RemoveOptions): Promise<void> {
  const users = (await options.usedBy?.(image)) ?? [];
  if (users.length > 0)
    throw new LcowError(
      'IN_USE',
      `conflict: unable to remove repository reference "${text}" - container ${users.join(', ')} is using its referenced image ${image.id.slice(7, 19)}`,
      { details: { usedBy: users } },
    );
}

function platformOf(text: string | undefined): Platform {
  return text === undefined ? hostPlatform() : parsePlatform(text);
}

function timeOf(created: string | undefined): number {
  const time = created === undefined ? Number.NaN : Date.parse(created);
  return Number.isNaN(time) ? 0 : time;
}
