import { closeSync, mkdirSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { MAXIMUM_CHAIN_LENGTH, openVhdx, VhdxWriter } from './index.js';
import {
  FILE_PARAMETERS,
  METADATA_ITEMS,
  METADATA_TABLE_ENTRY,
  METADATA_TABLE_HEADER,
  PARENT_LOCATOR_ENTRY,
  PARENT_LOCATOR_HEADER,
  VHDX_PARENT_LOCATOR,
} from './layout.js';
import { parentCandidates } from './parent-locator.js';

const MIB = 2 ** 20;
const SECTOR = 512;
// Where the writer puts things.
const METADATA_AT = 2 * MIB;
const ITEMS_AT = METADATA_AT + 0x10000;
const BAT_AT = 3 * MIB;
const BITMAP_ENTRY = 4096;

let folder: string;
beforeAll(() => void (folder = mkdtempSync(join(tmpdir(), 'lcow-vhdx-parent-'))));
afterAll(() => rmSync(folder, { recursive: true }));

function make(path: string, sizeBytes: number, writes: readonly (readonly [number, Buffer])[]): void {
  const file = openSync(path, 'w');
  const writer = new VhdxWriter(file, { virtualSizeBytes: sizeBytes });
  for (const [offset, data] of writes) writer.write(offset, data);
  writer.finish();
  closeSync(file);
}

async function guidOf(path: string): Promise<string> {
  await using disk = await openVhdx(path);
  return disk.dataWriteGuid;
}

/** The parent locator item (2.6.2.6), as the specification lays it out. */
function locator(pairs: Readonly<Record<string, string>>): Buffer {
  const entries = Object.entries(pairs).map((pair) => pair.map((text) => Buffer.from(text, 'utf16le')));
  let at = PARENT_LOCATOR_HEADER.size + entries.length * PARENT_LOCATOR_ENTRY.size;
  const table = entries.map(([key, value]) => {
    const entry = PARENT_LOCATOR_ENTRY.encode({
      keyOffset: at,
      valueOffset: at + key!.length,
      keyLength: key!.length,
      valueLength: value!.length,
    });
    at += key!.length + value!.length;
    return entry;
  });
  const head = PARENT_LOCATOR_HEADER.encode({ locatorType: VHDX_PARENT_LOCATOR, keyValueCount: entries.length });
  return Buffer.concat([head, ...table, ...entries.flat()]);
}

/**
 * Makes a file a differencing one: some blocks partly present, their sectors as `isHere` has it, and some blocks zeros.
 * No tool on this host makes such files; the layout is that of 2.4 to 2.6.
 */
function makeChild(
  path: string,
  pairs: Readonly<Record<string, string>>,
  child: { partial?: readonly number[]; isHere?: (sector: number) => boolean; zero?: readonly number[] } = {},
): void {
  const bytes = readFileSync(path);
  bytes.writeUInt32LE(2, ITEMS_AT + FILE_PARAMETERS.fields.flags.offset);
  const item = locator(pairs);
  const count = bytes.readUInt16LE(METADATA_AT + METADATA_TABLE_HEADER.fields.entryCount.offset);
  METADATA_TABLE_ENTRY.encode({
    itemId: METADATA_ITEMS.parentLocator.guid,
    offset: 0x10000 + 1000,
    length: item.length,
    flags: METADATA_ITEMS.parentLocator.flags,
  }).copy(bytes, METADATA_AT + METADATA_TABLE_HEADER.size + count * METADATA_TABLE_ENTRY.size);
  bytes.writeUInt16LE(count + 1, METADATA_AT + METADATA_TABLE_HEADER.fields.entryCount.offset);
  item.copy(bytes, ITEMS_AT + 1000);
  const bitmap = Buffer.alloc(MIB);
  for (const block of child.partial ?? []) {
    const at = BAT_AT + block * 8;
    bytes.writeBigUInt64LE((bytes.readBigUInt64LE(at) & ~7n) | 7n, at);
    for (let sector = (block * MIB) / SECTOR; sector < ((block + 1) * MIB) / SECTOR; sector++)
      if (child.isHere?.(sector)) bitmap[sector >>> 3]! |= 1 << (sector & 7);
  }
  for (const block of child.zero ?? []) bytes.writeBigUInt64LE(2n, BAT_AT + block * 8);
  bytes.writeBigUInt64LE(BigInt(bytes.length) | 6n, BAT_AT + BITMAP_ENTRY * 8);
  writeFileSync(path, Buffer.concat([bytes, bitmap]));
}

describe('A differencing VHDX', () => {
  test('reads from its parent what is not in it, sector by sector', async () => {
    const base = join(folder, 'base.vhdx');
    const path = join(folder, 'child.vhdx');
    const size = 8 * MIB;
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.boolean(), { minLength: 3, maxLength: 40 }),
        fc.array(fc.tuple(fc.nat(size - 1), fc.nat(2 * MIB)), { minLength: 5, maxLength: 5 }),
        async (pattern, reads) => {
          const below = Buffer.alloc(size);
          for (let at = 0; at < size; at += 4) below.writeUInt32LE(at, at);
          make(base, size, [[0, below]]);
          const isHere = (sector: number): boolean => pattern[sector % pattern.length]!;
          make(path, size + MIB, [[MIB, Buffer.alloc(3 * MIB, 0xaa)]]);
          const linkage = `{${(await guidOf(base)).toUpperCase()}}`;
          const pairs = { parent_linkage: linkage, relative_path: '.\\base.vhdx' };
          makeChild(path, pairs, { partial: [2, 3], isHere, zero: [6] });
          // By the specification: block 1 is here, 2 and 3 partly, 6 is zeros, 8 is behind the parent's end.
          const expected = Buffer.concat([below, Buffer.alloc(MIB)]);
          expected.fill(0xaa, MIB, 2 * MIB);
          expected.fill(0, 6 * MIB, 7 * MIB);
          for (let sector = (2 * MIB) / SECTOR; sector < (4 * MIB) / SECTOR; sector++)
            if (isHere(sector)) expected.fill(0xaa, sector * SECTOR, (sector + 1) * SECTOR);
          await using disk = await openVhdx(path);
          for (const [offset, length] of reads) {
            const bytes = Math.min(length, size + MIB - offset);
            expect((await disk.read(offset, bytes)).equals(expected.subarray(offset, offset + bytes))).toBe(true);
          }
          expect([...disk.dataRuns()]).toEqual([{ start: 0, end: size }]);
        },
      ),
      { seed: 9, numRuns: 10 },
    );
  });

  test('reads through a chain, and refuses one that is too long or a circle', async () => {
    const name = (index: number): string => join(folder, `chain${index}.vhdx`);
    make(name(0), 4 * MIB, [[0, Buffer.from('base')]]);
    for (let index = 1; index <= MAXIMUM_CHAIN_LENGTH; index++) {
      make(name(index), 4 * MIB, index === 3 ? [[MIB, Buffer.from('three')]] : []);
      const parent_linkage = `{${await guidOfFile(name(index - 1))}}`;
      makeChild(name(index), { parent_linkage, relative_path: `chain${index - 1}.vhdx` });
    }
    await using disk = await openVhdx(name(MAXIMUM_CHAIN_LENGTH - 1));
    expect((await disk.read(0, 4)).toString()).toBe('base');
    expect((await disk.read(MIB, 5)).toString()).toBe('three');
    await expect(openVhdx(name(MAXIMUM_CHAIN_LENGTH))).rejects.toThrow(/has more than 31 parents/);
  });

  test('refuses a parent that was written to since', async () => {
    const base = join(folder, 'changed.vhdx');
    const path = join(folder, 'child-of-changed.vhdx');
    make(base, 4 * MIB, []);
    make(path, 4 * MIB, []);
    makeChild(path, { parent_linkage: `{${await guidOf(base)}}`, relative_path: 'changed.vhdx' });
    await (await openVhdx(path)).close();
    {
      await using disk = await openVhdx(base, { writable: true });
      await disk.write(0, Buffer.from('x'));
    }
    await expect(openVhdx(path)).rejects.toMatchObject({
      code: 'BAD_VHDX',
      message: expect.stringMatching(/changed\.vhdx cannot be the parent of .*: it was written to since/) as string,
    });
  });

  test('refuses a missing parent, names the paths, and is not written to', async () => {
    const path = join(folder, 'orphan.vhdx');
    make(path, 4 * MIB, []);
    makeChild(path, { parent_linkage: '{x}', relative_path: 'gone.vhdx', absolute_win32_path: '\\\\?\\d:\\gone.vhdx' });
    await expect(openVhdx(path)).rejects.toMatchObject({
      code: 'BAD_VHDX',
      details: { paths: ['gone.vhdx', '\\\\?\\d:\\gone.vhdx'] },
    });
    await expect(openVhdx(path, { writable: true })).rejects.toMatchObject({ code: 'NOT_SUPPORTED' });
  });

  test.each([
    ['without linkage', { relative_path: 'base.vhdx' }, /parent_linkage of the parent locator/],
    ['without paths', { parent_linkage: '{x}' }, /paths of the parent locator/],
    ['with a NUL in a path', { parent_linkage: '{x}', relative_path: 'a\0b' }, /has a NUL in it/],
  ])('is refused %s', async (_, pairs, message) => {
    const path = join(folder, 'bad.vhdx');
    make(path, 4 * MIB, []);
    makeChild(path, pairs);
    await expect(openVhdx(path)).rejects.toThrow(message);
  });

  test('is looked for where its path says, in the host’s form of a path', () => {
    mkdirSync(join(folder, 'sub'), { recursive: true });
    const paths = ['..\\..\\other\\parent.vhdx', '\\\\?\\d:\\x\\parent.vhdx', 'd:\\x.vhdx'];
    expect(parentCandidates({ linkage: [], paths }, '/a/b/c/child.vhdx', 'linux')).toEqual(['/a/other/parent.vhdx']);
  });
});

/** The data-write GUID, without opening the parents. */
async function guidOfFile(path: string): Promise<string> {
  const { open } = await import('node:fs/promises');
  const { readVhdx } = await import('./index.js');
  await using file = await open(path);
  return (await readVhdx(file, path)).header.dataWriteGuid;
}
