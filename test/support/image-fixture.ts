import { execFile } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { buffer } from 'node:stream/consumers';
import { gzipSync } from 'node:zlib';
import { pack, type Pack } from 'tar-stream';
import type { Digest } from '../../src/images/index.js';

/** A member of a tar: content, or a whole header. */
export type Member = string | Buffer | (Partial<Parameters<Pack['entry']>[0]> & { content?: string | Buffer });

/** A tar of the given members, in order. The same members give the same bytes. */
export async function tarOf(members: Readonly<Record<string, Member>>): Promise<Buffer> {
  const archive = pack();
  for (const [name, member] of Object.entries(members)) {
    const { content, ...header } =
      typeof member === 'object' && !Buffer.isBuffer(member) ? member : { content: member };
    archive.entry({ name, mtime: new Date(0), ...header }, content ?? '');
  }
  archive.finalize();
  return buffer(archive);
}

export function sha256(bytes: Uint8Array): Digest {
  return `sha256:${createHash('sha256').update(bytes).digest('hex')}`;
}

export type Packing = 'none' | 'gzip' | 'zstd';

export async function packed(tar: Buffer, packing: Packing): Promise<Buffer> {
  if (packing === 'none') return tar;
  if (packing === 'gzip') return gzipSync(tar, { level: 1 });
  return new Promise((resolve, reject) => {
    const child = execFile('zstd', ['-q', '-c'], { encoding: 'buffer', maxBuffer: 1 << 30 }, (error, stdout) =>
      error ? reject(error) : resolve(stdout),
    );
    child.stdin!.end(tar);
  });
}

export interface FixtureOptions {
  readonly layers: readonly { readonly tar: Buffer; readonly packing?: Packing }[];
  readonly architecture?: string;
  readonly variant?: string;
  readonly config?: Record<string, unknown>;
  /** docker schema 2 media types in place of OCI's. */
  readonly docker?: boolean;
  /** Diff ids in place of the true ones. */
  readonly diffIds?: readonly string[];
}

/** An image in memory: what a registry or a layout would hold. */
export interface ImageFixture {
  readonly manifest: Buffer;
  readonly manifestDigest: Digest;
  readonly manifestType: string;
  readonly config: Buffer;
  readonly id: Digest;
  readonly layerDigests: readonly Digest[];
  readonly diffIds: readonly string[];
  /** Configuration and layers by digest. */
  readonly blobs: ReadonlyMap<Digest, Buffer>;
}

const SUFFIX: Record<Packing, string> = { none: '', gzip: '+gzip', zstd: '+zstd' };

export async function imageFixture(options: FixtureOptions): Promise<ImageFixture> {
  const blobs = new Map<Digest, Buffer>();
  const layers = [];
  for (const { tar, packing = 'gzip' } of options.layers) {
    const blob = await packed(tar, packing);
    const mediaType = options.docker
      ? 'application/vnd.docker.image.rootfs.diff.tar.gzip'
      : `application/vnd.oci.image.layer.v1.tar${SUFFIX[packing]}`;
    layers.push({ mediaType, digest: sha256(blob), size: blob.length });
    blobs.set(sha256(blob), blob);
  }
  const diffIds = options.diffIds ?? options.layers.map(({ tar }) => sha256(tar));
  const config = Buffer.from(
    JSON.stringify({
      created: '2024-01-02T03:04:05Z',
      architecture: options.architecture ?? hostArchitecture(),
      ...(options.variant && { variant: options.variant }),
      os: 'linux',
      config: { Env: ['PATH=/bin'], Cmd: ['sh'], ...options.config },
      rootfs: { type: 'layers', diff_ids: diffIds },
      history: [],
    }),
  );
  blobs.set(sha256(config), config);
  const manifestType = options.docker
    ? 'application/vnd.docker.distribution.manifest.v2+json'
    : 'application/vnd.oci.image.manifest.v1+json';
  const configType = options.docker
    ? 'application/vnd.docker.container.image.v1+json'
    : 'application/vnd.oci.image.config.v1+json';
  const manifest = Buffer.from(
    JSON.stringify({
      schemaVersion: 2,
      mediaType: manifestType,
      config: { mediaType: configType, digest: sha256(config), size: config.length },
      layers,
    }),
  );
  const layerDigests = layers.map((layer) => layer.digest);
  return {
    manifest,
    manifestDigest: sha256(manifest),
    manifestType,
    config,
    id: sha256(config),
    layerDigests,
    diffIds,
    blobs,
  };
}

export function hostArchitecture(): string {
  return process.arch === 'x64' ? 'amd64' : process.arch;
}

/** An index of images, as a registry serves it. */
export function indexOf(
  images: readonly { image: ImageFixture; platform?: Record<string, string>; annotations?: Record<string, string> }[],
): Buffer {
  const manifests = images.map(({ image, platform, annotations }) => ({
    mediaType: image.manifestType,
    digest: image.manifestDigest,
    size: image.manifest.length,
    ...(platform && { platform }),
    ...(annotations && { annotations }),
  }));
  return Buffer.from(
    JSON.stringify({ schemaVersion: 2, mediaType: 'application/vnd.oci.image.index.v1+json', manifests }),
  );
}

/** The files of an OCI image layout with these images, by path. */
export function layoutFiles(images: readonly { image: ImageFixture; refName?: string }[]): Record<string, Buffer> {
  const files: Record<string, Buffer> = { 'oci-layout': Buffer.from('{"imageLayoutVersion":"1.0.0"}') };
  const entries = images.map(({ image, refName }) => {
    for (const [digest, bytes] of [...image.blobs, [image.manifestDigest, image.manifest] as const])
      files[`blobs/sha256/${digest.slice(7)}`] = bytes;
    return {
      mediaType: image.manifestType,
      digest: image.manifestDigest,
      size: image.manifest.length,
      ...(refName !== undefined && { annotations: { 'org.opencontainers.image.ref.name': refName } }),
    };
  });
  files['index.json'] = Buffer.from(JSON.stringify({ schemaVersion: 2, manifests: entries }));
  return files;
}

export async function writeFiles(folder: string, files: Readonly<Record<string, Buffer>>): Promise<void> {
  for (const [name, bytes] of Object.entries(files)) {
    const path = join(folder, name);
    await mkdir(join(path, '..'), { recursive: true });
    await writeFile(path, bytes);
  }
}
