import { execFileSync } from 'node:child_process';
import {
  closeSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { open } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { copySparse } from '../sparse/index.js';
import { vhdInfo } from '../vhd-info/index.js';
import { readVhdx } from '../vhdx/index.js';
import { createScratch } from './index.js';

const MIB = 2 ** 20;
const GIB = 2 ** 30;

let root: string;
let folder: string;
let path: string;
beforeAll(() => void (root = mkdtempSync(join(tmpdir(), 'lcow-scratch-'))));
beforeEach(() => {
  folder = mkdtempSync(join(root, 'test-'));
  path = join(folder, 'sandbox.vhdx');
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));
afterAll(() => rmSync(root, { recursive: true }));

/** The disk in a VHDX as a sparse raw file; qemu-img convert would read its gigabytes of zeros. */
async function extract(): Promise<string> {
  const raw = join(folder, 'raw');
  const bytes = readFileSync(path);
  await using file = await open(path);
  const { blocks, metadata } = await readVhdx(file, path);
  const target = openSync(raw, 'w');
  blocks.numbers.forEach((number, index) => {
    const at = blocks.offsets[index]!;
    writeSync(target, bytes, at, metadata.blockSizeBytes, number * metadata.blockSizeBytes);
  });
  closeSync(target);
  truncateSync(raw, metadata.virtualSizeBytes);
  return raw;
}

describe('createScratch', () => {
  test('makes a clean ext4 of 20 GiB without a journal, in a file of a few mebibytes that is nearly all holes', async () => {
    const { fileBytes } = await createScratch(path);
    expect(fileBytes).toBe(statSync(path).size);
    expect(fileBytes).toBeLessThan(16 * MIB);
    expect(statSync(path).blocks * 512).toBeLessThan(4 * MIB);
    expect(statSync(path).mode & 0o777).toBe(0o600);
    expect(readdirSync(folder)).toEqual(['sandbox.vhdx']);
    expect(await vhdInfo(path)).toMatchObject({
      kind: 'vhdx',
      virtualSizeBytes: 20 * GIB,
      blockSizeBytes: MIB,
      logicalSectorBytes: 512,
      physicalSectorBytes: 4096,
      ext4: { sizeBytes: 20 * GIB, hasJournal: false, readOnly: false },
    });
    expect(execFileSync('qemu-img', ['check', '-f', 'vhdx', path], { encoding: 'utf8' })).toContain('No errors');
    const raw = await extract();
    execFileSync('e2fsck', ['-fn', raw], { stdio: 'pipe' });
    const features = execFileSync('dumpe2fs', ['-h', raw], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] });
    expect(features).not.toContain('has_journal');
    expect(features).toMatch(/Block count: +5242880\n/);
  });

  test.each([
    ['1 GiB', GIB, MIB],
    ['200 MiB in blocks of 32 MiB', 200 * MIB, 32 * MIB],
    ['a size that is no whole block', 64 * MIB + 4096, MIB],
  ])('makes a disk that e2fsck finds clean through QEMU: %s', async (_, sizeBytes, blockSizeBytes) => {
    await createScratch(path, { sizeBytes, blockSizeBytes });
    const raw = join(folder, 'raw');
    execFileSync('qemu-img', ['convert', '-f', 'vhdx', '-O', 'raw', path, raw]);
    expect(statSync(raw).size).toBe(sizeBytes);
    execFileSync('e2fsck', ['-fn', raw], { stdio: 'pipe' });
  });

  test('makes the same file for the same seed, and other identifiers without one', async () => {
    const [one, two, three, four] = ['1', '2', '3', '4'].map((name) => join(folder, name)) as [
      string,
      string,
      string,
      string,
    ];
    await Promise.all([
      createScratch(one, { seed: 'x' }),
      createScratch(two, { seed: 'x' }),
      createScratch(three),
      createScratch(four),
    ]);
    expect(readFileSync(one).equals(readFileSync(two))).toBe(true);
    const ids = await Promise.all([one, three, four].map(async (disk) => (await vhdInfo(disk)).uuid));
    expect(new Set(ids).size).toBe(3);
  });

  test('makes a disk whose sparse copy is the same disk and takes no more space', async () => {
    await createScratch(path);
    const copy = join(folder, 'copy.vhdx');
    await copySparse(path, copy);
    expect(readFileSync(copy).equals(readFileSync(path))).toBe(true);
    expect(statSync(copy).blocks).toBeLessThanOrEqual(statSync(path).blocks);
  });

  test('refuses a name that is taken, and leaves what has it alone', async () => {
    writeFileSync(path, 'precious');
    await expect(createScratch(path)).rejects.toMatchObject({ code: 'ALREADY_EXISTS' });
    expect(readFileSync(path, 'utf8')).toBe('precious');
    expect(readdirSync(folder)).toEqual(['sandbox.vhdx']);
  });

  test.each([
    { sizeBytes: 0 },
    { sizeBytes: -4096 },
    { sizeBytes: GIB + 512 },
    { sizeBytes: 4096 },
    { sizeBytes: 65 * 2 ** 40 },
    { blockSizeBytes: 4096 },
    { blockSizeBytes: 3 * MIB },
  ])('refuses %j, leaving nothing', async (options) => {
    await expect(createScratch(path, options)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    expect(readdirSync(folder)).toEqual([]);
  });

  test('does nothing when it was cancelled before', async () => {
    await expect(createScratch(path, { signal: AbortSignal.abort() })).rejects.toMatchObject({ code: 'CANCELLED' });
    expect(readdirSync(folder)).toEqual([]);
  });

  test('says that the folder is missing', async () => {
    await expect(createScratch(join(folder, 'no', 'disk'))).rejects.toMatchObject({ code: 'IO_FAILED' });
  });

  test('says that the disk is full, leaving nothing', async ({ skip }) => {
    const small = join(folder, 'small');
    mkdirSync(small);
    try {
      execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', small], { stdio: 'ignore' });
    } catch {
      skip('a small file system needs root');
    }
    try {
      await expect(createScratch(join(small, 'disk'))).rejects.toMatchObject({ code: 'DISK_FULL' });
      expect(readdirSync(small)).toEqual([]);
    } finally {
      execFileSync('umount', [small]);
    }
  });
});
