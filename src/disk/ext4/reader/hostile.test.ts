import { execFileSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { isLcowError } from '../../../errors/index.js';
import { vhdToTar } from '../../export/index.js';
import { MemorySource } from '../../source/index.js';
import { openExt4 } from './index.js';

let work: string;
beforeAll(() => {
  work = mkdtempSync(join(tmpdir(), 'lcow-hostile-'));
  const folder = join(work, 'folder');
  mkdirSync(join(folder, 'a/b/c'), { recursive: true });
  mkdirSync(join(folder, 'wide'));
  for (let index = 0; index < 150; index += 1) writeFileSync(join(folder, 'wide', `name-of-file-${index}`), `${index}`);
  for (const size of [1, 50, 150, 5000, 300_000])
    writeFileSync(join(folder, 'a/b', `f${size}`), Buffer.alloc(size, 'f'));
  symlinkSync('x'.repeat(100), join(folder, 'a/long'));
  symlinkSync('short', join(folder, 'a/short'));
});
afterAll(() => rmSync(work, { recursive: true }));

function makeImage(options: readonly string[], ...commands: string[]): Buffer {
  const image = join(work, 'image');
  rmSync(image, { force: true });
  execFileSync('mke2fs', ['-q', '-t', 'ext4', '-N', '256', ...options, '-d', join(work, 'folder'), image, '3m'], {
    stdio: 'ignore',
  });
  writeFileSync(join(work, 'value'), 'v'.repeat(700));
  const input = [`ea_set /a/b/f1 user.x value`, `ea_set -f ${work}/value /a/b/f50 user.y`, ...commands].join('\n');
  execFileSync('debugfs', ['-w', '-f', '-', image], { input, stdio: ['pipe', 'ignore', 'ignore'] });
  return readFileSync(image);
}

/** A generator of numbers that a seed repeats (mulberry32). */
function random(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) % below;
  };
}

/** Reads all there is, but not more than so many bytes: sizes may be anything. Returns the error, if it is one of ours. */
async function readAll(image: Uint8Array): Promise<unknown> {
  let left = 30 * 2 ** 20;
  try {
    for await (const chunk of vhdToTar(new MemorySource(image), { whiteouts: 'keep', accessTimes: true }))
      if ((left -= chunk.length) < 0) break;
    return undefined;
  } catch (error) {
    if (!isLcowError(error)) throw error;
    return error;
  }
}

const KINDS: readonly (readonly [string, readonly string[]])[] = [
  ['extents', ['-b', '1024', '-O', '^metadata_csum,^has_journal,^resize_inode']],
  ['indirect blocks', ['-b', '1024', '-O', '^extents,^64bit,^metadata_csum,^has_journal,^resize_inode']],
  ['inline data and ea_inode', ['-b', '1024', '-O', 'inline_data,ea_inode,^metadata_csum,^has_journal,^resize_inode']],
  ['checksums', ['-b', '1024', '-O', '^has_journal,^resize_inode']],
];

describe('a hostile image', () => {
  test.each(KINDS)('with damaged %s ends in an error of ours or not at all', async (_, options) => {
    const image = makeImage(options);
    expect(await readAll(image)).toBeUndefined();
    // Bytes that hold something, of metadata for the most part: content is all f.
    const places: number[] = [];
    for (let at = 1024; at < image.length; at += 1) if (image[at] !== 0 && image[at] !== 0x66) places.push(at);
    let refused = 0;
    for (let seed = 0; seed < 250; seed += 1) {
      const next = random(seed);
      const damaged = Buffer.from(image);
      for (let count = 1 + next(6); count > 0; count -= 1) {
        const at = (places[next(places.length)]! + next(9) - 4) % image.length;
        damaged[at] = [next(256), 0, 0xff, damaged[at]! ^ (1 << next(8))][next(4)]!;
      }
      if ((await readAll(damaged)) !== undefined) refused += 1;
    }
    expect(refused).toBeGreaterThan(40);
  });

  test('with a damaged journal ends in an error of ours or not at all', async () => {
    writeFileSync(join(work, 'new'), Buffer.alloc(2048, 'n'));
    const image = makeImage(
      ['-b', '1024', '-O', '^resize_inode', '-J', 'size=1'],
      'jo',
      `jw -b 1500,1501 ${work}/new`,
      `jw -r 1500`,
      `jw -b 1501 ${work}/new`,
      'jc',
    );
    expect(image.readUInt32LE(1024 + 0x60) & 4).toBe(4);
    const start = image.indexOf(Buffer.from('c03b3998', 'hex'));
    for (let seed = 0; seed < 150; seed += 1) {
      const next = random(seed);
      const damaged = Buffer.from(image);
      for (let count = 1 + next(4); count > 0; count -= 1)
        damaged[start + (next(2) ? next(100) : next(8192))] = [next(256), 0, 0xff][next(3)]!;
      await readAll(damaged);
    }
  });

  test('that is cut off is refused', async () => {
    const image = makeImage(KINDS[0]![1]);
    for (const length of [0, 1024, 1500, 2047, 2048, 100_000, image.length - 1])
      expect(await readAll(image.subarray(0, length)), `${length}`).toMatchObject({ code: 'BAD_EXT4' });
  });

  test('whose directory contains its parent is refused, not followed', async () => {
    const image = makeImage(KINDS[0]![1], 'ln <2> /a/b/up');
    expect(await readAll(image)).toMatchObject({
      code: 'BAD_EXT4',
      message: expect.stringContaining('two places') as string,
    });
  });

  test('with a flipped bit is found out by its checksums', async () => {
    const image = makeImage(['-b', '1024']);
    const reader = await openExt4(new MemorySource(image));
    const wide = (await reader.lookup('wide'))!;
    const at = image.indexOf('name-of-file-77');
    image[at + 13] = 0x39;
    const damaged = await openExt4(new MemorySource(image));
    await expect(damaged.list(wide)).rejects.toMatchObject({
      code: 'BAD_EXT4',
      message: expect.stringContaining('checksum') as string,
    });
  });
});
