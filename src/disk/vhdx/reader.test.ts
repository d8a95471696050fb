import { execFileSync } from 'node:child_process';
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterAll, afterEach, beforeAll, describe, expect, test, vi } from 'vitest';
import { isLcowError } from '../../errors/index.js';
import { crc32cWithoutField } from './crc32c.js';
import { readVhdx, VhdxWriter, type VhdxFile } from './index.js';
import {
  FILE_PARAMETERS,
  HEADER,
  HEADER_OFFSETS,
  METADATA_TABLE_ENTRY,
  METADATA_TABLE_HEADER,
  REGION_TABLE_BYTES,
  REGION_TABLE_ENTRY,
  REGION_TABLE_HEADER,
  REGION_TABLE_OFFSETS,
} from './layout.js';

const MIB = 2 ** 20;
// Where the writer puts things.
const METADATA_AT = 2 * MIB;
const ITEMS_AT = METADATA_AT + 0x10000;
const BAT_AT = 3 * MIB;
const STRUCTURES = [
  [0, 8],
  ...HEADER_OFFSETS.map((start) => [start, HEADER.size] as const),
  ...REGION_TABLE_OFFSETS.map((start) => [start, REGION_TABLE_BYTES] as const),
  [METADATA_AT, 4096],
  [ITEMS_AT, 40],
  [BAT_AT, 64],
] as const;

let folder: string;
let path: string;
/** A disk of 8 MiB with blocks 1 and 5 present: a file of 6 MiB. */
let good: Buffer;

beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'lcow-vhdx-reader-'));
  path = join(folder, 'disk.vhdx');
  const file = openSync(path, 'w');
  const writer = new VhdxWriter(file, { virtualSizeBytes: 8 * MIB, seed: 'reader' });
  writer.write(5 * MIB, Buffer.alloc(MIB, 5));
  writer.write(MIB, Buffer.alloc(MIB, 1));
  writer.finish();
  closeSync(file);
  good = readFileSync(path);
});
afterEach(() => {
  vi.restoreAllMocks();
  writeFileSync(path, good);
});
afterAll(() => rmSync(folder, { recursive: true }));

async function read(): Promise<VhdxFile> {
  await using file = await open(path);
  return await readVhdx(file, 'disk.vhdx');
}

/** Changes the file; the bytes are those of the good one beforehand. */
async function patched(...changes: readonly (readonly [offset: number, data: Uint8Array])[]): Promise<void> {
  await using file = await open(path, 'r+');
  for (const [offset, data] of changes) await file.write(data, 0, data.length, offset);
}

function le(value: number | bigint, size: 2 | 4 | 8): Buffer {
  const bytes = Buffer.alloc(size);
  if (size === 8) bytes.writeBigUInt64LE(BigInt(value));
  else bytes.writeUIntLE(Number(value), 0, size);
  return bytes;
}

/** Changes both copies of a structure and gives them good checksums again. */
async function resealed(
  [first, second]: readonly [number, number],
  size: number,
  ...changes: readonly (readonly [offset: number, data: Uint8Array])[]
): Promise<void> {
  for (const start of [first, second]) {
    const block = Buffer.from(good.subarray(start, start + size));
    for (const [offset, data] of changes) block.set(data, offset);
    block.writeUInt32LE(crc32cWithoutField(block, 4), 4);
    await patched([start, block]);
  }
}

const inHeaders = (offset: number, data: Uint8Array): Promise<void> =>
  resealed(HEADER_OFFSETS, HEADER.size, [offset, data]);
const inRegions = (offset: number, data: Uint8Array): Promise<void> =>
  resealed(REGION_TABLE_OFFSETS, REGION_TABLE_BYTES, [offset, data]);
const inMetadata = (offset: number, data: Uint8Array): Promise<void> => patched([METADATA_AT + offset, data]);
const region = (index: number, field: keyof typeof REGION_TABLE_ENTRY.fields): number =>
  REGION_TABLE_HEADER.size + index * REGION_TABLE_ENTRY.size + REGION_TABLE_ENTRY.fields[field].offset;
const item = (index: number, field: keyof typeof METADATA_TABLE_ENTRY.fields): number =>
  METADATA_TABLE_HEADER.size + index * METADATA_TABLE_ENTRY.size + METADATA_TABLE_ENTRY.fields[field].offset;
const inBat = (index: number, entry: bigint): Promise<void> => patched([BAT_AT + index * 8, le(entry, 8)]);

describe('The VHDX reader', () => {
  test('finds in a written file what was asked for', async () => {
    expect(await read()).toMatchObject({
      creator: 'lcow',
      logPending: false,
      copies: { headers: [true, true], regionTables: [true, true] },
      metadata: { virtualSizeBytes: 8 * MIB, blockSizeBytes: MIB, logicalSectorBytes: 512, physicalSectorBytes: 4096 },
      blocks: { total: 8, present: 2, numbers: [1, 5], offsets: [5 * MIB, 4 * MIB] },
      header: { sequenceNumber: 2n },
    });
  });

  test.each([
    ['dynamic', 'subformat=dynamic', 3],
    ['dynamic, with blocks of 8 MiB', 'subformat=dynamic,block_size=8M', 2],
    ['fixed', 'subformat=fixed', undefined],
  ])('reads what QEMU writes: %s', async (_, options, present) => {
    const raw = join(folder, 'qemu.raw');
    writeFileSync(raw, '');
    truncateSync(raw, 20 * MIB + 512);
    await using file = await open(raw, 'r+');
    for (const at of [0, 2, 20]) await file.write(Buffer.alloc(512, 1), 0, 512, at * MIB);
    execFileSync('qemu-img', ['convert', '-f', 'raw', '-O', 'vhdx', '-o', options, raw, path]);
    const { metadata, blocks, creator } = await read();
    expect(metadata.virtualSizeBytes).toBe(20 * MIB + 512);
    expect(creator).toMatch(/^QEMU/);
    if (present !== undefined) expect([2, 3]).toContain(blocks.present);
  });

  test('goes by the header with the higher sequence number', async () => {
    const block = Buffer.from(good.subarray(HEADER_OFFSETS[0], HEADER_OFFSETS[0] + HEADER.size));
    block.writeBigUInt64LE(7n, HEADER.fields.sequenceNumber.offset);
    block.writeUInt32LE(crc32cWithoutField(block, 4), 4);
    await patched([HEADER_OFFSETS[0], block]);
    expect((await read()).header.sequenceNumber).toBe(7n);
  });

  test.each([0, 1])('makes do without copy %i of header and region table', async (copy) => {
    await patched(
      [HEADER_OFFSETS[copy]! + 100, Buffer.from([1])],
      [REGION_TABLE_OFFSETS[copy]! + 100, Buffer.from([1])],
    );
    const left = [copy !== 0, copy !== 1];
    expect((await read()).copies).toEqual({ headers: left, regionTables: left });
  });

  test('takes a log without a whole entry as empty, as a crash before the first one leaves it', async () => {
    await inHeaders(HEADER.fields.logGuid.offset, Buffer.alloc(16, 1));
    expect(await read()).toMatchObject({ logPending: false, log: { kind: 'unused' }, blocks: { present: 2 } });
  });

  test('ignores entries for sector bitmaps, where older QEMU leaves rubbish', async () => {
    const file = openSync(path, 'w');
    const writer = new VhdxWriter(file, { virtualSizeBytes: 2 ** 33 });
    writer.finish();
    closeSync(file);
    await inBat(4096, (77n << 20n) | 3n);
    expect(await read()).toMatchObject({ blocks: { total: 8192, present: 0 } });
  });

  // What is changed, and what the error must name.
  test.each<[string, () => Promise<void>, RegExp]>([
    ['another signature', () => patched([0, Buffer.from('x')]), /signature of the file type identifier at byte 0 /],
    ['no header section', async () => truncateSync(path, 1000), /it has 1000 bytes/],
    [
      'both headers damaged',
      () => patched([HEADER_OFFSETS[0] + 99, Buffer.from([1])], [HEADER_OFFSETS[1] + 99, Buffer.from([1])]),
      /checksum of the header at byte 65540 /,
    ],
    [
      'different headers of one age',
      async () => {
        const block = Buffer.from(good.subarray(HEADER_OFFSETS[0], HEADER_OFFSETS[0] + HEADER.size));
        block.writeBigUInt64LE(2n, HEADER.fields.sequenceNumber.offset);
        block[20]! ^= 1;
        block.writeUInt32LE(crc32cWithoutField(block, 4), 4);
        await patched([HEADER_OFFSETS[0], block]);
      },
      /sequenceNumber of the header at byte 131080 /,
    ],
    ['version 2', () => inHeaders(66, le(2, 2)), /version of the header at byte 65602 is 2/],
    ['log version 1', () => inHeaders(64, le(1, 2)), /logVersion of the header/],
    ['a log that is not aligned', () => inHeaders(72, le(MIB + 4096, 8)), /logOffset of the header at byte 65608 /],
    ['a log of half a mebibyte', () => inHeaders(68, le(MIB / 2, 4)), /logLength of the header/],
    ['a log far away', () => inHeaders(72, le(1n << 62n, 8)), /logOffset of the header/],
    ['a log behind the end', () => inHeaders(72, le(100 * MIB, 8)), /of the log region .* behind the end of the file/],
    ['a log over the BAT', () => inHeaders(72, le(BAT_AT, 8)), /inside of the (BAT|log) region/],
    ['a log over the headers', () => inHeaders(72, le(0, 8)), /inside of the (header section|log) region/],
    ['too many regions', () => inRegions(8, le(2048, 4)), /entryCount of the region table header .* is 2048/],
    ['no regions', () => inRegions(8, le(0, 4)), /name no metadata region/],
    ['no BAT', () => inRegions(region(0, 'guid'), Buffer.alloc(16, 1)), /guid of the region table entry 0 .* unknown/],
    [
      'the same region twice',
      () => inRegions(region(1, 'guid'), good.subarray(REGION_TABLE_OFFSETS[0] + 16, REGION_TABLE_OFFSETS[0] + 32)),
      /guid of the region table entry 1 .* is there twice/,
    ],
    [
      'a BAT over the metadata',
      () => inRegions(region(0, 'fileOffset'), le(METADATA_AT, 8)),
      /inside of the .* region/,
    ],
    ['a BAT that is not aligned', () => inRegions(region(0, 'fileOffset'), le(BAT_AT + 512, 8)), /fileOffset of the/],
    ['a BAT behind the end', () => inRegions(region(0, 'fileOffset'), le(1n << 52n, 8)), /behind the end of the file/],
    ['a BAT of 4 GiB', () => inRegions(region(0, 'length'), le(0xfff00000, 4)), /behind the end of the file/],
    ['a BAT without length', () => inRegions(region(0, 'length'), le(0, 4)), /length of the region table entry 0/],
    ['a file cut off in the BAT', async () => truncateSync(path, BAT_AT + 10), /BAT region .* behind the end/],
    [
      'a file cut off in a block',
      async () => truncateSync(path, 6 * MIB - 1),
      /BAT entry 1 \(block 1\) .* behind the end/,
    ],
    ['metadata without signature', () => inMetadata(0, Buffer.from('x')), /signature of the metadata table header/],
    ['too many items', () => inMetadata(10, le(0xffff, 2)), /entryCount of the metadata table header/],
    [
      'an unknown item',
      () => inMetadata(item(0, 'itemId'), Buffer.alloc(16, 1)),
      /itemId of the metadata table entry 0/,
    ],
    ['a missing item', () => inMetadata(10, le(4, 2)), /have no sector size/],
    [
      'an item twice',
      () =>
        inMetadata(10, le(6, 2)).then(() =>
          inMetadata(item(5, 'itemId'), good.subarray(METADATA_AT + 32, METADATA_AT + 64)),
        ),
      /itemId of the metadata table entry 5 .* twice/,
    ],
    [
      'an item outside of its region',
      () => inMetadata(item(0, 'offset'), le(MIB, 4)),
      /offset of the metadata table entry 0/,
    ],
    ['an item in the table', () => inMetadata(item(0, 'offset'), le(64, 4)), /offset of the metadata table entry 0/],
    [
      'an item of 4 GiB',
      () => inMetadata(item(0, 'length'), le(0xffffffff, 4)),
      /length of the metadata table entry 0/,
    ],
    [
      'an item cut short',
      () => inMetadata(item(1, 'length'), le(7, 4)),
      /length of the virtual disk size .* is 7, not 8/,
    ],
    ['blocks of 0 bytes', () => patched([ITEMS_AT, le(0, 4)]), /blockSize of the metadata item fileParameters/],
    ['blocks of 3 MiB', () => patched([ITEMS_AT, le(3 * MIB, 4)]), /blockSize .* is 3145728/],
    ['blocks of 2 GiB', () => patched([ITEMS_AT, le(2 ** 31, 4)]), /blockSize of the metadata/],
    [
      'a parent that is nowhere',
      () => patched([ITEMS_AT + FILE_PARAMETERS.fields.flags.offset, le(2, 4)]),
      /hasParent .* no parent locator/,
    ],
    ['a disk of 0 bytes', () => patched([ITEMS_AT + 8, le(0, 8)]), /virtualDiskSize/],
    ['a disk of 16 EiB', () => patched([ITEMS_AT + 8, Buffer.alloc(8, 0xff)]), /virtualDiskSize/],
    [
      'a disk larger than its BAT',
      () => patched([ITEMS_AT + 8, le(2 ** 45, 8)]),
      /length of the BAT region .* too small/,
    ],
    ['half a sector', () => patched([ITEMS_AT + 8, le(8 * MIB + 256, 8)]), /virtualDiskSize .* whole sectors/],
    ['sectors of 1 KiB', () => patched([ITEMS_AT + 32, le(1024, 4)]), /logicalSectorSize .* is 1024/],
    ['physical sectors of 0', () => patched([ITEMS_AT + 36, le(0, 4)]), /physicalSectorSize .* is 0/],
    ['a block in the header section', () => inBat(0, 6n), /BAT entry 0 .* inside of the header section/],
    ['a block over the BAT', () => inBat(0, (3n << 20n) | 6n), /inside of the BAT region/],
    ['a block over another', () => inBat(0, (4n << 20n) | 6n), /inside of another block|one more block/],
    ['a block behind the end', () => inBat(0, (6n << 20n) | 6n), /BAT entry 0 .* behind the end/],
    ['a block at the end of the world', () => inBat(0, ~0n & (2n ** 64n - 2n)), /BAT entry 0/],
    ['a block that is partly there', () => inBat(0, (4n << 20n) | 7n), /state of the BAT entry 0 .* is 7/],
  ])('refuses a file with %s, and says where', async (_, damage, message) => {
    await damage();
    await expect(read()).rejects.toThrow(message);
    await expect(read()).rejects.toMatchObject({ code: 'BAD_VHDX' });
  });

  test('takes any damage, reading quickly and little, and what it accepts QEMU can open', async () => {
    const largest = vi.spyOn(Buffer, 'allocUnsafe');
    // Where structures are; the rest of the file is holes and data.
    const place = fc.oneof(
      fc.nat(7),
      ...[...HEADER_OFFSETS, ...REGION_TABLE_OFFSETS].map((start) => fc.nat(95).map((at) => start + at)),
      fc.nat(200).map((at) => METADATA_AT + at),
      fc.nat(39).map((at) => ITEMS_AT + at),
      fc.nat(63).map((at) => BAT_AT + at),
    );
    const value = fc.oneof(fc.constantFrom(0, 1, 0x7f, 0x80, 0xff), fc.nat(255));
    const change = fc.record({ place, value });
    let accepted = 0;
    await fc.assert(
      fc.asyncProperty(
        fc.array(change, { minLength: 1, maxLength: 4 }),
        fc.boolean(),
        fc.option(fc.nat(6 * MIB), { freq: 10 }),
        async (changes, reseal, cut) => {
          const bytes = Buffer.from(good);
          for (const { place: at, value: byte } of changes) bytes[at] = byte;
          if (reseal) {
            // Damage behind a good checksum, in both copies alike, so that QEMU, which reads one, sees it too.
            bytes.copyWithin(HEADER_OFFSETS[1], HEADER_OFFSETS[0], HEADER_OFFSETS[0] + HEADER.size);
            bytes.copyWithin(
              REGION_TABLE_OFFSETS[1],
              REGION_TABLE_OFFSETS[0],
              REGION_TABLE_OFFSETS[0] + REGION_TABLE_BYTES,
            );
            for (const start of HEADER_OFFSETS) {
              const block = bytes.subarray(start, start + HEADER.size);
              block.writeUInt32LE(crc32cWithoutField(block, 4), 4);
            }
            for (const start of REGION_TABLE_OFFSETS) {
              const block = bytes.subarray(start, start + REGION_TABLE_BYTES);
              block.writeUInt32LE(crc32cWithoutField(block, 4), 4);
            }
          }
          // Only where structures are is written: the data of blocks does not matter here.
          truncateSync(path, good.length);
          for (const [start, length] of STRUCTURES) await patched([start, bytes.subarray(start, start + length)]);
          if (cut !== null) truncateSync(path, cut);
          const started = performance.now();
          try {
            const { logPending } = await read();
            if (reseal && !logPending && accepted++ < 20) execFileSync('qemu-img', ['info', '-f', 'vhdx', path]);
          } catch (error) {
            if (!isLcowError(error, 'BAD_VHDX')) throw error;
            expect(error.message).toMatch(/at byte \d+|it has \d+ bytes/);
          }
          expect(performance.now() - started).toBeLessThan(2000);
        },
      ),
      { seed: 20, numRuns: 1000 },
    );
    expect(accepted).toBeGreaterThan(10);
    expect(Math.max(...largest.mock.calls.map(([size]) => size))).toBeLessThanOrEqual(MIB);
  });
});
