import { execFile, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { startRegistry, type Registry } from '../../test/images/registry.js';
import { imageFixture, layoutFiles, tarOf, writeFiles, type ImageFixture } from '../../test/support/image-fixture.js';
import { ImageRoot } from '../../test/support/image-root.js';

const run = promisify(execFile);
const skopeo = async (...args: string[]): Promise<string> => (await run('skopeo', args)).stdout;

/** The registry of distribution's own authors, and skopeo as the judge of what we keep. */
describe('with a real registry', () => {
  let folder: string;
  let registry: Registry;
  let image: ImageFixture;
  let root: ImageRoot;

  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), 'lcow-real-registry-'));
    const layers = [
      { tar: await tarOf({ 'etc/a': 'a' }) },
      { tar: await tarOf({ 'data/noise': randomBytes(3_000_000) }) },
      { tar: await tarOf({ 'etc/z': 'z' }), packing: 'zstd' as const },
    ];
    image = await imageFixture({ layers });
    await writeFiles(join(folder, 'layout'), layoutFiles([{ image, refName: 'app' }]));
    registry = await startRegistry();
    await registry.push(join(folder, 'layout'), 'team/app:v1');
  });

  afterAll(async () => {
    await registry.stop();
    await rm(folder, { recursive: true });
  });

  beforeEach(async () => {
    root = await ImageRoot.open();
  });
  afterEach(() => root[Symbol.asyncDispose]());

  test('a pull keeps what skopeo reads as the same image', async () => {
    const name = `${registry.host}/team/app:v1`;
    expect((await root.store.pull(name)).id).toBe(image.id);
    const ours = JSON.parse(await skopeo('inspect', `oci:${root.content}:${name}`)) as Record<string, unknown>;
    const theirs = JSON.parse(await skopeo('inspect', '--tls-verify=false', `docker://${name}`)) as Record<
      string,
      unknown
    >;
    for (const key of ['Digest', 'Created', 'Architecture', 'Os', 'Layers', 'Env'])
      expect(ours[key]).toEqual(theirs[key]);
    await skopeo('--insecure-policy', 'copy', '-q', `oci:${root.content}:${name}`, `dir:${join(folder, 'copy')}`);
  });

  test('an image that was imported is read by skopeo under its full name', async () => {
    await root.store.import(join(folder, 'layout'), { name: 'busybox' });
    const seen = JSON.parse(await skopeo('inspect', `oci:${root.content}:docker.io/library/busybox:latest`)) as object;
    expect(seen).toMatchObject({ Digest: image.manifestDigest });
  });

  test.each(['docker-archive', 'oci-archive'])('an archive that skopeo wrote as %s is imported', async (kind) => {
    // Archives of docker know no zstd.
    const plain = await imageFixture({ layers: [{ tar: await tarOf({ a: '1' }) }, { tar: await tarOf({ b: '2' }) }] });
    await writeFiles(join(folder, 'plain'), layoutFiles([{ image: plain, refName: 'plain' }]));
    const path = join(folder, `${kind}.tar`);
    await rm(path, { force: true });
    await skopeo('--insecure-policy', 'copy', '-q', `oci:${join(folder, 'plain')}:plain`, `${kind}:${path}:app:v1`);
    const [imported] = await root.store.import(path);
    expect(imported).toMatchObject({ references: ['docker.io/library/app:v1'] });
    expect(imported!.layers.map(({ diffId }) => diffId)).toEqual(plain.diffIds);
  });

  test('an image that is not there is not found', async () => {
    await expect(root.store.pull(`${registry.host}/team/app:v9`)).rejects.toMatchObject({
      code: 'IMAGE_NOT_FOUND',
      message: `manifest for ${registry.host}/team/app:v9 not found: manifest unknown`,
    });
    await expect(root.store.pull(`${registry.host}/nobody/app`)).rejects.toMatchObject({ code: 'IMAGE_NOT_FOUND' });
  });

  test('two processes that pull one image at once share the work', async () => {
    const name = `${registry.host}/team/app:v1`;
    const script = fileURLToPath(new URL('../../test/support/pull-process.ts', import.meta.url));
    const processes = [0, 1].map(() => {
      const child = spawn(process.execPath, ['--import', 'tsx', script, root.folder, name], {
        stdio: ['pipe', 'pipe', 'inherit'],
      });
      return { child, lines: createInterface({ input: child.stdout })[Symbol.asyncIterator]() };
    });
    for (const { lines } of processes) expect((await lines.next()).value).toBe('ready');
    for (const { child } of processes) child.stdin.write('go\n');
    const results = await Promise.all(
      processes.map(async ({ child, lines }) => {
        const line = (await lines.next()).value as string;
        if (child.exitCode === null) await once(child, 'exit');
        return JSON.parse(line) as { id: string; applied: string[]; linked: string[] };
      }),
    );
    expect(results.map(({ id }) => id)).toEqual([image.id, image.id]);
    const applied = results.flatMap((result) => result.applied);
    expect(applied).toHaveLength(3);
    expect(new Set(applied).size).toBe(3);
    expect((await root.store.list()).map(({ id }) => id)).toEqual([image.id]);
    expect(await root.ingests()).toEqual([]);
    expect(await root.leases()).toEqual([]);
  });
});

test('a real registry with users lets in who has the password', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'lcow-real-registry-'));
  const registry = await startRegistry({ htpasswd: { user: 'me', password: 'secret' } });
  const root = await ImageRoot.open();
  try {
    const image = await imageFixture({ layers: [{ tar: await tarOf({ a: 'a' }) }] });
    await writeFiles(folder, layoutFiles([{ image, refName: 'app' }]));
    await registry.push(folder, 'app:1');
    const name = `${registry.host}/app:1`;
    const denied = { code: 'REGISTRY_DENIED' };
    await expect(root.store.pull(name, { credentials: { username: 'me', password: 'no' } })).rejects.toMatchObject(
      denied,
    );
    expect((await root.store.pull(name, { credentials: { username: 'me', password: 'secret' } })).id).toBe(image.id);
  } finally {
    await registry.stop();
    await root[Symbol.asyncDispose]();
    await rm(folder, { recursive: true });
  }
});
