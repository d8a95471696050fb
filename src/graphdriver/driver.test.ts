import { mkdir, mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pack } from 'tar-stream';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { vhdInfo } from '../disk/index.js';
import { initDriver, type Driver } from './index.js';

let root: string;
let driver: Driver;
beforeEach(async () => {
  root = await mkdtemp(join(tmpdir(), 'lcow-driver-'));
  driver = await initDriver(root);
});
afterEach(async () => {
  await rm(root, { recursive: true });
});

const layers = (...path: string[]): string => join(root, 'layers', ...path);

function tarOf(files: Record<string, string>): AsyncIterable<Uint8Array> {
  const tar = pack();
  for (const [name, content] of Object.entries(files)) tar.entry({ name }, content);
  tar.finalize();
  return tar as unknown as AsyncIterable<Uint8Array>;
}

async function* cutOff(tar: AsyncIterable<Uint8Array>, bytes: number): AsyncGenerator<Uint8Array> {
  for await (const chunk of tar) {
    yield chunk.subarray(0, bytes);
    if ((bytes -= chunk.length) <= 0) return;
  }
}

describe('a new layer', () => {
  it('knows its parents, nearest first, base last, by absolute folder', async () => {
    await driver.create('base');
    await driver.create('middle', 'base');
    await driver.create('top', 'middle');
    expect(await driver.layerChain('base')).toEqual([]);
    expect(await driver.layerChain('top')).toEqual([layers('middle'), layers('base')]);
    const chain = layers('top', 'layerchain.json');
    expect(JSON.parse(await readFile(chain, 'utf8'))).toEqual([layers('middle'), layers('base')]);
    expect((await stat(chain)).mode & 0o777).toBe(0o600);
  });

  it('is found by its folder', async () => {
    expect(await driver.exists('base')).toBe(false);
    await driver.create('base');
    expect(await driver.exists('base')).toBe(true);
    expect(await driver.getLayerPath('base')).toBe(layers('base'));
    expect(await driver.getMetadata('base')).toEqual({ dir: layers('base') });
    await expect(driver.getLayerPath('other')).rejects.toMatchObject({ code: 'NOT_FOUND' });
    await expect(driver.layerChain('other')).rejects.toMatchObject({ code: 'NOT_FOUND' });
  });

  it('needs a parent that exists and an id that is free', async () => {
    await expect(driver.create('top', 'none')).rejects.toMatchObject({ code: 'NOT_FOUND' });
    await driver.create('base');
    await expect(driver.create('base')).rejects.toMatchObject({ code: 'ALREADY_EXISTS' });
    expect(await readdir(layers())).toEqual(['base']);
  });

  it.each(['', '.', '..', '.hidden', 'a/b', 'a\\b', 'a\0b', '../out', 'x-removing', 'a'.repeat(201)])(
    'cannot have the id %j',
    async (id) => {
      const refused = { code: 'INVALID_ARGUMENT' };
      await expect(driver.create(id)).rejects.toMatchObject(refused);
      await expect(driver.createReadWrite(id)).rejects.toMatchObject(refused);
      await expect(driver.applyDiff(id, undefined, tarOf({}))).rejects.toMatchObject(refused);
      await expect(driver.exists(id)).rejects.toMatchObject(refused);
      await expect(driver.remove(id)).rejects.toMatchObject(refused);
      await expect(driver.layerChain(id)).rejects.toMatchObject(refused);
    },
  );

  it.each(['no json', '{"a":1}', '["relative"]', '[1]'])('is damaged when its chain is %j', async (text) => {
    await driver.create('base');
    await writeFile(layers('base', 'layerchain.json'), text);
    await expect(driver.layerChain('base')).rejects.toMatchObject({ code: 'IO_FAILED' });
  });

  it('is a base layer when its chain is null or missing', async () => {
    await driver.create('base');
    await writeFile(layers('base', 'layerchain.json'), 'null');
    expect(await driver.layerChain('base')).toEqual([]);
    await rm(layers('base', 'layerchain.json'));
    expect(await driver.layerChain('base')).toEqual([]);
  });
});

describe('applyDiff', () => {
  it('makes the layer with its disk, and says how large that is', async () => {
    const size = await driver.applyDiff('base', undefined, tarOf({ 'etc/motd': 'hello' }));
    expect(await readdir(layers('base'))).toEqual(['layer.vhd', 'layerchain.json']);
    expect((await stat(layers('base', 'layer.vhd'))).size).toBe(size);
    expect(await vhdInfo(layers('base', 'layer.vhd'))).toMatchObject({ virtualSizeBytes: size - 512 });
  });

  it('gives a disk to a layer that was made before', async () => {
    await driver.create('base');
    await driver.create('top', 'base');
    await driver.applyDiff('top', 'base', tarOf({ file: 'x' }));
    expect(await readdir(layers('top'))).toEqual(['layer.vhd', 'layerchain.json']);
    expect(await driver.layerChain('top')).toEqual([layers('base')]);
  });

  it('leaves no layer when the stream is cut off', async () => {
    const tar = tarOf({ one: 'x'.repeat(2000), two: 'y'.repeat(2000) });
    await expect(driver.applyDiff('base', undefined, cutOff(tar, 3000))).rejects.toMatchObject({ code: 'BAD_TAR' });
    expect(await readdir(layers())).toEqual([]);
  });

  it('leaves the layer without a disk when it was made before and the stream fails', async () => {
    const broken = async function* (): AsyncGenerator<Uint8Array> {
      yield Buffer.alloc(512);
      throw new Error('connection lost');
    };
    await driver.create('base');
    await expect(driver.applyDiff('base', undefined, broken())).rejects.toThrow('connection lost');
    expect(await readdir(layers('base'))).toEqual(['layerchain.json']);
    await driver.applyDiff('base', undefined, tarOf({ file: 'x' }));
  });

  it('refuses a layer that has its disk', async () => {
    await driver.applyDiff('base', undefined, tarOf({ file: 'x' }));
    await driver.createReadWrite('scratch', 'base');
    for (const id of ['base', 'scratch'])
      await expect(driver.applyDiff(id, undefined, tarOf({}))).rejects.toMatchObject({ code: 'ALREADY_EXISTS' });
  });

  it('lets one of two writers of the same layer win, whole', async () => {
    const results = await Promise.allSettled([
      driver.applyDiff('base', undefined, tarOf({ file: 'x' })),
      driver.applyDiff('base', undefined, tarOf({ file: 'x' })),
    ]);
    expect(results.map(({ status }) => status).sort()).toEqual(['fulfilled', 'rejected']);
    expect(results.find(({ status }) => status === 'rejected')).toMatchObject({ reason: { code: 'ALREADY_EXISTS' } });
    expect(await readdir(layers())).toEqual(['base']);
  });
});

describe('linkDiff', () => {
  it('shares the disk of another layer, which stays when that one is removed', async () => {
    await driver.create('other');
    const size = await driver.applyDiff('source', undefined, tarOf({ file: 'x' }));
    expect(await driver.linkDiff('copy', 'other', 'source')).toBe(size);
    expect((await stat(layers('copy', 'layer.vhd'))).ino).toBe((await stat(layers('source', 'layer.vhd'))).ino);
    expect(await driver.layerChain('copy')).toEqual([layers('other')]);
    await driver.remove('source');
    expect((await stat(layers('copy', 'layer.vhd'))).size).toBe(size);
  });

  it('needs a source with a disk', async () => {
    await driver.create('empty');
    for (const source of ['empty', 'none'])
      await expect(driver.linkDiff('copy', undefined, source)).rejects.toMatchObject({ code: 'NOT_FOUND' });
    expect(await driver.exists('copy')).toBe(false);
  });
});

describe('createReadWrite', () => {
  it('makes a scratch of 20 GB from a cache that it makes once', async () => {
    await driver.create('base');
    await Promise.all(['one', 'two', 'three'].map((id) => driver.createReadWrite(id, 'base')));
    const cache = await stat(join(root, 'cache', 'sandbox.vhdx'));
    await driver.createReadWrite('four', 'base');
    expect((await stat(join(root, 'cache', 'sandbox.vhdx'))).ino).toBe(cache.ino);
    expect(await readdir(join(root, 'cache'))).toEqual(['sandbox.vhdx']);
    for (const id of ['one', 'two', 'three', 'four']) {
      expect(await readdir(layers(id))).toEqual(['layerchain.json', 'sandbox.vhdx']);
      expect(await vhdInfo(layers(id, 'sandbox.vhdx'))).toMatchObject({ virtualSizeBytes: 20 * 2 ** 30 });
    }
    expect(await driver.layerChain('one')).toEqual([layers('base')]);
  });

  it('makes another size beside the cache', async () => {
    await driver.createReadWrite('large', '', { storageOpt: { 'lcow.sandboxsize': '64' } });
    expect(await vhdInfo(layers('large', 'sandbox.vhdx'))).toMatchObject({ virtualSizeBytes: 64 * 2 ** 30 });
    expect(await readdir(join(root, 'cache'))).toEqual([]);
  });

  it('takes the size of the driver’s options when it has none of its own', async () => {
    const other = await initDriver(root, ['LCOW.SandboxSize=21', 'other.key=1', 'word']);
    await other.createReadWrite('one');
    expect(await vhdInfo(layers('one', 'sandbox.vhdx'))).toMatchObject({ virtualSizeBytes: 21 * 2 ** 30 });
  });

  it('refuses a size below 20 GB or that is none, and an option it does not know', async () => {
    for (const size of ['19', '', '-20', '20.5', '20G', '0x20'])
      await expect(
        driver.createReadWrite('one', '', { storageOpt: { 'lcow.sandboxsize': size } }),
      ).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    await expect(driver.createReadWrite('one', '', { storageOpt: { size: '30' } })).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
    });
    await expect(initDriver(root, ['lcow.sandboxsize=19'])).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    expect(await readdir(layers())).toEqual([]);
  });

  it('leaves no layer when it is cancelled', async () => {
    await expect(driver.createReadWrite('one', '', { signal: AbortSignal.abort() })).rejects.toMatchObject({
      code: 'CANCELLED',
    });
    expect(await readdir(layers())).toEqual([]);
  });
});

describe('removal', () => {
  it('may be repeated', async () => {
    await driver.create('base');
    await driver.remove('base');
    await driver.remove('base');
    await driver.remove('never');
    expect(await readdir(layers())).toEqual([]);
  });

  it('that was killed half-way is finished at the next start', async () => {
    await mkdir(layers('gone-removing'));
    await writeFile(layers('gone-removing', 'layer.vhd'), '');
    await driver.create('kept');
    expect(await (await initDriver(root)).exists('kept')).toBe(true);
    expect(await readdir(layers())).toEqual(['kept']);
  });

  it('that was killed half-way does not hinder a new layer with that id, nor its removal', async () => {
    await driver.create('again');
    await mkdir(layers('again-removing'));
    await writeFile(layers('again-removing', 'layer.vhd'), '');
    await driver.remove('again');
    expect(await readdir(layers())).toEqual([]);
  });
});

describe('opening the store', () => {
  it('deletes what processes that died left half-made, and nothing of those that live', async () => {
    await mkdir(layers('.dead.1-1-00000000.partial'));
    const writing = driver.applyDiff(
      'live',
      undefined,
      (async function* () {
        yield* tarOf({ file: 'x' });
        // Opened while the layer is being written.
        await initDriver(root);
      })(),
    );
    await writing;
    expect(await readdir(layers())).toEqual(['live']);
  });

  it('names the driver', () => {
    expect(String(driver)).toBe('lcow');
    expect(driver.status()).toEqual([['LCOW', '']]);
  });
});
