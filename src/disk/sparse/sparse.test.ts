import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  closeSync,
  ftruncateSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { copySparse, isZero, nonZeroRuns } from './index.js';

const MIB = 2 ** 20;

let root: string;
let folder: string;
beforeAll(() => void (root = mkdtempSync(join(tmpdir(), 'lcow-sparse-'))));
beforeEach(() => void (folder = mkdtempSync(join(root, 'test-'))));
afterEach(() => rmSync(folder, { recursive: true, force: true }));
afterAll(() => rmSync(root, { recursive: true }));

/** A sparse file of a size with some bytes in it. */
function sparseFile(name: string, size: number, data: readonly (readonly [offset: number, data: Buffer])[]): string {
  const path = join(folder, name);
  const file = openSync(path, 'w');
  ftruncateSync(file, size);
  for (const [offset, bytes] of data) writeSync(file, bytes, 0, bytes.length, offset);
  closeSync(file);
  return path;
}

function digest(path: string): string {
  return createHash('sha256').update(readFileSync(path)).digest('hex');
}

describe('isZero', () => {
  test('finds a single byte anywhere', () => {
    fc.assert(
      fc.property(fc.nat(300_000), fc.nat(), (length, where) => {
        const data = Buffer.alloc(length);
        expect(isZero(data)).toBe(true);
        if (length === 0) return;
        data[where % length] = 1;
        expect(isZero(data)).toBe(false);
      }),
      { seed: 1 },
    );
  });
});

describe('nonZeroRuns', () => {
  test.each([
    ['0000', []],
    ['1000', [[0, 1]]],
    ['0110', [[1, 3]]],
    [
      '1011',
      [
        [0, 1],
        [2, 4],
      ],
    ],
  ])('of grains %s are %j', (grains, runs) => {
    const data = Buffer.concat(Array.from(grains, (grain) => Buffer.alloc(10, Number(grain))));
    expect([...nonZeroRuns(data, 10)]).toEqual(runs.map(([start, end]) => [start! * 10, end! * 10]));
  });

  test('end with data that is no whole grain', () => {
    expect([...nonZeroRuns(Buffer.from([0, 0, 0, 1, 1]), 3)]).toEqual([[3, 5]]);
  });
});

describe('copySparse', () => {
  test('makes an equal file and leaves its holes', async () => {
    const source = sparseFile('source', 64 * MIB + 5, [
      [0, Buffer.from('start')],
      [7 * MIB - 3, Buffer.from('over a border')],
      [40 * MIB, Buffer.alloc(MIB, 7)],
      [64 * MIB, Buffer.from('end')],
    ]);
    const destination = join(folder, 'destination');
    const { cloned, writtenBytes } = await copySparse(source, destination);
    expect(digest(destination)).toBe(digest(source));
    expect(statSync(destination).size).toBe(64 * MIB + 5);
    if (!cloned) {
      expect(writtenBytes).toBeLessThan(MIB + 64 * 1024);
      expect(statSync(destination).blocks * 512).toBeLessThan(2 * MIB);
    }
    expect(statSync(destination).mode & 0o777).toBe(0o600);
  });

  test.each([0, 1, 4096, MIB, MIB + 1])('copies a hole of %i bytes', async (size) => {
    const source = sparseFile('source', size, []);
    await copySparse(source, join(folder, 'destination'));
    expect(readFileSync(join(folder, 'destination')).equals(Buffer.alloc(size))).toBe(true);
  });

  test.each<[string, (path: string) => void]>([
    ['a file', (path) => writeFileSync(path, 'precious')],
    ['a folder', (path) => mkdirSync(path)],
    ['a dangling link', (path) => symlinkSync('/nowhere', path)],
  ])('refuses a destination that is %s, and leaves it alone', async (_, make) => {
    const source = sparseFile('source', 10, []);
    const destination = join(folder, 'destination');
    make(destination);
    await expect(copySparse(source, destination)).rejects.toMatchObject({ code: 'ALREADY_EXISTS' });
    expect(readdirSync(folder).sort()).toEqual(['destination', 'source']);
    if (statSync(destination, { throwIfNoEntry: false })?.isFile())
      expect(readFileSync(destination, 'utf8')).toBe('precious');
  });

  test('says so when the source is missing', async () => {
    await expect(copySparse(join(folder, 'no'), join(folder, 'destination'))).rejects.toMatchObject({
      code: 'NOT_FOUND',
    });
    expect(readdirSync(folder)).toEqual([]);
  });

  test('stops when cancelled, leaving nothing', async () => {
    const source = sparseFile('source', 4000 * MIB, [[0, Buffer.alloc(10, 1)]]);
    const abort = new AbortController();
    const copy = copySparse(source, join(folder, 'destination'), { signal: abort.signal });
    setImmediate(() => abort.abort());
    // A file system that clones may be done by then.
    await copy.then(
      () => rmSync(join(folder, 'destination')),
      (error: unknown) => expect(error).toMatchObject({ code: 'CANCELLED' }),
    );
    expect(readdirSync(folder)).toEqual(['source']);
  });

  test('says that the disk is full, leaving nothing', async ({ skip }) => {
    const small = join(folder, 'small');
    mkdirSync(small);
    try {
      execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', small], { stdio: 'ignore' });
    } catch {
      skip('a small file system needs root');
    }
    try {
      const source = sparseFile('source', 4 * MIB, [[0, Buffer.alloc(3 * MIB, 1)]]);
      await expect(copySparse(source, join(small, 'destination'))).rejects.toMatchObject({ code: 'DISK_FULL' });
      expect(readdirSync(small)).toEqual([]);
    } finally {
      execFileSync('umount', [small]);
    }
  });
});
