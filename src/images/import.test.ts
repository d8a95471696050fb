import { execFileSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { gzipSync } from 'node:zlib';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import {
  hostArchitecture,
  imageFixture,
  indexOf,
  layoutFiles,
  packed,
  sha256,
  tarOf,
  writeFiles,
  type ImageFixture,
} from '../../test/support/image-fixture.js';
import { ImageRoot } from '../../test/support/image-root.js';
import { isLcowError, type ErrorCode, type LcowError } from '../errors/index.js';
import type { ImportOptions } from './index.js';

let root: ImageRoot;
let folder: string;
let image: ImageFixture;
let layerTar: Buffer;

beforeEach(async () => {
  root = await ImageRoot.open();
  folder = await mkdtemp(join(tmpdir(), 'lcow-import-'));
  layerTar = await tarOf({ 'bin/noise': randomBytes(200_000) });
  image = await imageFixture({ layers: [{ tar: await tarOf({ 'etc/a': 'a' }) }, { tar: layerTar }] });
});

afterEach(async () => {
  await root[Symbol.asyncDispose]();
  await rm(folder, { recursive: true });
});

async function file(bytes: Buffer): Promise<string> {
  const path = join(folder, 'archive');
  await writeFile(path, bytes);
  return path;
}

async function refused(source: string, options?: ImportOptions): Promise<LcowError> {
  const error: unknown = await root.store.import(source, options).then(
    () => undefined,
    (reason: unknown) => reason,
  );
  if (!isLcowError(error)) throw error ?? new Error('it was imported');
  expect(await root.blobs()).toEqual([]);
  expect(await root.ingests()).toEqual([]);
  expect(await root.leases()).toEqual([]);
  expect(await root.driver.list()).toEqual([]);
  expect((await root.indexJson()).manifests).toEqual([]);
  return error;
}

async function layout(images: Parameters<typeof layoutFiles>[0]): Promise<string> {
  await writeFiles(folder, layoutFiles(images));
  return folder;
}

describe('an OCI image layout', () => {
  test('gives its image under the name it has there', async () => {
    const [imported] = await root.store.import(await layout([{ image, refName: 'docker.io/library/app:v2' }]));
    expect(imported).toMatchObject({ id: image.id, references: ['docker.io/library/app:v2'] });
    expect(imported!.layers.map(({ digest }) => digest)).toEqual(image.layerDigests);
    expect(layerTar.equals(await root.driver.tar(imported!.layers[1]!.chainId.slice(7)))).toBe(true);
  });

  test.each<[string | undefined, string | undefined, string[]]>([
    ['app', undefined, ['docker.io/library/app:latest']],
    ['app:v1', undefined, ['docker.io/library/app:v1']],
    ['latest', undefined, []],
    ['3.20', undefined, []],
    [undefined, undefined, []],
    ['Not A Name', undefined, []],
    ['latest', 'mine', ['docker.io/library/mine:latest']],
    ['3.20', 'mine', ['docker.io/library/mine:3.20']],
    ['3.20', 'mine:4', ['docker.io/library/mine:4']],
    ['app', 'mine', ['docker.io/library/mine:latest']],
    [undefined, 'localhost:5000/mine', ['localhost:5000/mine:latest']],
    ['a/b:c', 'mine', ['docker.io/library/mine:latest']],
  ])('whose entry is called %s, imported as %s, is %j', async (refName, name, references) => {
    const source = await layout([{ image, ...(refName !== undefined && { refName }) }]);
    const [imported] = await root.store.import(source, { name });
    expect(imported!.references).toEqual(references);
    expect(await root.store.list()).toHaveLength(1);
  });

  test('of several images gives all of them, unless they are to have one name', async () => {
    const other = await imageFixture({ layers: [{ tar: await tarOf({ b: 'b' }) }] });
    const source = await layout([
      { image, refName: 'one:1' },
      { image: other, refName: 'two:2' },
    ]);
    expect((await refused(source, { name: 'x:y' })).message).toContain('holds 2 images');
    expect((await root.store.import(source)).map(({ id }) => id)).toEqual([image.id, other.id]);
  });

  test('of an index gives the image of the platform', async () => {
    const arm = await imageFixture({ layers: [{ tar: await tarOf({ arm: '' }) }], architecture: 'arm64' });
    const files = { ...layoutFiles([{ image }]), ...layoutFiles([{ image: arm }]) };
    const index = indexOf([
      { image, platform: { os: 'linux', architecture: hostArchitecture() } },
      { image: arm, platform: { os: 'linux', architecture: 'arm64' } },
    ]);
    files[`blobs/sha256/${sha256(index).slice(7)}`] = index;
    const entry = { mediaType: 'application/vnd.oci.image.index.v1+json', digest: sha256(index), size: index.length };
    files['index.json'] = Buffer.from(JSON.stringify({ schemaVersion: 2, manifests: [entry] }));
    await writeFiles(folder, files);
    const [imported] = await root.store.import(folder, { name: 'multi', platform: 'linux/arm64' });
    expect(imported).toMatchObject({ id: arm.id, digestReferences: [`docker.io/library/multi@${sha256(index)}`] });
    expect((await root.store.import(folder, { name: 'multi', platform: `linux/${hostArchitecture()}` }))[0]!.id).toBe(
      image.id,
    );
  });

  test('that lists the platforms of one image side by side gives the one wanted', async () => {
    const arm = await imageFixture({ layers: [{ tar: await tarOf({ arm: '' }) }], architecture: 'arm64' });
    const files = { ...layoutFiles([{ image }]), ...layoutFiles([{ image: arm }]) };
    files['index.json'] = indexOf([
      { image, platform: { os: 'linux', architecture: hostArchitecture() } },
      { image: arm, platform: { os: 'linux', architecture: 's390x' } },
    ]);
    await writeFiles(folder, files);
    expect((await root.store.import(folder, { name: 'flat' })).map(({ id }) => id)).toEqual([image.id]);
  });

  test.each<[string, (files: Record<string, Buffer>) => void, ErrorCode, RegExp]>([
    [
      'without its marker',
      (files) => void Reflect.deleteProperty(files, 'oci-layout'),
      'BAD_MANIFEST',
      /no OCI image layout: it has no oci-layout/,
    ],
    ['without an index', (files) => void Reflect.deleteProperty(files, 'index.json'), 'BAD_MANIFEST', /no index\.json/],
    [
      'of version 2',
      (files) => (files['oci-layout'] = Buffer.from('{"imageLayoutVersion":"2.0.0"}')),
      'BAD_MANIFEST',
      /unknown version "2.0.0"/,
    ],
    [
      'without images',
      (files) => (files['index.json'] = Buffer.from('{"schemaVersion":2,"manifests":[]}')),
      'BAD_MANIFEST',
      /holds no image/,
    ],
    [
      'that lacks a layer',
      (files) => void Reflect.deleteProperty(files, `blobs/sha256/${image.layerDigests[1]!.slice(7)}`),
      'BAD_MANIFEST',
      /lacks the blob/,
    ],
    [
      'with a damaged layer',
      (files) => (files[`blobs/sha256/${image.layerDigests[1]!.slice(7)}`]![9] = 99),
      'DIGEST_MISMATCH',
      /has the digest/,
    ],
    [
      'with a damaged manifest',
      (files) => (files[`blobs/sha256/${image.manifestDigest.slice(7)}`] = Buffer.from('{}')),
      'DIGEST_MISMATCH',
      /digest of its name/,
    ],
  ])('%s is refused, and nothing is left', async (_, damage, code, message) => {
    const files = layoutFiles([{ image, refName: 'app' }]);
    damage(files);
    await writeFiles(folder, files);
    const error = await refused(folder);
    expect(error.code).toBe(code);
    expect(error.message).toMatch(message);
  });
});

const archiveOf = (files: Record<string, Buffer>): Promise<Buffer> => tarOf(files);

describe('an OCI archive', () => {
  test.each(['none', 'gzip', 'zstd'] as const)('packed with %s is imported', async (packing) => {
    const archive = await packed(await archiveOf(layoutFiles([{ image, refName: 'app:v1' }])), packing);
    const [imported] = await root.store.import(await file(archive));
    expect(imported).toMatchObject({ id: image.id, references: ['docker.io/library/app:v1'] });
    expect(await root.blobs()).toHaveLength(4);
  });

  test('is imported from a stream as well', async () => {
    const path = await file(gzipSync(await archiveOf(layoutFiles([{ image, refName: 'app:v1' }]))));
    expect((await root.store.import(createReadStream(path)))[0]!.id).toBe(image.id);
    expect(await root.blobs()).toHaveLength(4);
    expect(await root.ingests()).toEqual([]);
  });

  test('keeps none of the blobs of other platforms', async () => {
    const files = layoutFiles([{ image, refName: 'app:v1' }]);
    const stray = randomBytes(1000);
    files[`blobs/sha256/${sha256(stray).slice(7)}`] = stray;
    await root.store.import(await file(await archiveOf(files)));
    expect(await root.blobs()).not.toContain(sha256(stray).slice(7));
  });

  test('with a damaged blob is refused', async () => {
    const files = layoutFiles([{ image, refName: 'app:v1' }]);
    files[`blobs/sha256/${image.layerDigests[1]!.slice(7)}`] = randomBytes(100);
    expect((await refused(await file(await archiveOf(files)))).code).toBe('DIGEST_MISMATCH');
  });

  test('that lacks a blob is refused', async () => {
    const files = layoutFiles([{ image, refName: 'app:v1' }]);
    Reflect.deleteProperty(files, `blobs/sha256/${image.layerDigests[1]!.slice(7)}`);
    expect((await refused(await file(await archiveOf(files)))).message).toMatch(
      /names the blob .* but does not hold it/,
    );
  });

  test('that is cut off anywhere is refused, and nothing is left', async () => {
    const archive = await archiveOf(layoutFiles([{ image, refName: 'app:v1' }]));
    const codes = new Set<ErrorCode>();
    for (let cut = 100; cut < archive.length - 1024; cut += Math.ceil(archive.length / 17))
      codes.add((await refused(await file(archive.subarray(0, cut)))).code);
    expect([...codes].sort()).toEqual(expect.arrayContaining(['BAD_TAR']));
    expect((await refused(await file(gzipSync(archive).subarray(0, 5000)))).code).toBe('BAD_TAR');
  });

  test('with names that climb out of it writes nothing there', async () => {
    const files = await tarOf({
      'oci-layout': '{"imageLayoutVersion":"1.0.0"}',
      '../../../../tmp/lcow-escaped': 'x',
      '/tmp/lcow-escaped': 'x',
      'blobs/sha256/../../lcow-escaped': 'x',
      'index.json': '{"schemaVersion":2,"manifests":[]}',
    });
    await refused(await file(files));
    await expect(readFile('/tmp/lcow-escaped')).rejects.toThrow(/ENOENT/);
  });
});

describe('a docker-save archive', () => {
  const hex = 'c'.repeat(64);
  const saved = (layers: string[], tags: string[] | null = ['app:v1', 'app:v2']): string =>
    JSON.stringify([{ Config: `${image.id.slice(7)}.json`, RepoTags: tags, Layers: layers }]);
  let first: Buffer;

  beforeEach(async () => {
    first = await tarOf({ 'etc/a': 'a' });
  });

  test('of the first format is imported, with its layers as links to one another', async () => {
    image = await imageFixture({ layers: [{ tar: first }, { tar: layerTar }, { tar: first }] });
    const archive = await tarOf({
      [`${image.id.slice(7)}.json`]: image.config,
      [`${hex}/`]: { type: 'directory' },
      [`${hex}/VERSION`]: '1.0',
      [`${hex}/json`]: '{}',
      [`${hex}/layer.tar`]: first,
      [`${'d'.repeat(64)}/layer.tar`]: layerTar,
      [`${'e'.repeat(64)}/layer.tar`]: { type: 'symlink', linkname: `../${hex}/layer.tar` },
      'manifest.json': saved([`${hex}/layer.tar`, `${'d'.repeat(64)}/layer.tar`, `${'e'.repeat(64)}/layer.tar`]),
      repositories: '{}',
    });
    const [imported] = await root.store.import(await file(archive));
    expect(imported).toMatchObject({
      id: image.id,
      references: ['docker.io/library/app:v1', 'docker.io/library/app:v2'],
    });
    expect(imported!.layers.map(({ diffId }) => diffId)).toEqual(image.diffIds);
    // Two layers, configuration, manifest; not what legacy files held.
    expect(await root.blobs()).toHaveLength(4);
    expect(root.driver.linked).toHaveLength(1);
  });

  test('whose manifest comes first and whose layers are hard links and gzip is imported', async () => {
    const archive = await tarOf({
      'manifest.json': saved([`${hex}.tar.gz`, 'other.tar'], null),
      [`sha256:${image.id.slice(7)}`]: image.config,
      [`${hex}.tar.gz`]: gzipSync(first),
      'real.tar': layerTar,
      'other.tar': { type: 'link', linkname: './real.tar' },
      [`${image.id.slice(7)}.json`]: image.config,
    });
    const [imported] = await root.store.import(await file(gzipSync(archive)), { name: 'given' });
    expect(imported!.references).toEqual(['docker.io/library/given:latest']);
  });

  test('as docker 25 writes it, both kinds in one, is imported by its index', async () => {
    const files = layoutFiles([{ image, refName: 'v1' }]);
    const index = JSON.parse(files['index.json']!.toString()) as {
      manifests: { annotations: Record<string, string> }[];
    };
    index.manifests[0]!.annotations['io.containerd.image.name'] = 'docker.io/library/app:v1';
    files['index.json'] = Buffer.from(JSON.stringify(index));
    files['manifest.json'] = Buffer.from('[]');
    const [imported] = await root.store.import(await file(await archiveOf(files)));
    expect(imported!.references).toEqual(['docker.io/library/app:v1']);
  });

  test.each<[string, (files: Record<string, Buffer | string>) => void, ErrorCode, RegExp]>([
    [
      'without manifest.json',
      (files) => void Reflect.deleteProperty(files, 'manifest.json'),
      'BAD_MANIFEST',
      /neither index\.json nor manifest\.json/,
    ],
    [
      'that lacks a layer',
      (files) => void Reflect.deleteProperty(files, `${hex}/layer.tar`),
      'BAD_TAR',
      /names the file ".*layer\.tar" but does not hold it/,
    ],
    [
      'with a damaged layer',
      (files) => (files[`${hex}/layer.tar`] = randomBytes(1024)),
      'DIGEST_MISMATCH',
      /unpacks to/,
    ],
    [
      'that names its layers by paths outside',
      (files) => (files['manifest.json'] = saved(['../../etc/passwd', 'x'])),
      'BAD_TAR',
      /does not hold it/,
    ],
    [
      'with a manifest.json that is none',
      (files) => (files['manifest.json'] = '{}'),
      'BAD_MANIFEST',
      /not a JSON array/,
    ],
    [
      'with a tag that is none',
      (files) => (files['manifest.json'] = saved([`${hex}/layer.tar`, 'l.tar'], ['NO'])),
      'BAD_REFERENCE',
      /lowercase/,
    ],
    [
      'with a circle of links',
      (files) => (files['manifest.json'] = saved(['loop/layer.tar', 'l.tar'])),
      'BAD_TAR',
      /does not hold it/,
    ],
  ])('%s is refused, and nothing is left', async (_, damage, code, message) => {
    const files: Record<string, Buffer | string> = {
      [`${image.id.slice(7)}.json`]: image.config,
      [`${hex}/layer.tar`]: first,
      'l.tar': layerTar,
      'manifest.json': saved([`${hex}/layer.tar`, 'l.tar']),
    };
    damage(files);
    const archive = await tarOf({
      ...files,
      'loop/layer.tar': { type: 'symlink', linkname: '../loop2/layer.tar' },
      'loop2/layer.tar': { type: 'symlink', linkname: '../loop/layer.tar' },
    });
    const error = await refused(await file(archive));
    expect(error.code).toBe(code);
    expect(error.message).toMatch(message);
  });
});

describe('the tar of a root file system', () => {
  const rootfs = (): Promise<Buffer> =>
    tarOf({ './': { type: 'directory' }, './bin/sh': randomBytes(5000), './etc/os-release': 'ID=x' });

  test.each(['none', 'gzip', 'zstd'] as const)('packed with %s becomes an image of one layer', async (packing) => {
    const tar = await rootfs();
    const [imported] = await root.store.import(await file(await packed(tar, packing)), {
      name: 'mine:1',
      cmd: ['/bin/sh'],
      entrypoint: ['/bin/init'],
      env: ['A=b'],
    });
    expect(imported!.references).toEqual(['docker.io/library/mine:1']);
    expect(imported!.config.config).toMatchObject({ Cmd: ['/bin/sh'], Entrypoint: ['/bin/init'], Env: ['A=b'] });
    expect(imported!.platform).toMatchObject({ os: 'linux', architecture: hostArchitecture() });
    expect(imported!.layers.map(({ diffId }) => diffId)).toEqual([sha256(tar)]);
    expect(imported!.sizeBytes).toBe(tar.length);
    expect(tar.equals(await root.driver.tar(imported!.layers[0]!.chainId.slice(7)))).toBe(true);
  });

  test('made by GNU tar is imported from a stream', async () => {
    await mkdir(join(folder, 'tree/usr/bin'), { recursive: true });
    await writeFile(join(folder, 'tree/usr/bin/x'), 'x');
    execFileSync('tar', ['-C', join(folder, 'tree'), '-czf', join(folder, 'rootfs.tgz'), '.']);
    const [imported] = await root.store.import(createReadStream(join(folder, 'rootfs.tgz')), { name: 'streamed' });
    expect(imported!.layers).toHaveLength(1);
  });

  test('needs a name', async () => {
    const error = await refused(await file(await rootfs()));
    expect(error.code).toBe('INVALID_ARGUMENT');
    expect(error.hint).toContain('--name');
  });

  test('cannot be named by a digest', async () => {
    expect((await refused(await file(await rootfs()), { name: `x@${image.id}` })).code).toBe('INVALID_ARGUMENT');
  });
});

describe('what holds no image', () => {
  test.each<[string, Buffer, ErrorCode]>([
    ['a text', Buffer.from('hello '.repeat(1000)), 'BAD_TAR'],
    ['an empty file', Buffer.alloc(0), 'BAD_TAR'],
    ['an empty tar', Buffer.alloc(10240), 'BAD_TAR'],
    ['an xz file', Buffer.from([0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00, 0, 0, 0]), 'NOT_SUPPORTED'],
    ['a gzip of noise', gzipSync(randomBytes(5000)), 'BAD_TAR'],
  ])('%s is refused', async (_, bytes, code) => {
    expect((await refused(await file(bytes), { name: 'x' })).code).toBe(code);
  });

  test('nothing is refused', async () => {
    const error = await refused(join(folder, 'not-there'));
    expect(error.code).toBe('NOT_FOUND');
    expect(error.message).toContain('not-there');
  });
});
