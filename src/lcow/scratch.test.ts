import { execFileSync } from 'node:child_process';
import { mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { createScratch, DefaultScratchSizeGB } from './index.js';

let root: string;
beforeEach(async () => {
  root = await mkdtemp(join(tmpdir(), 'lcow-scratch-'));
});
afterEach(async () => {
  await rm(root, { recursive: true });
});

function virtualSize(path: string): number {
  const info: unknown = JSON.parse(
    execFileSync('qemu-img', ['info', '-f', 'vhdx', '--output=json', path], { encoding: 'utf8' }),
  );
  return (info as { 'virtual-size': number })['virtual-size'];
}

describe('createScratch', () => {
  it('makes the default size without a utility VM, few bytes on disk', async () => {
    const disk = join(root, 'sandbox.vhdx');
    await createScratch(undefined, disk);
    expect(virtualSize(disk)).toBe(DefaultScratchSizeGB * 2 ** 30);
    expect((await stat(disk)).blocks * 512).toBeLessThan(32 * 2 ** 20);
    execFileSync('qemu-img', ['check', '-f', 'vhdx', disk]);
  });

  it('makes the cache when it is missing, and copies from it ever after', async () => {
    const cache = join(root, 'cache.vhdx');
    await createScratch(undefined, join(root, 'one.vhdx'), DefaultScratchSizeGB, cache);
    expect(virtualSize(cache)).toBe(DefaultScratchSizeGB * 2 ** 30);
    await writeFile(cache, 'what the cache holds');
    await createScratch(undefined, join(root, 'two.vhdx'), DefaultScratchSizeGB, cache);
    expect(await readFile(join(root, 'two.vhdx'), 'utf8')).toBe('what the cache holds');
  });

  it('never reads or writes the cache for another size', async () => {
    const cache = join(root, 'cache.vhdx');
    await createScratch(undefined, join(root, 'small.vhdx'), 1, cache);
    await writeFile(cache, 'not this');
    await createScratch(undefined, join(root, 'large.vhdx'), 30, cache);
    expect(virtualSize(join(root, 'small.vhdx'))).toBe(2 ** 30);
    expect(virtualSize(join(root, 'large.vhdx'))).toBe(30 * 2 ** 30);
    expect(await readFile(cache, 'utf8')).toBe('not this');
  });

  it('gives every caller a disk and leaves one good cache when several find none', async () => {
    const cache = join(root, 'cache.vhdx');
    const names = ['a', 'b', 'c', 'd'].map((name) => join(root, `${name}.vhdx`));
    await Promise.all(names.map((name) => createScratch(undefined, name, DefaultScratchSizeGB, cache)));
    for (const disk of [...names, cache]) expect(virtualSize(disk)).toBe(DefaultScratchSizeGB * 2 ** 30);
  });

  it('refuses a size that is no whole number from 1 up, and a destination that exists', async () => {
    const disk = join(root, 'sandbox.vhdx');
    for (const size of [0, -1, 1.5, NaN, Infinity])
      await expect(createScratch(undefined, disk, size)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    await writeFile(disk, 'mine');
    for (const size of [1, 20])
      await expect(createScratch(undefined, disk, size, join(root, 'cache'))).rejects.toMatchObject({
        code: 'ALREADY_EXISTS',
      });
    expect(await readFile(disk, 'utf8')).toBe('mine');
    expect(await readdir(root)).toEqual(['sandbox.vhdx']);
  });

  it('leaves nothing when it is cancelled', async () => {
    const signal = AbortSignal.abort();
    await expect(createScratch(undefined, join(root, 'x'), 20, join(root, 'cache'), { signal })).rejects.toMatchObject({
      code: 'CANCELLED',
    });
    expect(await readdir(root)).toEqual([]);
  });
});
