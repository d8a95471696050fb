import { mkdir, readFile, readdir, rm, utimes, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { PassThrough } from 'node:stream';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import {
  imageFixture,
  layoutFiles,
  sha256,
  tarOf,
  writeFiles,
  type ImageFixture,
} from '../../test/support/image-fixture.js';
import { ImageRoot } from '../../test/support/image-root.js';
import { isLcowError, type LcowError } from '../errors/index.js';
import { ContentStore } from './content/content-store.js';
import { topLayerId } from './index.js';

let root: ImageRoot;
let base: Buffer;
let counter: number;

beforeEach(async () => {
  root = await ImageRoot.open();
  base = await tarOf({ base: 'shared' });
  counter = 0;
});

afterEach(() => root[Symbol.asyncDispose]());

/** Imports an image that has the shared base layer and one of its own. */
async function have(name: string, ...more: string[]): Promise<ImageFixture> {
  const image = await imageFixture({ layers: [{ tar: base }, { tar: await tarOf({ [name]: name }) }] });
  const folder = join(root.folder, `layout-${counter++}`);
  await writeFiles(folder, layoutFiles([{ image }]));
  await root.store.import(folder, { name });
  for (const other of more) await root.store.tag(name, other);
  return image;
}

async function failure(action: Promise<unknown>): Promise<LcowError> {
  const error: unknown = await action.then(
    () => undefined,
    (reason: unknown) => reason,
  );
  if (isLcowError(error)) return error;
  throw error ?? new Error('it succeeded');
}

const names = async (): Promise<string[]> =>
  (await root.store.list()).map(({ repository, tag }) => `${repository}:${tag}`).sort();

describe('an image is found', () => {
  test('by every form of its name and its id', async () => {
    const image = await have('busybox:1.36');
    const hex = image.id.slice(7);
    for (const text of [
      'busybox:1.36',
      'docker.io/library/busybox:1.36',
      image.id,
      hex,
      hex.slice(0, 12),
      `sha256:${hex.slice(0, 5)}`,
    ])
      expect((await root.store.resolve(text)).id).toBe(image.id);
  });

  test('by its name before it is by another’s id', async () => {
    const one = await have('one:1');
    const two = await have('two:2', one.id.slice(7, 19));
    expect((await root.store.resolve(one.id.slice(7, 19))).id).toBe(two.id);
  });

  test.each([
    ['nothing', 'No such image: nothing:latest'],
    ['a/b:c', 'No such image: a/b:c'],
    ['NO', 'No such image: NO'],
    [`sha256:${'0'.repeat(64)}`, `No such image: sha256:${'0'.repeat(64)}`],
    ['busybox@sha256:' + '0'.repeat(64), 'No such image: busybox@sha256:' + '0'.repeat(64)],
    ['../../etc/passwd', 'No such image: ../../etc/passwd'],
  ])('or not, in docker’s words: %s', async (text, message) => {
    await have('busybox');
    const error = await failure(root.store.resolve(text));
    expect(error.code).toBe('IMAGE_NOT_FOUND');
    expect(error.message).toBe(message);
  });

  test('not by the beginning of several ids', async () => {
    // Seventeen images: two of them begin alike.
    const ids = [];
    for (let index = 0; index < 17; index++) ids.push((await have(`image${index}`)).id);
    const first = ids.map((id) => id.slice(7, 8)).find((digit, index, all) => all.indexOf(digit) !== index)!;
    expect((await failure(root.store.resolve(first))).message).toContain('ambiguous');
  });
});

test('images are listed once a name, the newest first, nameless ones as <none>', async () => {
  await have('a:1', 'b:2');
  const image = await have('c:1');
  await have('d:1');
  await root.store.tag('d:1', 'c:1');
  expect(await names()).toEqual(['<none>:<none>', 'a:1', 'b:2', 'c:1', 'd:1']);
  expect((await root.store.list()).find(({ repository }) => repository === '<none>')?.id).toBe(image.id);
});

test('an image is inspected with docker’s fields', async () => {
  const image = await have('app:v1', 'localhost:5000/app');
  expect(await root.store.inspect('app:v1')).toMatchObject({
    Id: image.id,
    RepoTags: ['app:v1', 'localhost:5000/app:latest'],
    RepoDigests: [`app@${image.manifestDigest}`, `localhost:5000/app@${image.manifestDigest}`],
    Created: '2024-01-02T03:04:05Z',
    Os: 'linux',
    Config: { Cmd: ['sh'], Env: ['PATH=/bin'], Entrypoint: null, Labels: null, WorkingDir: '' },
    RootFS: { Type: 'layers', Layers: image.diffIds },
    GraphDriver: { Name: 'lcow', Data: { dir: expect.stringContaining(root.driver.folder) as string } },
  });
});

describe('removing', () => {
  test('the last name deletes the image and what no other image needs', async () => {
    const gone = await have('gone');
    const kept = await have('kept');
    const removed = await root.store.remove('gone');
    expect(removed).toMatchObject({ untagged: ['gone:latest'], id: gone.id });
    expect(removed.deleted).toEqual(expect.arrayContaining([gone.id, gone.manifestDigest, gone.layerDigests[1]]));
    expect(await root.blobs()).toEqual(
      [kept.manifestDigest, ...kept.blobs.keys()].map((digest) => digest.slice(7)).sort(),
    );
    expect(await root.driver.list()).toHaveLength(2);
    expect(await root.driver.exists(topLayerId(await root.store.resolve('kept'))!)).toBe(true);
    await root.store.remove('kept');
    expect(await root.blobs()).toEqual([]);
    expect(await root.driver.list()).toEqual([]);
    expect(await readdir(join(root.content, 'layers'))).toEqual([]);
  });

  test('one of several names only takes that name', async () => {
    const image = await have('one', 'two');
    expect(await root.store.remove('one')).toEqual({ untagged: ['one:latest'], deleted: [] });
    expect((await root.store.resolve('two')).id).toBe(image.id);
    expect((await failure(root.store.resolve('one'))).code).toBe('IMAGE_NOT_FOUND');
  });

  test('by id takes all names of one repository, and those of several only by force', async () => {
    const image = await have('one:1', 'one:2');
    await root.store.tag('one:1', 'two');
    const error = await failure(root.store.remove(image.id));
    expect(error.code).toBe('IN_USE');
    expect(error.message).toMatch(/must be forced\) - image is referenced in multiple repositories/);
    await root.store.remove('two');
    expect([...(await root.store.remove(image.id)).untagged].sort()).toEqual(['one:1', 'one:2']);
    const again = await have('one:1', 'two');
    expect([...(await root.store.remove(again.id.slice(7, 15), { force: true })).untagged].sort()).toEqual([
      'one:1',
      'two:latest',
    ]);
  });

  test('is refused while a container uses the image, but for a name that is not its last', async () => {
    const image = await have('one', 'two');
    const usedBy = (candidate: { id: string }): string[] => (candidate.id === image.id ? ['0123456789ab'] : []);
    await root.store.remove('two', { usedBy });
    const error = await failure(root.store.remove('one', { usedBy, force: true }));
    expect(error.code).toBe('IN_USE');
    expect(error.message).toBe(
      `conflict: unable to remove repository reference "one" - container 0123456789ab is using its referenced image ${image.id.slice(7, 19)}`,
    );
    expect((await root.store.resolve('one')).id).toBe(image.id);
    expect(await root.driver.list()).toHaveLength(2);
  });

  test('spares what a running pull of another process claims', async () => {
    const image = await have('one');
    const content = await ContentStore.open(root.content, join(root.folder, 'locks'));
    const lease = await content.leases.acquire();
    await lease.claim([image.layerDigests[0]!]);
    await root.store.remove('one');
    expect(await root.blobs()).toEqual([image.layerDigests[0]!.slice(7)]);
    await lease.release();
    expect(await root.store.prune(() => false)).toEqual([image.layerDigests[0]]);
  });

  test('does not spare what a dead process claimed', async () => {
    const image = await have('one');
    await deadLease([image.id]);
    await root.store.remove('one');
    expect(await root.blobs()).toEqual([]);
  });
});

async function deadLease(digests: readonly string[]): Promise<string> {
  const path = join(root.content, 'leases', 'dead.json');
  await mkdir(join(root.content, 'leases'), { recursive: true });
  await writeFile(path, JSON.stringify({ pid: 999_999_999, startTime: 1, digests }));
  return path;
}

test('what a killed pull had begun is removed by the next, and what it had brought whole a week later', async () => {
  const kept = await have('kept');
  const blob = Buffer.from('brought');
  await writeFiles(root.content, { [`blobs/sha256/${sha256(blob).slice(7)}`]: blob });
  const [begun, gone] = ['1'.repeat(64), '2'.repeat(64)];
  await root.driver.create(begun, undefined);
  const lease = await deadLease([sha256(blob), kept.id, ...[begun, gone].map((id) => `sha256:${id}`)]);
  await root.store.sweep();
  expect(await root.driver.list()).toHaveLength(2);
  expect(await root.blobs()).toContain(sha256(blob).slice(7));
  const old = new Date(Date.now() - 8 * 24 * 3600 * 1000);
  await utimes(lease, old, old);
  await root.store.sweep();
  expect(await root.blobs()).toHaveLength(4);
  expect((await root.store.list()).map(({ id }) => id)).toEqual([kept.id]);
  expect(await root.leases()).toEqual([]);
});

test('pruning spares layers that are used although their image is gone', async () => {
  const image = await have('one');
  const top = topLayerId(await root.store.resolve('one'))!;
  await writeFile(join(root.content, 'index.json'), '{"schemaVersion":2,"manifests":[]}');
  await root.store.prune((layerId) => layerId === top);
  expect(await root.driver.list()).toEqual([top]);
  expect(await root.blobs()).toEqual([]);
  expect(image.layerDigests).toHaveLength(2);
});

test('an image whose documents were lost is not listed, and does not hinder the others', async () => {
  const lost = await have('lost');
  const good = await have('good');
  await rm(join(root.content, 'blobs/sha256', lost.id.slice(7)));
  expect((await root.store.list()).map(({ id }) => id)).toEqual([good.id]);
  expect((await failure(root.store.resolve('lost'))).code).toBe('IMAGE_NOT_FOUND');
  await root.store.remove('good');
  expect(await root.blobs()).toContain(lost.manifestDigest.slice(7));
});

test('what other tools wrote into index.json stays as it is', async () => {
  const image = await have('mine');
  const path = join(root.content, 'index.json');
  const index = await root.indexJson();
  const foreign = {
    ...index.manifests[0]!,
    annotations: { 'org.opencontainers.image.ref.name': 'Not Ours', 'x.y': 'z' },
  };
  await writeFile(path, JSON.stringify({ schemaVersion: 2, manifests: [foreign] }));
  await root.store.tag(image.id, 'again');
  expect(JSON.parse(await readFile(path, 'utf8'))).toMatchObject({ manifests: [foreign, {}] });
});

test('an import from a stream that stalls ends when it is aborted', async () => {
  const abort = new AbortController();
  const stalled = new PassThrough();
  stalled.write(base.subarray(0, 100));
  const importing = failure(root.store.import(stalled, { name: 'x', signal: abort.signal }));
  setImmediate(() => abort.abort());
  expect((await importing).code).toBe('CANCELLED');
  expect(await root.ingests()).toEqual([]);
});

test('a layout of another version is not touched', async () => {
  const folder = join(root.folder, 'other');
  await writeFiles(folder, { 'content/oci-layout': Buffer.from('{"imageLayoutVersion":"9"}') });
  expect((await failure(ImageRoot.open(folder))).code).toBe('BAD_MANIFEST');
  expect(await readdir(join(folder, 'content'))).toEqual(['oci-layout']);
});
