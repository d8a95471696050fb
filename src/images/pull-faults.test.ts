import { spawn } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { FakeRegistry, refuse, sendBlob } from '../../test/support/fake-registry.js';
import { imageFixture, tarOf, type ImageFixture } from '../../test/support/image-fixture.js';
import { ImageRoot } from '../../test/support/image-root.js';
import { isLcowError, type ErrorCode, type LcowError } from '../errors/index.js';
import type { PullOptions } from './index.js';

const FAST: PullOptions = { retries: { attempts: 4, baseDelayMs: 1, maxDelayMs: 2000 } };

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

describe('a registry that breaks off', () => {
  test('in the middle of a layer is asked for the rest', async () => {
    const { digest, bytes } = bigLayer();
    let broken = 0;
    registry.misbehave((request, response) => {
      if (!request.path.endsWith(digest) || broken === 2) return false;
      broken++;
      const start = Number(/\d+/.exec(request.range ?? '0')![0]);
      response.writeHead(request.range ? 206 : 200, {
        'content-length': bytes.length - start,
        ...(request.range && { 'content-range': `bytes ${start}-${bytes.length - 1}/${bytes.length}` }),
      });
      response.write(bytes.subarray(start, start + 200_000), () => response.destroy());
      return true;
    });
    await root.store.pull(name, FAST);
    const ranges = registry.seen(new RegExp(digest)).map(({ range }) => range);
    expect(ranges[0]).toBeUndefined();
    expect(ranges).toHaveLength(3);
    expect(Number(/\d+/.exec(ranges[2]!)![0])).toBeGreaterThan(Number(/\d+/.exec(ranges[1]!)![0]));
  });

  test('for good fails, and the next pull continues where it stopped', async () => {
    const { digest, bytes } = bigLayer();
    registry.misbehave((request, response) => {
      if (!request.path.endsWith(digest)) return false;
      if (request.range) response.destroy();
      else {
        response.writeHead(200, { 'content-length': bytes.length });
        response.write(bytes.subarray(0, 300_000), () => response.destroy());
      }
      return true;
    });
    expect((await failure(root.store.pull(name, FAST))).code).toBe('REGISTRY_UNREACHABLE');
    expect(await root.ingests()).toHaveLength(1);
    expect(await root.driver.list()).toHaveLength(1);
    expect(await root.store.list()).toEqual([]);
    registry.behave();
    registry.requests.length = 0;
    await root.store.pull(name, FAST);
    await root.store.sweep();
    expect(await root.leases()).toEqual([]);
    expect(registry.seen(new RegExp(digest))[0]!.range).toMatch(/^bytes=\d{4,}-$/);
    expect(await root.ingests()).toEqual([]);
  });

  test('and then ignores ranges is read from the start', async () => {
    const { digest, bytes } = bigLayer();
    let first = true;
    registry.misbehave((request, response) => {
      if (!request.path.endsWith(digest)) return false;
      response.writeHead(200, { 'content-length': bytes.length });
      if (first) response.write(bytes.subarray(0, 300_000), () => response.destroy());
      else response.end(bytes);
      first = false;
      return true;
    });
    await root.store.pull(name, FAST);
  });

  test('while it sends a manifest is asked again', async () => {
    let first = true;
    registry.misbehave((request, response) => {
      if (request.method !== 'GET' || !request.path.includes('manifests') || !first) return false;
      first = false;
      response.writeHead(200, { 'content-type': image.manifestType, 'content-length': image.manifest.length });
      response.write(image.manifest.subarray(0, 20), () => response.destroy());
      return true;
    });
    await root.store.pull(name, FAST);
  });

  test('after the answer’s own end, too early, has bad content', async () => {
    const { digest, bytes } = bigLayer();
    registry.misbehave((request, response) => {
      if (!request.path.endsWith(digest)) return false;
      response.writeHead(200).end(bytes.subarray(0, 1000));
      return true;
    });
    const error = await failure(root.store.pull(name, FAST));
    expect(error.code).toBe('DIGEST_MISMATCH');
    expect(error.message).toMatch(/ends after 1000 of/);
    await expectNothingLeft();
  });
});

describe('bad content', () => {
  const serve = (bytes: Buffer): void =>
    registry.misbehave((request, response) => {
      if (!request.path.endsWith(bigLayer().digest)) return false;
      sendBlob(request, response, bytes);
      return true;
    });

  test('with the digest of something else is refused, and nothing is left', async () => {
    serve(randomBytes(bigLayer().bytes.length));
    expect((await failure(root.store.pull(name, FAST))).code).toBe('DIGEST_MISMATCH');
    await expectNothingLeft();
    registry.behave();
    await root.store.pull(name, FAST);
  });

  test.each([
    ['longer', 1],
    ['shorter', -1],
  ])('%s than the manifest says is refused', async (_, by) => {
    serve(randomBytes(bigLayer().bytes.length + by));
    expect((await failure(root.store.pull(name, FAST))).code).toBe('DIGEST_MISMATCH');
    await expectNothingLeft();
  });

  test('that is longer than the manifest says and does not tell is refused as soon as it is', async () => {
    registry.misbehave((request, response) => {
      if (!request.path.endsWith(bigLayer().digest)) return false;
      response.writeHead(200);
      const pump = (): void => {
        while (response.write(Buffer.alloc(65536)));
        response.once('drain', pump);
      };
      pump();
      return true;
    });
    const error = await failure(root.store.pull(name, FAST));
    expect(error.message).toMatch(/more than the \d+ bytes/);
    await expectNothingLeft();
  });

  test('of a manifest is refused', async () => {
    registry.misbehave((request, response) => {
      if (request.method !== 'GET' || !request.path.includes('manifests')) return false;
      response.writeHead(200, { 'content-type': image.manifestType }).end('{}');
      return true;
    });
    expect((await failure(root.store.pull(name, FAST))).code).toBe('DIGEST_MISMATCH');
  });

  test('of a layer that does not unpack to its diff id is refused, and the layer is removed', async () => {
    const wrong = await imageFixture({
      layers: [{ tar: await tarOf({ good: '' }) }, { tar: await tarOf({ bad: '' }) }],
      diffIds: [image.diffIds[0]!, `sha256:${'0'.repeat(64)}`],
    });
    registry.putImage('wrong', 'latest', wrong);
    const error = await failure(root.store.pull(`${registry.host}/wrong`, FAST));
    expect(error.code).toBe('DIGEST_MISMATCH');
    expect(error.message).toMatch(/unpacks to sha256:/);
    await expectNothingLeft();
  });

  test('of a layer whose compressed data is cut off is refused', async () => {
    const whole = await imageFixture({ layers: [{ tar: await tarOf({ f: randomBytes(50_000) }) }] });
    const cut = whole.blobs.get(whole.layerDigests[0]!)!.subarray(0, 30_000);
    const manifest = Buffer.from(
      whole.manifest
        .toString()
        .replace(/("layers":\[\{"mediaType":"[^"]+","digest":")[^"]+(","size":)\d+/, (_, a: string, b: string) => {
          registry.putBlob(cut, 'sha256:' + sha(cut));
          return `${a}sha256:${sha(cut)}${b}${cut.length}`;
        }),
    );
    registry.putImage('cut', 'x', whole);
    registry.putManifest('cut', 'latest', manifest, whole.manifestType);
    const error = await failure(root.store.pull(`${registry.host}/cut`, FAST));
    expect(error.code).toBe('BAD_TAR');
    expect(error.message).toMatch(/damaged or cut off/);
    await expectNothingLeft();
  });

  test('of a manifest with another number of layers than its configuration is refused', async () => {
    const odd = await imageFixture({ layers: [{ tar: await tarOf({ x: '' }) }], diffIds: [] });
    registry.putImage('odd', 'latest', odd);
    expect((await failure(root.store.pull(`${registry.host}/odd`, FAST))).code).toBe('BAD_MANIFEST');
    await expectNothingLeft();
  });

  test('of a manifest of schema 1 is refused by name', async () => {
    const schema1 = Buffer.from(JSON.stringify({ schemaVersion: 1, name: 'x', fsLayers: [] }));
    registry.putManifest('old', 'latest', schema1, 'application/vnd.docker.distribution.manifest.v1+prettyjws');
    const error = await failure(root.store.pull(`${registry.host}/old`, FAST));
    expect(error.code).toBe('NOT_SUPPORTED');
    expect(error.message).toContain('schema 1');
  });
});

describe('the registry’s refusals', () => {
  test.each<[number, string, ErrorCode, RegExp]>([
    [404, 'MANIFEST_UNKNOWN', 'IMAGE_NOT_FOUND', /manifest for 127.*app:v1 not found: it is gone/],
    [401, 'UNAUTHORIZED', 'REGISTRY_DENIED', /pull access denied for 127.*app.*it is gone/],
    [403, 'DENIED', 'REGISTRY_DENIED', /pull access denied for 127.*app/],
    [400, 'NAME_INVALID', 'REGISTRY_FAILED', /status 400: it is gone/],
    [503, 'UNAVAILABLE', 'REGISTRY_FAILED', /status 503: it is gone/],
  ])('%d %s', async (status, code, expected, message) => {
    registry.misbehave((request, response) => {
      if (!request.path.includes('manifests')) return false;
      refuse(response, status, code, 'it is\u001b[31m gone');
      return true;
    });
    const error = await failure(root.store.pull(name, FAST));
    expect(error.code).toBe(expected);
    expect(error.message.replace('[31m ', '')).toMatch(message);
    expect(error.message).not.toContain('\u001b');
    await expectNothingLeft();
  });

  test('that pass are waited out, as long as Retry-After says', async () => {
    let refusals = 0;
    registry.misbehave((request, response) => {
      if (request.method !== 'GET' || !request.path.startsWith('/v2/app') || refusals++ > 2) return false;
      if (refusals === 1) refuse(response, 429, 'TOOMANYREQUESTS', 'slow down', { 'retry-after': '1' });
      else refuse(response, 502, 'X', 'bad gateway');
      return true;
    });
    const before = performance.now();
    await root.store.pull(name, FAST);
    expect(performance.now() - before).toBeGreaterThan(900);
    expect(refusals).toBeGreaterThan(3);
  });

  test('that ask for more patience than there is end the pull', async () => {
    registry.misbehave((request, response) => {
      if (!request.path.includes('manifests')) return false;
      refuse(response, 429, 'TOOMANYREQUESTS', 'come back tomorrow', { 'retry-after': '86400' });
      return true;
    });
    const error = await failure(root.store.pull(name, FAST));
    expect(error.message).toContain('come back tomorrow');
    expect(registry.seen(/manifests/).map(({ method }) => method)).toEqual(['HEAD', 'GET']);
  });

  test('of HEAD requests are no obstacle', async () => {
    registry.misbehave((request, response) => {
      if (request.method !== 'HEAD') return false;
      response.writeHead(405).end();
      return true;
    });
    expect((await root.store.pull(name, FAST)).upToDate).toBe(false);
    expect((await root.store.pull(name, FAST)).upToDate).toBe(true);
  });
});

test('a registry that does not answer is unreachable', async () => {
  const gone = await FakeRegistry.start();
  const { host } = gone;
  await gone[Symbol.asyncDispose]();
  const error = await failure(root.store.pull(`${host}/x`, FAST));
  expect(error.code).toBe('REGISTRY_UNREACHABLE');
  expect(error.message).toMatch(/ECONNREFUSED/);
});

test('a registry that falls silent in a layer is given up after the idle time-out', async () => {
  process.env['LCOW_TIMEOUT_REGISTRYIDLE'] = '0.5';
  try {
    registry.misbehave((request, response) => {
      if (!request.path.endsWith(bigLayer().digest)) return false;
      response.writeHead(200, { 'content-length': bigLayer().bytes.length }).write('x');
      return true;
    });
    const error = await failure(root.store.pull(name, { retries: { attempts: 1, baseDelayMs: 1, maxDelayMs: 1 } }));
    expect(error.code).toBe('REGISTRY_UNREACHABLE');
  } finally {
    delete process.env['LCOW_TIMEOUT_REGISTRYIDLE'];
  }
});

test('a process that is killed in the middle of a layer leaves what the next pull needs and nothing else', async () => {
  const { digest, bytes } = bigLayer();
  const half = new Promise<void>((resolve) =>
    registry.misbehave((request, response) => {
      if (!request.path.endsWith(digest)) return false;
      response.writeHead(200, { 'content-length': bytes.length });
      response.write(bytes.subarray(0, 300_000), () => resolve());
      return true;
    }),
  );
  const script = fileURLToPath(new URL('../../test/support/pull-process.ts', import.meta.url));
  const child = spawn(process.execPath, ['--import', 'tsx', script, root.folder, name], {
    stdio: ['pipe', 'ignore', 'inherit'],
  });
  const exited = once(child, 'exit');
  child.stdin.write('go\n');
  await half;
  await expect
    .poll(
      () =>
        stat(partialOf(digest)).then(
          ({ size }) => size,
          () => 0,
        ),
      { timeout: 30_000 },
    )
    .toBeGreaterThan(0);
  child.kill('SIGKILL');
  await exited;

  registry.behave();
  registry.requests.length = 0;
  await root.store.pull(name, FAST);
  expect(registry.seen(new RegExp(digest))[0]!.range).toMatch(/^bytes=\d+-$/);
  expect(await root.driver.list()).toHaveLength(2);
  expect(await root.ingests()).toEqual([]);
  await root.store.sweep();
  expect(await root.leases()).toEqual([]);
});

function partialOf(digest: string): string {
  return join(root.content, 'ingest', `sha256-${digest.slice(7)}.partial`);
}

function sha(bytes: Buffer): string {
  return createHash('sha256').update(bytes).digest('hex');
}
