import { execFileSync } from 'node:child_process';
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { encodeFixedVhdFooter } from '../vhd/index.js';
import { VhdxWriter } from '../vhdx/index.js';
import { checkDisk } from './index.js';

const MIB = 2 ** 20;
// Where the writer puts the BAT.
const BAT_AT = 3 * MIB;

let folder: string;
let path: string;
let good: Buffer;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'lcow-check-'));
  path = join(folder, 'disk');
  const file = openSync(path, 'w');
  const writer = new VhdxWriter(file, { virtualSizeBytes: 16 * MIB });
  for (const block of [1, 5, 7]) writer.write(block * MIB, Buffer.alloc(MIB, block));
  writer.finish();
  closeSync(file);
  good = readFileSync(path);
});
beforeEach(() => writeFileSync(path, good));
afterAll(() => rmSync(folder, { recursive: true }));

function change(alter: (bytes: Buffer) => void): void {
  const bytes = Buffer.from(good);
  alter(bytes);
  writeFileSync(path, bytes);
}

const entry = (bytes: Buffer, block: number, value: bigint): unknown =>
  bytes.writeBigUInt64LE(value, BAT_AT + block * 8);

describe('checkDisk', () => {
  test('finds nothing wrong with what we and QEMU write', async () => {
    const none = { findings: [], errors: 0, warnings: 0, leaks: 0 };
    expect(await checkDisk(path)).toEqual({
      kind: 'vhdx',
      ...none,
      totalBlocks: 16,
      presentBlocks: 3,
      imageEndBytes: 7 * MIB,
      unusedBytes: 0,
    });
    execFileSync('qemu-img', ['create', '-q', '-f', 'vhdx', path, '1G']);
    execFileSync('qemu-io', ['-f', 'vhdx', '-c', 'write 5M 40M', path], { stdio: 'ignore' });
    expect(await checkDisk(path)).toMatchObject({ kind: 'vhdx', ...none });
    execFileSync('qemu-img', ['create', '-q', '-f', 'vpc', path, '1G']);
    execFileSync('qemu-io', ['-f', 'vpc', '-c', 'write 5M 40M', path], { stdio: 'ignore' });
    expect(await checkDisk(path)).toMatchObject({ kind: 'dynamic-vhd', ...none });
    writeFileSync(path, Buffer.concat([Buffer.alloc(MIB), encodeFixedVhdFooter(MIB, new Uint8Array(16))]));
    expect(await checkDisk(path)).toMatchObject({ kind: 'fixed-vhd', ...none });
  });

  test('names every bad entry of the BAT, not only the first', async () => {
    change((bytes) => {
      entry(bytes, 0, (99n << 20n) | 6n); // behind the end
      entry(bytes, 2, (2n << 20n) | 6n); // in the metadata
      entry(bytes, 3, (5n << 20n) | 6n); // over block 5
      entry(bytes, 4, 4n); // no such state
    });
    const { errors, findings } = await checkDisk(path);
    expect(errors).toBe(4);
    expect(findings.map(({ message }) => /BAT entry (?:\d+ \(block \d+\)|of block \d+).*/.exec(message)![0])).toEqual([
      expect.stringMatching(/0 \(block 0\) .* behind the end of the file/),
      expect.stringMatching(/2 \(block 2\) .* inside of the metadata region/),
      expect.stringMatching(/4 \(block 4\) .* is 4/),
      expect.stringMatching(/of block \d .* inside of another block/),
    ]);
  });

  test('warns of damaged copies and of a log in use', async () => {
    change((bytes) => {
      bytes[0x10000 + 100] = 1;
      bytes[0x40000 + 100] = 1;
    });
    const { warnings, errors, findings } = await checkDisk(path);
    expect([warnings, errors]).toEqual([2, 0]);
    expect(findings.map(({ offset }) => offset)).toEqual([0x10000, 0x40000]);
  });

  test('finds space that nothing refers to', async () => {
    change((bytes) => entry(bytes, 5, 0n));
    truncateSync(path, 9 * MIB);
    expect(await checkDisk(path)).toMatchObject({ errors: 0, leaks: 2, unusedBytes: 3 * MIB, presentBlocks: 2 });
  });

  test.each([
    ['nothing at all', Buffer.alloc(0), 'unknown'],
    ['another format', Buffer.alloc(MIB), 'unknown'],
    ['a VHDX cut off', Buffer.from('vhdxfile'), 'vhdx'],
  ])('has an error for %s', async (_, content, kind) => {
    writeFileSync(path, content);
    expect(await checkDisk(path)).toMatchObject({ kind, errors: 1 });
  });

  test('finds blocks of a dynamic VHD that lie over each other', async () => {
    execFileSync('qemu-img', ['create', '-q', '-f', 'vpc', path, '64M']);
    execFileSync('qemu-io', ['-f', 'vpc', '-c', 'write 0 8M', path], { stdio: 'ignore' });
    const bytes = readFileSync(path);
    const table = Number(bytes.readBigUInt64BE(512 + 16));
    bytes.copyWithin(table + 4, table, table + 4);
    writeFileSync(path, bytes);
    expect(await checkDisk(path)).toMatchObject({ errors: 1, findings: [{ message: 'Block 1 lies over block 0.' }] });
  });

  test('does not drown in findings', async () => {
    const file = openSync(path, 'w');
    new VhdxWriter(file, { virtualSizeBytes: 100 * 2 ** 30 }).finish();
    closeSync(file);
    const bytes = readFileSync(path);
    for (let index = 0; index < 50_000; index++) bytes.writeBigUInt64LE((5n << 40n) | 6n, BAT_AT + index * 8);
    writeFileSync(path, bytes);
    expect((await checkDisk(path)).findings).toHaveLength(1000);
  });
});
