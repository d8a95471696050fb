import { execFileSync } from 'node:child_process';
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, statSync, truncateSync, writeSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { readVhdx, VhdxWriter, type VhdxWriterResult } from './index.js';

const MIB = 2 ** 20;
const GIB = 2 ** 30;

let folder: string;
beforeAll(() => void (folder = mkdtempSync(join(tmpdir(), 'lcow-vhdx-'))));
afterAll(() => rmSync(folder, { recursive: true }));

interface Write {
  readonly offset: number;
  readonly data: Buffer;
}

/** Writes the same to a VHDX and to a sparse raw file. */
function writeBoth(
  name: string,
  sizeBytes: number,
  writes: readonly Write[],
  options: { blockSizeBytes?: number; seed?: string } = {},
): { vhdx: string; raw: string; result: VhdxWriterResult } {
  const vhdx = join(folder, `${name}.vhdx`);
  const raw = join(folder, `${name}.raw`);
  const file = openSync(vhdx, 'w');
  const rawFile = openSync(raw, 'w');
  const writer = new VhdxWriter(file, { virtualSizeBytes: sizeBytes, ...options });
  for (const { offset, data } of writes) {
    writer.write(offset, data);
    writeSync(rawFile, data, 0, data.length, offset);
  }
  const result = writer.finish();
  closeSync(file);
  closeSync(rawFile);
  truncateSync(raw, sizeBytes);
  return { vhdx, raw, result };
}

function expectSame(vhdx: string, raw: string): void {
  const said = execFileSync('qemu-img', ['compare', '-f', 'vhdx', '-F', 'raw', vhdx, raw], { encoding: 'utf8' });
  expect(said).toBe('Images are identical.\n');
}

function expectClean(vhdx: string): void {
  const said = execFileSync('qemu-img', ['check', '-f', 'vhdx', vhdx], { encoding: 'utf8' });
  expect(said).toContain('No errors were found');
}

function qemuIo(vhdx: string, ...commands: string[]): string {
  const said = execFileSync('qemu-io', ['-f', 'vhdx', ...commands.flatMap((command) => ['-c', command]), vhdx], {
    encoding: 'utf8',
  });
  expect(said).not.toContain('verification failed');
  return said;
}

describe('A VHDX written here', () => {
  test('without data has 4 MiB, of which nearly all is a hole, for a disk of 20 GiB', () => {
    const { vhdx, result } = writeBoth('empty', 20 * GIB, []);
    expect(result).toEqual({ fileBytes: 4 * MIB, blocks: 0 });
    expect(statSync(vhdx).size).toBe(4 * MIB);
    expect(statSync(vhdx).blocks * 512).toBeLessThan(256 * 1024);
    expectClean(vhdx);
  });

  test.each([
    ['1 MiB blocks', 20 * GIB, MIB],
    ['2 MiB blocks', 20 * GIB, 2 * MIB],
    ['32 MiB blocks', 20 * GIB, 32 * MIB],
    ['256 MiB blocks', GIB, 256 * MIB],
    ['many chunks', 64 * GIB, MIB],
    ['a BAT of more than 1 MiB', 1024 * GIB, MIB],
    ['a last block cut short', 3 * MIB + 512, MIB],
    ['one sector', 512, MIB],
  ])('holds what was written, as QEMU reads it, and nothing else: %s', async (_, sizeBytes, blockSizeBytes) => {
    const at = (offset: number, length: number, value: number): Write => ({
      offset: Math.max(0, Math.min(offset, sizeBytes - length)),
      data: Buffer.alloc(Math.min(length, sizeBytes), value),
    });
    const writes = [
      // Forth and back, over block and chunk borders (a chunk is 4 GiB), and the very end.
      at(4 * GIB - 3000, 5000, 1),
      at(0, 4096, 2),
      at(8 * GIB - 2000, 5000, 3),
      at(MIB - 1, 2, 4),
      at(sizeBytes, 512, 5),
    ];
    const { vhdx, result } = writeBoth('sizes', sizeBytes, writes, { blockSizeBytes });
    expectClean(vhdx);
    const content = new Map<number, number>();
    for (const { offset, data } of writes)
      for (let byte = 0; byte < data.length; byte++) content.set(offset + byte, data[byte]!);
    // Every run of equal bytes, and the bytes around it.
    const expected: string[] = [];
    for (const [offset, value] of content) {
      if (content.get(offset - 1) === value) continue;
      let end = offset;
      while (content.get(end) === value) end++;
      expected.push(`read -P ${value} ${offset} ${end - offset}`);
      if (offset > 0 && !content.has(offset - 1)) expected.push(`read -P 0 ${offset - 1} 1`);
      if (end < sizeBytes && !content.has(end)) expected.push(`read -P 0 ${end} 1`);
    }
    qemuIo(vhdx, ...expected);
    const touched = [...content.keys()].map((offset) => Math.floor(offset / blockSizeBytes));
    await using file = await open(vhdx);
    const { blocks } = await readVhdx(file, vhdx);
    expect(blocks.numbers).toEqual([...new Set(touched)].sort((one, other) => one - other));
    expect(result.blocks).toBe(blocks.present);
  });

  test('holds any sequence of writes', () => {
    const size = 40 * MIB;
    const write = fc
      .record({ offset: fc.nat(size - 1), length: fc.nat(3 * MIB), value: fc.nat(3) })
      .map(({ offset, length, value }) => ({ offset, data: Buffer.alloc(Math.min(length, size - offset), value) }));
    fc.assert(
      fc.property(fc.array(write, { maxLength: 12 }), (writes) => {
        const { vhdx, raw } = writeBoth('any', size, writes);
        expectSame(vhdx, raw);
      }),
      { seed: 1, numRuns: 25 },
    );
  });

  test('takes no space for zeros, unless they overwrite data', () => {
    const { vhdx, raw, result } = writeBoth('zeros', GIB, [
      { offset: 0, data: Buffer.alloc(100 * MIB) },
      { offset: 200 * MIB, data: Buffer.alloc(10, 1) },
      { offset: 200 * MIB, data: Buffer.alloc(5) },
    ]);
    expect(result.blocks).toBe(1);
    expectSame(vhdx, raw);
  });

  test('is the same for the same writes and seed, and has other identifiers for another seed', async () => {
    const writes = [{ offset: 5 * MIB, data: Buffer.from('data') }];
    const [one, two, three, four] = await Promise.all(
      [{ seed: 'a' }, { seed: 'a' }, { seed: 'b' }, {}].map(async (options, index) => {
        const { vhdx } = writeBoth(`seed${index}`, GIB, writes, options);
        await using file = await open(vhdx);
        const { metadata, header } = await readVhdx(file, vhdx);
        return { bytes: readFileSync(vhdx), ids: [metadata.virtualDiskId, header.dataWriteGuid, header.fileWriteGuid] };
      }),
    );
    expect(one!.bytes.equals(two!.bytes)).toBe(true);
    expect(new Set([...one!.ids, ...three!.ids, ...four!.ids]).size).toBe(9);
  });

  test('may be written to by QEMU, which allocates new blocks and finds old and new data again', async () => {
    const { vhdx, result } = writeBoth('qemu', 20 * GIB, [
      { offset: 0, data: Buffer.alloc(MIB, 0x11) },
      { offset: 513 * MIB, data: Buffer.alloc(4096, 0x22) },
    ]);
    // Block 512 is the first entry of a page of the BAT, which older QEMU damages (its issue 727).
    qemuIo(vhdx, 'write -P 0x33 512M 1M', 'write -P 0x44 20479M 1M', 'write -P 0x55 4k 4k', 'write -P 0x66 8191M 2M');
    expectClean(vhdx);
    qemuIo(
      vhdx,
      'read -P 0x11 0 4k',
      'read -P 0x55 4k 4k',
      'read -P 0x11 8k 1016k',
      'read -P 0x33 512M 1M',
      'read -P 0x22 513M 4k',
      'read -P 0 537923584 4k',
      'read -P 0x44 20479M 1M',
      'read -P 0x66 8191M 2M',
      'read -P 0 7G 1M',
    );
    await using file = await open(vhdx);
    const after = await readVhdx(file, vhdx);
    expect(after.blocks.present).toBe(result.blocks + 4);
    expect(after.logPending).toBe(false);
  });

  test('of 1 GiB with everything written is not longer than the disk and 4 MiB', () => {
    const writes = Array.from({ length: 64 }, (_, index) => ({ offset: index * MIB, data: Buffer.alloc(MIB, 1) }));
    const { result } = writeBoth('full', 64 * MIB, writes);
    expect(result.fileBytes).toBe(68 * MIB);
  });
});

describe('The VHDX writer', () => {
  const writer = (virtualSizeBytes: number, blockSizeBytes?: number): VhdxWriter => {
    const file = openSync(join(folder, 'refused.vhdx'), 'w');
    try {
      return new VhdxWriter(file, { virtualSizeBytes, ...(blockSizeBytes ? { blockSizeBytes } : {}) });
    } finally {
      closeSync(file);
    }
  };

  test.each([0, -512, 1000, NaN, 65 * 2 ** 40])('refuses a disk of %d bytes', (size) => {
    expect(() => writer(size)).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
  });

  test.each([512, 3 * MIB, 512 * MIB, 1.5])('refuses blocks of %d bytes', (size) => {
    expect(() => writer(GIB, size)).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
  });

  test.each([
    [-1, 1],
    [GIB, 1],
    [GIB - 1, 2],
    [0.5, 1],
  ])('refuses a write outside of the disk, at %d of %i bytes', (offset, length) => {
    const target = writer(GIB);
    expect(() => target.write(offset, Buffer.alloc(length, 1))).toThrow(
      expect.objectContaining({ code: 'INVALID_ARGUMENT' }),
    );
  });

  test('is of no use once finished', () => {
    const file = openSync(join(folder, 'finished.vhdx'), 'w');
    const target = new VhdxWriter(file, { virtualSizeBytes: GIB });
    target.finish();
    expect(() => target.write(0, Buffer.alloc(1))).toThrow(expect.objectContaining({ code: 'CLOSED' }));
    expect(() => target.finish()).toThrow(expect.objectContaining({ code: 'CLOSED' }));
    closeSync(file);
  });
});
