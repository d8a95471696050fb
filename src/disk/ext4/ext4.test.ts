import { execFileSync } from 'node:child_process';
import { closeSync, ftruncateSync, mkdtempSync, openSync, rmSync, statSync, writeFileSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { debugfs, fsck, listImage } from '../../../test/support/ext4-image.js';
import { clearBits, setBits } from './bitmap.js';
import { hashName } from './directory-hash.js';
import { planImage } from './geometry.js';
import { ext4Info, Ext4Writer, formatBlankExt4, type FileAttributes, type ForwardSink } from './index.js';
import { HASH_SEED } from './superblock.js';
import { GROUP_DESCRIPTOR, INODE, SUPERBLOCK } from './structures.js';
import { timeExtra, timeSeconds } from './time.js';
import { layOutXattrs } from './xattr.js';

let folder: string;
let image: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'lcow-ext4-'));
  image = join(folder, 'image');
});
afterEach(() => rmSync(image, { force: true }));
afterAll(() => rmSync(folder, { recursive: true }));

const ATTRIBUTES: FileAttributes = {
  mode: 0o644,
  uid: 0,
  gid: 0,
  mtime: 0,
  mtimeNs: 0,
  atime: undefined,
  atimeNs: 0,
  ctime: undefined,
  ctimeNs: 0,
  xattrs: undefined,
};

/** Content that the sink leaves as a hole of the file, so that huge images cost nothing. */
const ZEROS = Buffer.alloc(1 << 20);

class SparseSink implements ForwardSink {
  position = 0;
  readonly fd = openSync(image, 'w');

  append(data: Buffer, start: number, end: number): void {
    if (data !== ZEROS) writeSync(this.fd, data, start, end - start, this.position);
    this.position += end - start;
  }
  appendZeros(count: number): void {
    this.position += count;
  }
  async drain(): Promise<void> {}
  async writeAt(offset: number, data: Buffer): Promise<void> {
    writeSync(this.fd, data, 0, data.length, offset);
  }
}

async function writeImage(fill: (writer: Ext4Writer) => void, maximumBytes?: number): Promise<void> {
  const sink = new SparseSink();
  const writer = new Ext4Writer(sink, maximumBytes === undefined ? {} : { maximumBytes });
  fill(writer);
  const { imageBytes } = await writer.finish();
  ftruncateSync(sink.fd, imageBytes);
  closeSync(sink.fd);
}

function addZeroFile(writer: Ext4Writer, path: string, bytes: number): void {
  writer.beginFile(path, ATTRIBUTES, bytes);
  for (let left = bytes; left > 0; left -= ZEROS.length) writer.write(ZEROS, 0, Math.min(left, ZEROS.length));
  writer.endFile();
}

describe('a written image', () => {
  const MiB = 2 ** 20;
  test.each([
    ['the last byte of one extent', 128 * MiB],
    ['one block more than an extent', 128 * MiB + 1],
    ['all that fits into the inode', 512 * MiB],
    ['a tree of one level', 512 * MiB + 1],
    ['one leaf', 340 * 128 * MiB],
    ['more than a leaf: where tar2ext4 errs', 340 * 128 * MiB + 1],
    ['more leaves than the inode holds', 4 * 340 * 128 * MiB + 1],
  ])('holds a file of %s', async (_, bytes) => {
    await writeImage((writer) => {
      addZeroFile(writer, 'before', 5000);
      addZeroFile(writer, 'big', bytes);
      addZeroFile(writer, 'after', 5000);
    });
    expect(await fsck(image)).toEqual({ exitCode: 0, complaints: [] });
    const [size, last] = await debugfs(image, ['stat /big', `bmap /big ${Math.ceil(bytes / 4096) - 1}`]);
    expect(size).toContain(`Size: ${bytes}`);
    expect(Number(last)).toBe(17 + 2 + Math.ceil(bytes / 4096) - 1);
  });

  test('a socket is one', async () => {
    await writeImage((writer) => writer.makeSpecial('run/socket', ATTRIBUTES, 'socket'));
    expect((await listImage(image)).get('run/socket')?.type).toBe('socket');
  });

  test('holes are kept, at the start, in the middle and at the end', async () => {
    await writeImage((writer) => {
      writer.beginFile('f', ATTRIBUTES, 40_000_001);
      writer.hole(10_000_000);
      writer.write(Buffer.from('middle'), 0, 6);
      writer.hole(29_999_995);
      writer.endFile();
      writer.beginFile('empty', ATTRIBUTES, 9_999);
      writer.hole(9_999);
      writer.endFile();
    });
    expect(await fsck(image)).toEqual({ exitCode: 0, complaints: [] });
    expect(statSync(image).size).toBeLessThan(150_000);
    const seen = await listImage(image);
    expect([seen.get('f')?.size, seen.get('empty')?.size]).toEqual([40_000_001, 9_999]);
  });

  test('a file that gets fewer bytes than it was begun with is refused', async () => {
    const writing = writeImage((writer) => {
      writer.beginFile('short', ATTRIBUTES, 10);
      writer.write(Buffer.from('abc'), 0, 3);
      writer.endFile();
    });
    await expect(writing).rejects.toMatchObject({ code: 'BAD_TAR' });
  });

  test('room for descriptors follows from the maximum size', async () => {
    await writeImage((writer) => addZeroFile(writer, 'f', 1), 16 * 2 ** 40);
    expect(await fsck(image)).toEqual({ exitCode: 0, complaints: [] });
    expect((await ext4Info(image)).freeBlocks).toBe(1023);
  });
});

describe('a blank file system', () => {
  const sizes = [
    1 << 20,
    (1 << 20) + 4096,
    3_000_000,
    128 * 2 ** 20,
    128 * 2 ** 20 + 4096,
    20 * 2 ** 30,
    300 * 2 ** 30,
  ];
  test.each(sizes)('of %i bytes has nothing for e2fsck', async (size) => {
    const writes = format(size);
    expect(await fsck(image)).toEqual({ exitCode: 0, complaints: [] });
    expect(await ext4Info(image)).toMatchObject({
      sizeBytes: Math.floor(size / 4096) * 4096,
      hasJournal: false,
      readOnly: false,
    });
    expect([...(await listImage(image)).keys()]).toEqual(['', 'lost+found']);
    expect(writes.every(({ zero }) => !zero)).toBe(true);
  });

  test('of 20 GiB is all in its first 2 MiB, and nothing is left to the kernel to initialise', async () => {
    const writes = format(20 * 2 ** 30);
    expect(Math.max(...writes.map(({ end }) => end))).toBeLessThan(2 << 20);
    const [flags] = await debugfs(image, ['stats']);
    expect(flags).not.toContain('INODE_UNINIT');
    expect(flags).not.toMatch(/uninit_bg|metadata_csum/);
  });

  test('has the label and UUID it is given', async () => {
    format(1 << 20, { uuid: Buffer.from('000102030405060708090a0b0c0d0e0f', 'hex'), label: 'größer' });
    expect(await ext4Info(image)).toMatchObject({ uuid: '00010203-0405-0607-0809-0a0b0c0d0e0f', label: 'größer' });
  });

  test.each([0, 4096, (1 << 20) - 1, 2 ** 44, NaN, 1.5 * 2 ** 21 + 0.5])('of %d bytes is refused', (size) => {
    expect(() => formatBlankExt4({ write: () => undefined }, size)).toThrow(
      expect.objectContaining({ code: 'INVALID_ARGUMENT' }),
    );
  });

  function format(size: number, options: Parameters<typeof formatBlankExt4>[2] = {}): { end: number; zero: boolean }[] {
    const writes: { end: number; zero: boolean }[] = [];
    const fd = openSync(image, 'w');
    ftruncateSync(fd, size);
    formatBlankExt4(
      {
        write(offset, data) {
          writeSync(fd, data, 0, data.length, offset);
          writes.push({ end: offset + data.length, zero: data.every((byte) => byte === 0) });
        },
      },
      size,
      options,
    );
    closeSync(fd);
    return writes;
  }
});

describe('ext4Info', () => {
  test('shows what mke2fs made', async () => {
    writeFileSync(image, '');
    execFileSync('mke2fs', [
      '-q',
      '-t',
      'ext4',
      '-L',
      'made',
      '-U',
      '11111111-2222-3333-4444-555555555555',
      image,
      '64M',
    ]);
    expect(await ext4Info(image)).toMatchObject({
      label: 'made',
      uuid: '11111111-2222-3333-4444-555555555555',
      sizeBytes: 64 * 2 ** 20,
      hasJournal: true,
      readOnly: false,
    });
  });

  test.each([
    ['a short file', Buffer.alloc(100)],
    ['zeros', Buffer.alloc(8192)],
    ['a block size that cannot be', SUPERBLOCK.encode({ s_magic: 0xef53, s_log_block_size: 40 })],
    ['more free blocks than blocks', SUPERBLOCK.encode({ s_magic: 0xef53, s_free_blocks_count_lo: 5 })],
  ])('refuses %s', async (_, content) => {
    writeFileSync(image, content.length === 1024 ? Buffer.concat([Buffer.alloc(1024), content]) : content);
    await expect(ext4Info(image)).rejects.toMatchObject({ code: 'BAD_EXT4' });
  });
});

test('hashes of names are those of debugfs', () => {
  const names = [
    'a',
    'ab',
    'abc',
    'abcd',
    'entry-number-1',
    'x'.repeat(31),
    'y'.repeat(32),
    'z'.repeat(33),
    'w'.repeat(255),
    '!#$%+,.=@^_~',
  ];
  const uuid = HASH_SEED.toString('hex').replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5');
  for (const name of names) {
    const shown = execFileSync('debugfs', ['-R', `dx_hash -h half_md4 -s ${uuid} ${name}`], {
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 'ignore'],
    });
    expect(hashName(name), name).toBe(Number(/is (0x[0-9a-f]+)/.exec(shown)?.[1]));
  }
});

test('times: two bits of epoch, the rest nanoseconds, and nothing wraps', () => {
  fc.assert(
    fc.property(
      fc.integer({ min: -(2 ** 31), max: 2 ** 34 - 2 ** 31 - 1 }),
      fc.integer({ min: 0, max: 999_999_999 }),
      (seconds, ns) => {
        const extra = timeExtra(seconds, ns);
        expect((timeSeconds(seconds) | 0) + (extra & 3) * 2 ** 32).toBe(seconds);
        expect(extra >>> 2).toBe(ns);
      },
    ),
  );
});

test('any number of blocks and inodes has a geometry that holds them', () => {
  fc.assert(
    fc.property(fc.integer({ min: 3, max: 2 ** 31 }), fc.integer({ min: 11, max: 4_000_000 }), (content, inodes) => {
      const plan = planImage(content, inodes)!;
      expect(plan.groups * plan.inodesPerGroup).toBeGreaterThanOrEqual(inodes);
      expect(plan.inodesPerGroup).toBeLessThanOrEqual(32768);
      expect(plan.blocksPerGroup % 8).toBe(0);
      expect(plan.blocksPerGroup).toBeLessThanOrEqual(32768);
      expect(Math.ceil(plan.blocks / plan.blocksPerGroup)).toBe(plan.groups);
      expect(plan.usedBlocks).toBe(content + (plan.groups * plan.inodesPerGroup) / 16 + 2 * plan.groups);
      // Beside a last group of one block, the rounding of each group to whole bytes of its bitmap.
      expect(plan.blocks - plan.usedBlocks).toBeLessThanOrEqual(Math.max(plan.blocksPerGroup, 8 * plan.groups));
    }),
    { numRuns: 2000, examples: [[1394186911, 2042641]] },
  );
  expect(planImage(2 ** 32 - 10, 1000)).toBeUndefined();
});

test('bits are set and cleared, and no others', () => {
  fc.assert(
    fc.property(fc.integer({ min: 0, max: 128 }), fc.integer({ min: 0, max: 128 }), (from, to) => {
      const bits = (bitmap: Uint8Array): boolean[] =>
        Array.from({ length: 128 }, (_, i) => ((bitmap[i >> 3]! >> (i & 7)) & 1) === 1);
      const set = new Uint8Array(16);
      setBits(set, from, to);
      expect(bits(set)).toEqual(Array.from({ length: 128 }, (_, i) => i >= from && i < to));
      const cleared = new Uint8Array(16).fill(0xff);
      clearBits(cleared, from, to);
      expect(bits(cleared)).toEqual(bits(set).map((bit) => !bit));
    }),
  );
});

test('attributes fill a block to its last byte, and not beyond', () => {
  // In a block: header 32, entry 16 and name 4, terminator 4.
  const room = 4096 - 32 - 20 - 4;
  expect(layOutXattrs(new Map([['user.name', Buffer.alloc(room)]])).inBlock).toHaveLength(1);
  expect(() => layOutXattrs(new Map([['user.name', Buffer.alloc(room + 1)]]))).toThrow(
    expect.objectContaining({ code: 'BAD_TAR' }),
  );
  // In the inode: magic 4, entry 16 and name 4, terminator 4, of 96.
  expect(layOutXattrs(new Map([['user.name', Buffer.alloc(68)]]))).toMatchObject({ inBlock: [] });
  expect(layOutXattrs(new Map([['user.name', Buffer.alloc(69)]]))).toMatchObject({ inBody: [] });
});

test('the structures have the sizes of the kernel', () => {
  expect([SUPERBLOCK.size, GROUP_DESCRIPTOR.size, INODE.size]).toEqual([1024, 32, 256]);
});
