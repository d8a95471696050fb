import { readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { LcowError } from '../../errors/index.js';
import { asIoError, withLock, writeFileAtomic } from '../../state/index.js';
import { isDigest, type Digest } from '../digest.js';
import { parseJson } from '../json.js';
import { checked, descriptorSchema, type Descriptor } from '../manifest.js';
import { OCI_INDEX } from '../media-types.js';
import { formatReference, parseReference } from '../reference.js';

/** The name of an image: full reference in our store, a tag or anything else in other layouts (annotations.md). */
export const REF_NAME = 'org.opencontainers.image.ref.name';
/** What the name resolved to when it was pulled: an index, where the entry itself is the chosen platform's manifest. */
export const INDEX_DIGEST = 'dev.lcow.image.index';

const LAYOUT_FILE = 'oci-layout';
const INDEX_FILE = 'index.json';
/** Largest index.json we read, in bytes. */
const MAX_INDEX_BYTES = 32 * 1024 * 1024;

/** Holder of the images' lock: whoever changes index.json, deletes blobs or claims them. */
export const IMAGES_LOCK = 'images';

const layoutSchema = z.looseObject({ imageLayoutVersion: z.string() });
const layoutIndexSchema = z.looseObject({ schemaVersion: z.literal(2), manifests: z.array(descriptorSchema) });

/** One image of the store: a named or nameless manifest. */
export interface IndexEntry {
  /** The manifest of the image, with its platform. */
  readonly descriptor: Descriptor;
  /** Full reference; undefined when the name went to another image. */
  readonly name?: string;
  /** The index the manifest was chosen from. */
  readonly indexDigest?: Digest;
}

/** Reads the marker and index of any OCI image layout folder (image-spec image-layout.md). */
export async function readLayout(folder: string): Promise<Descriptor[]> {
  const marker = await readSmall(join(folder, LAYOUT_FILE));
  if (!marker) throw new LcowError('BAD_MANIFEST', `${folder} is no OCI image layout: it has no ${LAYOUT_FILE} file.`);
  checkLayoutVersion(marker, join(folder, LAYOUT_FILE));
  const index = await readSmall(join(folder, INDEX_FILE));
  if (!index) throw new LcowError('BAD_MANIFEST', `${folder} is no OCI image layout: it has no ${INDEX_FILE} file.`);
  return parseLayoutIndex(index, join(folder, INDEX_FILE));
}

/** @throws LcowError BAD_MANIFEST when the oci-layout file is not of version 1. */
export function checkLayoutVersion(bytes: Uint8Array, what: string): void {
  const { imageLayoutVersion } = checked(layoutSchema, parseJson(bytes, what), what);
  if (!imageLayoutVersion.startsWith('1.'))
    throw new LcowError('BAD_MANIFEST', `${what} is of the unknown version "${imageLayoutVersion}".`);
}

/** @throws LcowError BAD_MANIFEST when the index.json of a layout is not well formed. */
export function parseLayoutIndex(bytes: Uint8Array, what: string): Descriptor[] {
  return checked(layoutIndexSchema, parseJson(bytes, what), what).manifests;
}

async function readSmall(path: string): Promise<Buffer | undefined> {
  try {
    const { size } = await stat(path);
    if (size > MAX_INDEX_BYTES) throw new LcowError('BAD_MANIFEST', `${path} has ${size} bytes, which is too much.`);
    return await readFile(path);
  } catch (error) {
    if (['ENOENT', 'ENOTDIR'].includes((error as NodeJS.ErrnoException).code ?? '')) return undefined;
    throw asIoError(error, `${path} cannot be read`);
  }
}

/** The index.json of our store. Changes are atomic and under the images' lock. */
export class LayoutIndex {
  readonly #folder: string;
  readonly #locks: string;

  constructor(contentFolder: string, locksFolder: string) {
    this.#folder = contentFolder;
    this.#locks = locksFolder;
  }

  /** Makes the marker file of an empty layout; checks the one that is there. */
  async initialise(): Promise<void> {
    const path = join(this.#folder, LAYOUT_FILE);
    const marker = await readSmall(path);
    if (marker) checkLayoutVersion(marker, path);
    else await writeFileAtomic(path, '{"imageLayoutVersion":"1.0.0"}');
    await withLock(this.#locks, IMAGES_LOCK, async () => {
      if (!(await readSmall(join(this.#folder, INDEX_FILE)))) await this.#write([]);
    });
  }

  /**
   * All images.
   * @throws LcowError BAD_MANIFEST when index.json is damaged. It is then never written to, so that nothing is lost.
   */
  async read(): Promise<IndexEntry[]> {
    const path = join(this.#folder, INDEX_FILE);
    const bytes = await readSmall(path);
    if (!bytes) return [];
    try {
      return parseLayoutIndex(bytes, path).map(toEntry);
    } catch (cause) {
      throw new LcowError('BAD_MANIFEST', `The list of images ${path} is damaged.`, {
        cause,
        hint: 'No image is lost: its blobs are still there. Repair the file, or move it away and import or pull again.',
      });
    }
  }

  /** Changes the list of images under the images' lock. */
  async update<T>(change: (entries: IndexEntry[]) => Promise<{ entries: IndexEntry[]; result: T }>): Promise<T> {
    return withLock(this.#locks, IMAGES_LOCK, async () => {
      const before = await this.read();
      const { entries, result } = await change(before);
      if (entries !== before) await this.#write(entries);
      return result;
    });
  }

  async #write(entries: readonly IndexEntry[]): Promise<void> {
    const index = { schemaVersion: 2, mediaType: OCI_INDEX, manifests: entries.map(toDescriptor) };
    await writeFileAtomic(join(this.#folder, INDEX_FILE), `${JSON.stringify(index, undefined, 2)}\n`);
  }
}

/** Takes our annotations off a descriptor. A name that is no reference of ours stays where it is and names nothing. */
function toEntry(descriptor: Descriptor): IndexEntry {
  const { [REF_NAME]: refName, [INDEX_DIGEST]: indexDigest, ...others } = descriptor.annotations ?? {};
  const name = refName !== undefined && isCanonical(refName) ? refName : undefined;
  const annotations = name === undefined && refName !== undefined ? { ...others, [REF_NAME]: refName } : others;
  return {
    descriptor: { ...descriptor, annotations },
    ...(name !== undefined && { name }),
    ...(isDigest(indexDigest) && { indexDigest }),
  };
}

/** Whether nobody named the entry, not even another tool. */
export function isNameless(entry: IndexEntry): boolean {
  return entry.name === undefined && entry.descriptor.annotations?.[REF_NAME] === undefined;
}

/** The entry of an image whose name went to another. */
export function withoutName({ descriptor, indexDigest }: IndexEntry): IndexEntry {
  return { descriptor, ...(indexDigest !== undefined && { indexDigest }) };
}

function isCanonical(name: string): boolean {
  try {
    return formatReference(parseReference(name)) === name;
  } catch {
    return false;
  }
}

function toDescriptor({ descriptor, name, indexDigest }: IndexEntry): Descriptor {
  const annotations = {
    ...descriptor.annotations,
    ...(name !== undefined && { [REF_NAME]: name }),
    ...(indexDigest !== undefined && { [INDEX_DIGEST]: indexDigest }),
  };
  return { ...descriptor, annotations };
}
