/** Writes OCI image layouts (image-spec 1.0): blobs by digest, manifests, indices. */
import { createHash } from 'node:crypto';
import { createWriteStream } from 'node:fs';
import { mkdir, rename, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Transform, type Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { createGzip } from 'node:zlib';
import { pipeThrough } from '../../guest/image/programs.js';

/** All times in the images: bookworm's release, so that equal contents give equal digests. */
export const EPOCH = new Date('2023-06-10T00:00:00Z');

export const MEDIA = {
  index: 'application/vnd.oci.image.index.v1+json',
  manifest: 'application/vnd.oci.image.manifest.v1+json',
  config: 'application/vnd.oci.image.config.v1+json',
  gzip: 'application/vnd.oci.image.layer.v1.tar+gzip',
  zstd: 'application/vnd.oci.image.layer.v1.tar+zstd',
} as const;

export interface Descriptor {
  readonly mediaType: string;
  readonly digest: string;
  readonly size: number;
  readonly platform?: { readonly architecture: string; readonly os: string; readonly variant?: string };
  readonly annotations?: Readonly<Record<string, string>>;
}

/** A layer as it lies in the layout. */
export interface Layer {
  readonly descriptor: Descriptor;
  /** Digest of the tar before compression. */
  readonly diffId: string;
  /** How the layer came to be, for the image's history. */
  readonly createdBy: string;
}

export interface ImageConfig {
  readonly architecture: string;
  readonly variant?: string;
  readonly Cmd: readonly string[];
  readonly Env?: readonly string[];
  readonly Labels?: Readonly<Record<string, string>>;
}

function meter(): { transform: Transform; digest: () => string; sizeBytes: () => number } {
  const hash = createHash('sha256');
  let sizeBytes = 0;
  const transform = new Transform({
    transform(chunk: Buffer, _encoding, done) {
      hash.update(chunk);
      sizeBytes += chunk.length;
      done(null, chunk);
    },
  });
  return { transform, digest: () => `sha256:${hash.digest('hex')}`, sizeBytes: () => sizeBytes };
}

/** An image layout under construction, in a folder that exists and is empty. */
export class LayoutWriter {
  readonly #folder: string;

  private constructor(folder: string) {
    this.#folder = folder;
  }

  static async begin(folder: string): Promise<LayoutWriter> {
    await mkdir(join(folder, 'blobs', 'sha256'), { recursive: true });
    await writeFile(join(folder, 'oci-layout'), JSON.stringify({ imageLayoutVersion: '1.0.0' }));
    return new LayoutWriter(folder);
  }

  #blobPath(digest: string): string {
    return join(this.#folder, 'blobs', digest.replace(':', '/'));
  }

  /** Adds a layer from an uncompressed tar. */
  async addLayer(tar: Readable, createdBy: string, compression: 'gzip' | 'zstd' = 'gzip'): Promise<Layer> {
    const plain = meter();
    const packed = meter();
    const temporary = join(this.#folder, 'layer.partial');
    const write = async (compressed: Readable): Promise<void> =>
      pipeline(compressed, packed.transform, createWriteStream(temporary));
    if (compression === 'gzip')
      await pipeline(tar, plain.transform, createGzip(), packed.transform, createWriteStream(temporary));
    else await pipeThrough('zstd', ['--quiet', '--stdout', '-'], write, { input: tar.pipe(plain.transform) });
    const digest = packed.digest();
    await rename(temporary, this.#blobPath(digest));
    const descriptor: Descriptor = { mediaType: MEDIA[compression], digest, size: packed.sizeBytes() };
    return { descriptor, diffId: plain.digest(), createdBy };
  }

  /** Adds a JSON document as a blob. */
  async addJson(mediaType: string, value: unknown): Promise<Descriptor> {
    const content = Buffer.from(JSON.stringify(value));
    const digest = `sha256:${createHash('sha256').update(content).digest('hex')}`;
    await writeFile(this.#blobPath(digest), content);
    return { mediaType, digest, size: content.length };
  }

  /** Adds configuration and manifest of an image. @returns the manifest's descriptor, with its platform */
  async addImage(layers: readonly Layer[], image: ImageConfig): Promise<Descriptor> {
    const { architecture, variant, ...process } = image;
    const platform = { architecture, os: 'linux', ...(variant === undefined ? {} : { variant }) };
    const path = 'PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin';
    const created = EPOCH.toISOString();
    const config = await this.addJson(MEDIA.config, {
      created,
      ...platform,
      config: { ...process, Env: [path, ...(process.Env ?? [])] },
      rootfs: { type: 'layers', diff_ids: layers.map(({ diffId }) => diffId) },
      history: [
        ...layers.map(({ createdBy }) => ({ created, created_by: createdBy })),
        { created, created_by: `CMD ${JSON.stringify(process.Cmd)}`, empty_layer: true },
      ],
    });
    const manifest = { schemaVersion: 2, mediaType: MEDIA.manifest, config, layers: layers.map((l) => l.descriptor) };
    return { ...(await this.addJson(MEDIA.manifest, manifest)), platform };
  }

  /** Adds an index of manifests for several platforms. */
  async addIndex(manifests: readonly Descriptor[]): Promise<Descriptor> {
    return this.addJson(MEDIA.index, { schemaVersion: 2, mediaType: MEDIA.index, manifests });
  }

  /** Writes index.json: the layout's one image, tagged `latest`. */
  async finish(image: Descriptor): Promise<void> {
    const annotations = { 'org.opencontainers.image.ref.name': 'latest' };
    const index = { schemaVersion: 2, mediaType: MEDIA.index, manifests: [{ ...image, annotations }] };
    await writeFile(join(this.#folder, 'index.json'), JSON.stringify(index));
  }
}

/** Whether a folder holds a finished layout. */
export async function hasLayout(folder: string): Promise<boolean> {
  return stat(join(folder, 'index.json')).then(
    () => true,
    () => false,
  );
}
