import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { openDisk, type DiskFormat } from '../source/index.js';
import { convertDisk } from './convert-disk.js';

const MIB = 2 ** 20;

let folder: string;
let source: string;
let target: string;
beforeAll(() => void (folder = mkdtempSync(join(tmpdir(), 'lcow-convert-disk-'))));
beforeEach(() => {
  source = join(folder, 'source');
  target = join(folder, 'target');
  rmSync(source, { force: true });
  rmSync(target, { force: true });
});
afterAll(() => rmSync(folder, { recursive: true }));

/** A sparse raw disk with data here and there. */
async function makeRaw(path: string, sizeBytes: number): Promise<void> {
  await using file = await open(path, 'w');
  await file.truncate(sizeBytes);
  for (const [at, length] of [
    [0, 1000],
    [3 * MIB - 10, 5000],
    [20 * MIB, 2 * MIB],
    [sizeBytes - 512, 512],
  ] as const)
    await file.write(Buffer.alloc(length, 1 + (at % 200)), 0, length, at);
}

const QEMU_NAMES = { raw: 'raw', vhd: 'vpc', vhdx: 'vhdx' } as const;
const QEMU_FORMATS: readonly (readonly [DiskFormat, string[]])[] = [
  ['raw', ['-O', 'raw']],
  ['vhd', ['-O', 'vpc', '-o', 'subformat=fixed,force_size=on']],
  ['vhd', ['-O', 'vpc', '-o', 'subformat=dynamic,force_size=on']],
  ['vhdx', ['-O', 'vhdx', '-o', 'subformat=dynamic,block_size=2M']],
  ['vhdx', ['-O', 'vhdx', '-o', 'subformat=fixed']],
];

describe('convertDisk', () => {
  test.each(
    QEMU_FORMATS.flatMap(([from, args]) => (['raw', 'vhd', 'vhdx'] as const).map((to) => ({ from, args, to }))),
  )('makes of a $from of QEMU ($args) a $to that QEMU finds equal', async ({ from, args, to }) => {
    const raw = join(folder, 'raw');
    await makeRaw(raw, 40 * MIB);
    execFileSync('qemu-img', ['convert', '-f', 'raw', ...args, raw, source]);
    expect(await convertDisk(source, target, { to })).toMatchObject({ from, virtualSizeBytes: 40 * MIB });
    execFileSync('qemu-img', ['compare', '-f', 'raw', '-F', QEMU_NAMES[to], raw, target]);
    if (to === 'vhdx') execFileSync('qemu-img', ['check', '-q', '-f', 'vhdx', target]);
    expect(statSync(target).blocks * 512).toBeLessThan(4 * MIB);
    rmSync(raw);
  });

  test('fills up to whole sectors, but for raw images', async () => {
    writeFileSync(source, Buffer.alloc(1000, 1));
    expect(await convertDisk(source, target, { to: 'vhd' })).toMatchObject({ virtualSizeBytes: 1024 });
    rmSync(target);
    await convertDisk(source, target, { to: 'raw' });
    expect(readFileSync(target).equals(readFileSync(source))).toBe(true);
  });

  test('makes the same file of the same disk and seed', async () => {
    await makeRaw(source, 30 * MIB);
    for (const to of ['vhd', 'vhdx'] as const) {
      await convertDisk(source, target, { to, seed: 'a' });
      await convertDisk(source, `${target}2`, { to, seed: 'a' });
      expect(readFileSync(target).equals(readFileSync(`${target}2`))).toBe(true);
      rmSync(target);
      rmSync(`${target}2`);
    }
  });

  test('takes the source as what it is said to be, whatever its content looks like', async () => {
    await makeRaw(source, 8 * MIB);
    await convertDisk(source, target, { to: 'vhdx', seed: 'x' });
    await using disk = await openDisk(target, { format: 'raw' });
    expect(disk.source.sizeBytes).toBe(statSync(target).size);
  });

  test('refuses an existing target, an empty disk, a disk too large for a VHD, and a cancelled conversion', async () => {
    writeFileSync(source, 'x');
    writeFileSync(target, '');
    await expect(convertDisk(source, target, { to: 'raw' })).rejects.toMatchObject({ code: 'ALREADY_EXISTS' });
    await expect(convertDisk(join(folder, 'none'), `${target}2`, { to: 'raw' })).rejects.toMatchObject({
      code: 'NOT_FOUND',
    });
    await expect(convertDisk(source, `${target}2`, { to: 'raw', signal: AbortSignal.abort() })).rejects.toMatchObject({
      code: 'CANCELLED',
    });
    truncateSync(source, 0);
    await expect(convertDisk(source, `${target}2`, { to: 'vhd' })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    truncateSync(source, 2041 * 2 ** 30);
    await expect(convertDisk(source, `${target}2`, { to: 'vhd' })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  });
});
