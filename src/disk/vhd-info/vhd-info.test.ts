import { execFileSync } from 'node:child_process';
import { appendFileSync, mkdtempSync, readFileSync, rmSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { isLcowError } from '../../errors/index.js';
import { encodeFixedVhdFooter, VHD_FOOTER_BYTES } from '../vhd/index.js';
import { vhdInfo, type VhdInfo } from './index.js';

const MIB = 2 ** 20;
const UUID = Buffer.from('00112233445566778899aabbccddeeff', 'hex');

let folder: string;
let path: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'lcow-vhd-info-'));
  path = join(folder, 'disk');
});
afterAll(() => rmSync(folder, { recursive: true }));

function qemuImg(...command: string[]): void {
  execFileSync('qemu-img', command, { stdio: ['ignore', 'ignore', 'pipe'] });
}

/** What vhdInfo says of the raw disk at `path` once it has a footer. */
async function describeWithFooter(): Promise<VhdInfo> {
  appendFileSync(path, encodeFixedVhdFooter(statSync(path).size, UUID));
  return vhdInfo(path);
}

describe('vhdInfo', () => {
  test('knows a fixed VHD', async () => {
    writeFileSync(path, Buffer.concat([Buffer.alloc(3 * MIB), encodeFixedVhdFooter(3 * MIB, UUID)]));
    expect(await vhdInfo(path)).toMatchObject({
      kind: 'fixed-vhd',
      virtualSizeBytes: 3 * MIB,
      fileSizeBytes: 3 * MIB + 512,
      uuid: '00112233-4455-6677-8899-aabbccddeeff',
      creator: 'win',
      geometry: [90, 4, 17],
    });
  });

  test('finds the ext4 in a fixed VHD, and none where there is none', async () => {
    writeFileSync(path, '');
    truncateSync(path, 8 * MIB);
    expect(await describeWithFooter()).not.toHaveProperty('ext4');
    truncateSync(path, 8 * MIB);
    execFileSync('mke2fs', ['-q', '-t', 'ext4', '-L', 'a-label', path]);
    expect(await describeWithFooter()).toMatchObject({
      kind: 'fixed-vhd',
      ext4: { label: 'a-label', sizeBytes: 8 * MIB, hasJournal: true },
    });
  });

  test('knows a fixed VHD of QEMU', async () => {
    qemuImg('create', '-f', 'vpc', '-o', 'subformat=fixed,force_size=on', path, '3M');
    expect(await vhdInfo(path)).toMatchObject({ kind: 'fixed-vhd', virtualSizeBytes: 3 * MIB, creator: 'qem2' });
  });

  test('knows a dynamic VHD and counts its blocks', async () => {
    qemuImg('create', '-f', 'vpc', '-o', 'force_size=on', path, '1G');
    execFileSync('qemu-io', ['-f', 'vpc', '-c', 'write 5M 1k', '-c', 'write 900M 4M', path], { stdio: 'ignore' });
    expect(await vhdInfo(path)).toMatchObject({
      kind: 'dynamic-vhd',
      virtualSizeBytes: 1024 * MIB,
      blockSizeBytes: 2 * MIB,
      totalBlocks: 512,
      presentBlocks: 3,
      footerGood: true,
    });
  });

  test('reads a dynamic VHD whose last footer is damaged, and says so', async () => {
    qemuImg('create', '-f', 'vpc', '-o', 'force_size=on', path, '1G');
    const bytes = readFileSync(path);
    writeFileSync(path, bytes.fill(1, bytes.length - 100));
    expect(await vhdInfo(path)).toMatchObject({ kind: 'dynamic-vhd', footerGood: false });
  });

  test('knows a VHDX', async () => {
    qemuImg('create', '-f', 'vhdx', '-o', 'block_size=8M', path, '20G');
    expect(await vhdInfo(path)).toMatchObject({
      kind: 'vhdx',
      virtualSizeBytes: 20480 * MIB,
      totalBlocks: 2560,
      presentBlocks: 0,
      fixed: false,
      logPending: false,
      headersGood: [true, true],
      regionTablesGood: [true, true],
    });
  });

  test.each<[string, string, Buffer, RegExp]>([
    ['an empty file', 'BAD_VHD', Buffer.alloc(0), /has 0 bytes/],
    ['a raw disk', 'BAD_VHD', Buffer.alloc(MIB), /neither VHD nor VHDX/],
    ['a cut VHDX', 'BAD_VHDX', Buffer.from('vhdxfile'), /has 8 bytes/],
    [
      'a cut dynamic VHD',
      'BAD_VHD',
      Buffer.from('conectix'.padEnd(600, '\0')),
      /checksum of the hard disk footer at byte 64/,
    ],
    [
      'a fixed VHD with bytes missing',
      'BAD_VHD',
      Buffer.concat([Buffer.alloc(4096), encodeFixedVhdFooter(8192, UUID)]),
      /currentSize .* at byte 4144 is 8192, but 4096 bytes/,
    ],
  ])('refuses %s', async (_, code, content, message) => {
    writeFileSync(path, content);
    await expect(vhdInfo(path)).rejects.toThrow(message);
    await expect(vhdInfo(path)).rejects.toMatchObject({ code });
  });

  test('refuses what is not a file or not there', async () => {
    await expect(vhdInfo(folder)).rejects.toMatchObject({ code: 'BAD_VHD' });
    await expect(vhdInfo(join(folder, 'no'))).rejects.toMatchObject({ code: 'NOT_FOUND' });
  });

  test('takes any damage to a dynamic VHD', async () => {
    qemuImg('create', '-f', 'vpc', '-o', 'force_size=on', path, '64M');
    execFileSync('qemu-io', ['-f', 'vpc', '-c', 'write 5M 1k', path], { stdio: 'ignore' });
    truncateSync(path, 8192);
    const good = readFileSync(path);
    // Footer copy, dynamic header and table; and the header's checksum put right, so that its fields are looked at.
    const place = fc.oneof(
      fc.nat(95),
      fc.nat(39).map((at) => 512 + at),
      fc.nat(127).map((at) => 1536 + at),
    );
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.tuple(place, fc.constantFrom(0, 1, 0x7f, 0x80, 0xff)), { minLength: 1, maxLength: 3 }),
        fc.option(fc.nat(8192), { freq: 5 }),
        async (changes, cut) => {
          const bytes = Buffer.from(good);
          for (const [at, value] of changes) bytes[at] = value;
          for (const [start, size, field] of [
            [0, VHD_FOOTER_BYTES, 64],
            [512, 1024, 36],
          ] as const) {
            bytes.writeUInt32BE(0, start + field);
            const sum = bytes.subarray(start, start + size).reduce((total, byte) => total + byte, 0);
            bytes.writeUInt32BE(~sum >>> 0, start + field);
          }
          writeFileSync(path, cut === null ? bytes : bytes.subarray(0, cut));
          const started = performance.now();
          await vhdInfo(path).catch((error: unknown) => {
            if (!isLcowError(error, 'BAD_VHD', 'BAD_VHDX')) throw error;
          });
          expect(performance.now() - started).toBeLessThan(2000);
        },
      ),
      { seed: 3, numRuns: 1000 },
    );
  });
});
