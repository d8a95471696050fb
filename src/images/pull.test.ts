import { randomBytes } from 'node:crypto';
import { mkdir, readFile, truncate, utimes, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { FakeRegistry } from '../../test/support/fake-registry.js';
import { hostArchitecture, imageFixture, indexOf, tarOf, type ImageFixture } from '../../test/support/image-fixture.js';
import { ImageRoot } from '../../test/support/image-root.js';
import { isLcowError, type LcowError } from '../errors/index.js';
import type { ProgressEvent, PullOptions } from './index.js';

const FAST: PullOptions = { retries: { attempts: 4, baseDelayMs: 1, maxDelayMs: 2000 } };
const AMD64 = { os: 'linux', architecture: 'amd64' };
const ARM64 = { os: 'linux', architecture: 'arm64' };
const HOST = { os: 'linux', architecture: hostArchitecture() };

let registry: FakeRegistry;
let root: ImageRoot;
/** Two layers; the second is large enough to stop in the middle of. */
let image: ImageFixture;
let name: string;

beforeEach(async () => {
  registry = await FakeRegistry.start();
  root = await ImageRoot.open();
  image = await imageFixture({
    layers: [
      { tar: await tarOf({ 'etc/a': 'a' }) },
      { tar: await tarOf({ 'data/noise': randomBytes(600_000) }), packing: 'none' },
    ],
  });
  registry.putImage('app', 'v1', image);
  name = `${registry.host}/app:v1`;
});

afterEach(async () => {
  await registry[Symbol.asyncDispose]();
  await root[Symbol.asyncDispose]();
});

async function failure(action: Promise<unknown>): Promise<LcowError> {
  const error: unknown = await action.then(
    () => undefined,
    (reason: unknown) => reason,
  );
  if (isLcowError(error)) return error;
  throw error ?? new Error('it succeeded');
}

/** Nothing half-made: no layer without a record, no lease, no unnamed blob, and no unfinished download if so wanted. */
async function expectNothingLeft(): Promise<void> {
  expect(await root.blobs()).toEqual([]);
  expect(await root.ingests()).toEqual([]);
  expect(await root.leases()).toEqual([]);
  expect(await root.driver.list()).toEqual([]);
  expect(await root.store.list()).toEqual([]);
}

const bigLayer = (): { digest: string; bytes: Buffer } => {
  const digest = image.layerDigests[1]!;
  return { digest, bytes: image.blobs.get(digest)! };
};

describe('a pull', () => {
  test('brings documents, blobs and layers, and names the image', async () => {
    const pulled = await root.store.pull(name, FAST);
    expect(pulled).toMatchObject({
      id: image.id,
      references: [name],
      digestReferences: [`${registry.host}/app@${image.manifestDigest}`],
      manifestDigest: image.manifestDigest,
      pulledDigest: image.manifestDigest,
      upToDate: false,
      created: '2024-01-02T03:04:05Z',
    });
    expect(pulled.layers.map((layer) => layer.diffId)).toEqual(image.diffIds);
    expect(await root.driver.list()).toEqual(pulled.layers.map((layer) => layer.chainId.slice(7)).sort());
    expect(bigLayer().bytes.equals(await root.driver.tar(pulled.layers[1]!.chainId.slice(7)))).toBe(true);
    expect(await root.ingests()).toEqual([]);
    expect(await root.leases()).toEqual([]);
  });

  test('of what is here already fetches nothing but the digest', async () => {
    await root.store.pull(name, FAST);
    registry.requests.length = 0;
    expect(await root.store.pull(name, FAST)).toMatchObject({ upToDate: true, id: image.id });
    expect(registry.seen(/manifests|blobs/).map(({ method }) => method)).toEqual(['HEAD']);
  });

  test('by digest ignores the tag beside it, and is found by name and digest', async () => {
    const byDigest = `${registry.host}/app:nonsense@${image.manifestDigest}`;
    expect((await root.store.pull(byDigest, FAST)).references).toEqual([]);
    expect((await root.store.resolve(`${registry.host}/app@${image.manifestDigest}`)).id).toBe(image.id);
  });

  test('works with docker’s media types', async () => {
    const docker = await imageFixture({ layers: [{ tar: await tarOf({ x: 'x' }) }], docker: true });
    registry.putImage('docker', 'latest', docker);
    expect((await root.store.pull(`${registry.host}/docker`, FAST)).id).toBe(docker.id);
  });

  test('works with gzip, zstd and uncompressed layers, whatever their media types say', async () => {
    const tar = await tarOf({ 'bin/many': Buffer.alloc(3_000_000, 'lcow ') });
    const other = await tarOf({ 'bin/other': randomBytes(300_000) });
    const mixed = await imageFixture({
      layers: [
        { tar, packing: 'zstd' },
        { tar: other, packing: 'zstd' },
        { tar: await tarOf({ c: 'c' }), packing: 'none' },
      ],
      docker: true,
    });
    registry.putImage('mixed', 'latest', mixed);
    const pulled = await root.store.pull(`${registry.host}/mixed`, FAST);
    expect(tar.equals(await root.driver.tar(pulled.layers[0]!.chainId.slice(7)))).toBe(true);
    expect(pulled.sizeBytes).toBeGreaterThan(3_300_000);
  });

  test('of an image without layers works', async () => {
    const empty = await imageFixture({ layers: [] });
    registry.putImage('empty', 'latest', empty);
    expect((await root.store.pull(`${registry.host}/empty`, FAST)).layers).toEqual([]);
  });

  test('moves a name that went to a new image, and the old image stays without one', async () => {
    await root.store.pull(name, FAST);
    const next = await imageFixture({ layers: [{ tar: await tarOf({ b: 'b' }) }] });
    registry.putImage('app', 'v1', next);
    expect((await root.store.pull(name, FAST)).id).toBe(next.id);
    expect((await root.store.list()).map(({ repository, id }) => [repository, id]).sort()).toEqual(
      [
        [`${registry.host}/app`, next.id],
        ['<none>', image.id],
      ].sort(),
    );
  });

  test('downloads a layer that occurs twice once, and links its second copy', async () => {
    const tar = await tarOf({ same: 'same' });
    const twice = await imageFixture({ layers: [{ tar }, { tar: await tarOf({ b: 'b' }) }, { tar }] });
    registry.putImage('twice', 'latest', twice);
    const pulled = await root.store.pull(`${registry.host}/twice`, FAST);
    expect(registry.seen(new RegExp(`blobs/${twice.layerDigests[0]!}`))).toHaveLength(1);
    expect(root.driver.applied).toHaveLength(2);
    expect(root.driver.linked).toEqual([pulled.layers[2]!.chainId.slice(7)]);
  });

  test('links a layer that another image has above other layers, and skips one it has in the same place', async () => {
    const [base, top] = [await tarOf({ base: '1' }), await tarOf({ top: '2' })];
    registry.putImage('one', 'latest', await imageFixture({ layers: [{ tar: base }, { tar: top }] }));
    registry.putImage('two', 'latest', await imageFixture({ layers: [{ tar: base }], config: { User: 'x' } }));
    registry.putImage('three', 'latest', await imageFixture({ layers: [{ tar: top }] }));
    await root.store.pull(`${registry.host}/one`, FAST);
    const events: ProgressEvent[] = [];
    await root.store.pull(`${registry.host}/two`, { ...FAST, onProgress: (event) => events.push(event) });
    await root.store.pull(`${registry.host}/three`, FAST);
    expect(root.driver.applied).toHaveLength(2);
    expect(root.driver.linked).toHaveLength(1);
    expect(events.at(-1)?.phase).toBe('exists');
  });

  test('reports each layer’s phases in order, with the size from the manifest', async () => {
    const events: ProgressEvent[] = [];
    await root.store.pull(name, { ...FAST, onProgress: (event) => events.push(event) });
    const layer = bigLayer();
    const own = events.filter((event) => event.layer === layer.digest.slice(7, 19));
    expect([...new Set(own.map(({ phase }) => phase))]).toEqual([
      'waiting',
      'downloading',
      'verifying',
      'extracting',
      'done',
    ]);
    expect(own.every(({ total, current }) => total === layer.bytes.length && current <= total)).toBe(true);
    expect(own.at(-1)).toMatchObject({ current: layer.bytes.length });
  });

  test('converts at most two layers at once', async () => {
    const layers = [];
    for (let index = 0; index < 6; index++) layers.push({ tar: await tarOf({ [`f${index}`]: randomBytes(200_000) }) });
    registry.putImage('many', 'latest', await imageFixture({ layers }));
    await root.store.pull(`${registry.host}/many`, FAST);
    expect(root.driver.busiest).toBeLessThanOrEqual(2);
  });

  test('fetches again what the store lost', async () => {
    const pulled = await root.store.pull(name, FAST);
    await root.driver.remove(pulled.layers[1]!.chainId.slice(7));
    const again = await root.store.pull(name, FAST);
    expect(again.upToDate).toBe(false);
    expect(await root.driver.exists(again.layers[1]!.chainId.slice(7))).toBe(true);
  });

  test('makes a layer again that a killed process had filled but not recorded', async () => {
    const chain = image.diffIds[0]!.slice(7);
    await root.driver.applyDiff(chain, undefined, [Buffer.from('cut off')] as unknown as AsyncIterable<Uint8Array>);
    await root.store.pull(name, FAST);
    expect(await root.driver.tar(chain)).toEqual(await tarOf({ 'etc/a': 'a' }));
  });
});

describe('an index', () => {
  test('gives the image of the wanted platform, and is kept', async () => {
    const arm = await imageFixture({
      layers: [{ tar: await tarOf({ arm: '' }) }],
      architecture: 'arm64',
      variant: 'v8',
    });
    const amd = await imageFixture({ layers: [{ tar: await tarOf({ amd: '' }) }], architecture: 'amd64' });
    const index = indexOf([
      { image: amd, platform: { os: 'unknown', architecture: 'unknown' } },
      { image: arm, platform: { ...ARM64, variant: 'v8' } },
      { image: amd, platform: AMD64 },
    ]);
    registry.putImage('multi', 'arm', arm);
    registry.putImage('multi', 'amd', amd);
    registry.putManifest('multi', 'latest', index, 'application/vnd.oci.image.index.v1+json');
    const multi = `${registry.host}/multi`;
    const pulled = await root.store.pull(multi, { ...FAST, platform: 'linux/arm64' });
    expect(pulled.id).toBe(arm.id);
    expect(pulled.digestReferences).toEqual([`${multi}@${pulled.pulledDigest}`]);
    expect(await root.blobs()).toContain(pulled.pulledDigest.slice(7));
    expect((await root.store.pull(multi, { ...FAST, platform: 'linux/arm64' })).upToDate).toBe(true);
    // The same index, another platform: not what is here.
    expect((await root.store.pull(multi, { ...FAST, platform: 'linux/amd64' })).id).toBe(amd.id);
    expect((await root.store.resolve(`${multi}@${pulled.pulledDigest}`)).id).toBe(amd.id);
  });

  test('without the wanted platform is refused with what there is', async () => {
    registry.putManifest(
      'multi',
      'latest',
      indexOf([
        { image, platform: { os: 'linux', architecture: 's390x' } },
        { image, platform: { os: 'windows', architecture: 'amd64' } },
      ]),
      'application/vnd.oci.image.index.v1+json',
    );
    const error = await failure(root.store.pull(`${registry.host}/multi`, { ...FAST, platform: 'linux/arm/v7' }));
    expect(error.code).toBe('NO_MATCHING_PLATFORM');
    expect(error.message).toMatch(/linux\/arm\/v7 in 127.*multi:latest: it offers linux\/s390x, windows\/amd64/);
    await expectNothingLeft();
  });

  test('may leave the platform of a single image to its configuration', async () => {
    registry.putImage('one', 'plain', image);
    registry.putManifest('one', 'latest', indexOf([{ image }]), 'application/vnd.oci.image.index.v1+json');
    expect((await root.store.pull(`${registry.host}/one`, FAST)).references).toEqual([`${registry.host}/one:latest`]);
  });

  test('that lists a manifest with a wrong size is refused', async () => {
    const index = Buffer.from(
      indexOf([{ image, platform: HOST }])
        .toString()
        .replace(/"size":\d+/, '"size":1'),
    );
    registry.putManifest('bad', 'latest', index, 'application/vnd.oci.image.index.v1+json');
    registry.putImage('bad', 'x', image);
    expect((await failure(root.store.pull(`${registry.host}/bad`, FAST))).code).toBe('DIGEST_MISMATCH');
  });
});

test('an image of another architecture is refused before its layers are fetched', async () => {
  const foreign = await imageFixture({ layers: [{ tar: await tarOf({ x: '' }) }], architecture: 's390x' });
  registry.putImage('foreign', 'latest', foreign);
  const error = await failure(root.store.pull(`${registry.host}/foreign`, FAST));
  expect(error.code).toBe('NO_MATCHING_PLATFORM');
  expect(error.message).toContain('it offers linux/s390x');
  expect(registry.seen(new RegExp(foreign.layerDigests[0]!))).toEqual([]);
  await expectNothingLeft();
});

test('a pull that is aborted ends at once and leaves no layer half-made', async () => {
  const abort = new AbortController();
  registry.misbehave((request, response) => {
    if (!request.path.endsWith(bigLayer().digest)) return false;
    response.writeHead(200, { 'content-length': bigLayer().bytes.length }).write('x', () => abort.abort());
    return true;
  });
  expect((await failure(root.store.pull(name, { ...FAST, signal: abort.signal }))).code).toBe('CANCELLED');
  const records = root.driver.applied;
  expect(await root.driver.list()).toEqual(records);
  registry.behave();
  await root.store.pull(name, FAST);
});

test('a partial download that was damaged is fetched anew by the pull after', async () => {
  const { digest, bytes } = bigLayer();
  const partial = join(root.content, 'ingest', `sha256-${digest.slice(7)}.partial`);
  await mkdir(join(root.content, 'ingest'), { recursive: true });
  await writeFile(partial, randomBytes(1000));
  expect((await failure(root.store.pull(name, FAST))).code).toBe('DIGEST_MISMATCH');
  await root.store.pull(name, FAST);
  expect(bytes.equals(await readFile(join(root.content, 'blobs', 'sha256', digest.slice(7))))).toBe(true);
});

test('partial downloads are swept after a week, and what dead processes spooled at once', async () => {
  await root.store.pull(name, FAST);
  const ingest = join(root.content, 'ingest');
  const [fresh, stale, spool] = [
    `sha256-${'1'.repeat(64)}.partial`,
    `sha256-${'2'.repeat(64)}.partial`,
    'spool-999999999-1-0123abcd',
  ];
  for (const file of [fresh, stale, spool]) await writeFile(join(ingest, file), 'x');
  const old = new Date(Date.now() - 8 * 24 * 3600 * 1000);
  await utimes(join(ingest, stale), old, old);
  await root.store.sweep();
  expect(await root.ingests()).toEqual([fresh]);
});

test('two stores on one root that pull the same image at once do the work once', async () => {
  const other = await ImageRoot.open(root.folder);
  const [one, two] = await Promise.all([root.store.pull(name, FAST), other.store.pull(name, FAST)]);
  expect(one.id).toBe(two.id);
  expect(root.driver.applied.length + other.driver.applied.length).toBe(2);
  expect(registry.seen(new RegExp(bigLayer().digest))).toHaveLength(1);
});

test('a damaged list of images is an error that changes nothing', async () => {
  await root.store.pull(name, FAST);
  const path = join(root.content, 'index.json');
  await truncate(path, 40);
  const damaged = await readFile(path);
  for (const action of [() => root.store.pull(name, FAST), () => root.store.list(), () => root.store.remove(name)]) {
    const error = await failure(action());
    expect(error.code).toBe('BAD_MANIFEST');
    expect(error.message).toContain(path);
  }
  expect(await readFile(path)).toEqual(damaged);
  expect(await root.driver.list()).toHaveLength(2);
});
