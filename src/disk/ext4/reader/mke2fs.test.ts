import { execFileSync } from 'node:child_process';
import {
  linkSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  closeSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
  writeSync,
  ftruncateSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { debugfs, listImage, readInodes } from '../../../../test/support/ext4-image.js';
import { openDisk } from '../../source/index.js';
import { openExt4, type Ext4Inode, type Ext4Reader } from './index.js';

/** Images of mke2fs in its variety, read and compared with the folder they were made of and with debugfs. */
const VARIANTS: readonly (readonly [name: string, options: readonly string[]])[] = [
  ['ext4 as usual', []],
  ['blocks of 1 KiB', ['-b', '1024']],
  ['blocks of 2 KiB', ['-b', '2048']],
  ['without checksums', ['-O', '^metadata_csum']],
  ['with checksums of descriptors alone', ['-O', '^metadata_csum,uninit_bg']],
  ['without 64bit', ['-O', '^64bit']],
  ['with a seed of checksums', ['-O', 'metadata_csum_seed']],
  ['inline data', ['-O', 'inline_data']],
  ['inline data, 1 KiB blocks, large inodes', ['-O', 'inline_data', '-b', '1024', '-I', '512']],
  ['no journal', ['-O', '^has_journal']],
  ['no extents', ['-O', '^extents,^64bit']],
  ['no extents, blocks of 1 KiB', ['-O', '^extents,^64bit', '-b', '1024']],
  ['no directory index', ['-O', '^dir_index']],
  ['meta_bg', ['-O', 'meta_bg,^resize_inode', '-b', '1024', '-g', '1024']],
  [
    'meta_bg without checksums and flex_bg',
    ['-O', 'meta_bg,^resize_inode,^metadata_csum,^flex_bg', '-b', '1024', '-g', '2048'],
  ],
  ['sparse_super2', ['-O', 'sparse_super2,^resize_inode', '-g', '1024', '-b', '1024']],
  ['ea_inode', ['-O', 'ea_inode', '-b', '1024']],
  ['inodes of 128 bytes', ['-I', '128']],
  ['bigalloc', ['-O', 'bigalloc', '-C', '16384']],
  ['ext2', ['-t', 'ext2']],
  ['ext3', ['-t', 'ext3']],
  ['revision 0', ['-r', '0', '-t', 'ext2', '-O', 'none']],
];

let work: string;
let folder: string;
beforeAll(() => {
  work = mkdtempSync(join(tmpdir(), 'lcow-mke2fs-'));
  folder = join(work, 'folder');
  makeFolder(folder);
});
afterAll(() => rmSync(work, { recursive: true }));

function makeFolder(path: string): void {
  mkdirSync(join(path, 'deep/er/est'), { recursive: true });
  mkdirSync(join(path, 'empty'));
  mkdirSync(join(path, 'wide'));
  for (const size of [0, 1, 59, 60, 61, 100, 160, 300, 1023, 1024, 4096, 50_000])
    writeFileSync(join(path, `size-${size}`), pattern(size));
  writeFileSync(join(path, 'big'), pattern(3_000_000));
  for (let index = 0; index < 600; index += 1) writeFileSync(join(path, 'wide', `${'name'.repeat(12)}-${index}`), '');
  // Every second block of 4 KiB: more runs than an inode or a block of an extent tree holds.
  const sparse = openSync(join(path, 'sparse'), 'w');
  for (let index = 0; index < 500; index += 1) writeSync(sparse, pattern(4096), 0, 4096, 20_000 + index * 8192);
  ftruncateSync(sparse, 9_000_000);
  closeSync(sparse);
  writeFileSync(join(path, 'deep/er/est/größe'), 'umlaut');
  linkSync(join(path, 'size-100'), join(path, 'deep/linked'));
  symlinkSync('size-100', join(path, 'short'));
  symlinkSync('x'.repeat(59), join(path, 'link-59'));
  symlinkSync('x'.repeat(60), join(path, 'link-60'));
  symlinkSync('y'.repeat(1000), join(path, 'link-1000'));
  execFileSync('mkfifo', [join(path, 'pipe')]);
  utimesSync(join(path, 'size-1'), 1_000_000_000.25, 1_234_567_890.5);
}

function pattern(size: number): Buffer {
  const bytes = Buffer.alloc(size);
  for (let at = 0; at < size; at += 1) bytes[at] = (at * 7 + (at >> 8)) & 0xff;
  return bytes;
}

function makeImage(options: readonly string[]): string {
  const image = join(work, 'image');
  rmSync(image, { force: true });
  execFileSync(
    'mke2fs',
    ['-q', ...(options.includes('-t') ? [] : ['-t', 'ext4']), ...options, '-d', folder, image, '24m'],
    {
      stdio: ['ignore', 'ignore', 'pipe'],
    },
  );
  return image;
}

async function withReader<T>(image: string, use: (reader: Ext4Reader) => Promise<T>): Promise<T> {
  await using disk = await openDisk(image);
  return await use(await openExt4(disk.source));
}

async function read(reader: Ext4Reader, inode: Ext4Inode): Promise<Buffer> {
  const chunks: Uint8Array[] = [];
  for await (const chunk of reader.stream(inode)) chunks.push(chunk);
  return Buffer.concat(chunks);
}

const KINDS = { regular: 'file', directory: 'directory', symlink: 'symbolicLink', FIFO: 'fifo' } as Record<
  string,
  string
>;

describe('the reader of ext4', () => {
  test.each(VARIANTS)('reads %s', async (_, options) => {
    const image = makeImage(options);
    // All but the last 72 bytes of a block are enough for an inode of its own, with that feature.
    const long = options.includes('ea_inode') ? 1020 : 600;
    writeFileSync(join(work, 'value'), 'v'.repeat(long));
    await debugfsWrite(image, ['ea_set /size-61 user.small one', `ea_set -f ${work}/value /size-61 user.long`]);
    const hasAttributes = !options.includes('none');
    const judged = await listImage(image);
    await withReader(image, async (reader) => {
      const seen = new Map<string, Ext4Inode>();
      for await (const { path, inode } of reader.walk()) {
        const name = Buffer.from(path, 'latin1').toString();
        seen.set(name, inode);
        const judge = judged.get(name)!;
        expect(
          { ino: inode.ino, mode: inode.mode, uid: inode.uid, gid: inode.gid, size: inode.size, nlink: inode.nlink },
          name,
        ).toEqual({
          ino: judge.inode,
          mode: judge.mode,
          uid: judge.uid,
          gid: judge.gid,
          size: judge.size,
          nlink: judge.links,
        });
        expect(inode.kind).toBe(KINDS[judge.type]);
        // debugfs prints times in another form for small inodes.
        if (judge.mtime[0] !== 0) expect([inode.mtime, inode.mtimeNs]).toEqual(judge.mtime);
        if (name === '' || name === 'lost+found') continue;
        const source = join(folder, name);
        expect(Math.floor(lstatSync(source).mtimeMs / 1000)).toBe(inode.mtime);
        // mke2fs cuts off sparse files when it makes inline data.
        const [content] =
          inode.kind !== 'file' || inode.size === lstatSync(source).size
            ? [inode.kind === 'file' ? readFileSync(source) : undefined]
            : await readInodes(image, [inode.ino]);
        if (inode.kind === 'file') expect((await read(reader, inode)).equals(content!), name).toBe(true);
        if (inode.kind === 'symbolicLink') expect(await reader.readlink(inode)).toBe(readlinkSync(source));
        expect((await reader.xattrs(inode)).size).toBe(name === 'size-61' && hasAttributes ? 2 : 0);
      }
      expect([...seen.keys()].sort()).toEqual([...judged.keys()].sort());
      expect(seen.size).toBe(readdirSync(folder, { recursive: true }).length + 2);
      if (hasAttributes)
        expect(await reader.xattrs(seen.get('size-61')!)).toEqual(
          new Map([
            ['user.small', Buffer.from('one')],
            ['user.long', Buffer.alloc(long, 'v')],
          ]),
        );
    });
  });

  test('reads any part of a file', async () => {
    const image = makeImage(['-b', '1024', '-O', '^extents,^64bit']);
    await withReader(image, async (reader) => {
      for (const name of ['sparse', 'big', 'size-100']) {
        const inode = (await reader.lookup(name))!;
        const whole = readFileSync(join(folder, name));
        for (const [offset, length] of [
          [0, 10],
          [5000, 70_000],
          [19_999, 2],
          [2_999_990, 100],
          [8_999_999, 5],
          [9_999_999, 1],
        ] as const)
          expect((await reader.read(inode, offset, length)).equals(whole.subarray(offset, offset + length))).toBe(true);
        const tail: Uint8Array[] = [];
        for await (const chunk of reader.stream(inode, 1_234_567)) tail.push(chunk);
        expect(Buffer.concat(tail).equals(whole.subarray(1_234_567))).toBe(true);
      }
    });
  });

  test('reads allocated and unwritten blocks as zeros', async () => {
    const image = makeImage([]);
    await debugfsWrite(image, [
      'fallocate /size-1 0 20',
      'sif /size-1 size 70000',
      'mknod dev b 300 500',
      'mknod old c 5 1',
    ]);
    await withReader(image, async (reader) => {
      const content = await read(reader, (await reader.lookup('size-1'))!);
      expect(content.length).toBe(70_000);
      expect(content.subarray(1).every((byte) => byte === 0)).toBe(true);
      expect(await reader.lookup('dev')).toMatchObject({ kind: 'blockDevice', deviceMajor: 300, deviceMinor: 500 });
      expect(await reader.lookup('old')).toMatchObject({ kind: 'characterDevice', deviceMajor: 5, deviceMinor: 1 });
    });
  });

  test.each([
    ['encrypt', ['-O', 'encrypt']],
    ['journal_dev', ['-O', 'journal_dev']],
  ])('refuses the feature %s by name', async (name, options) => {
    const image = join(work, 'refused');
    execFileSync('mke2fs', ['-q', '-F', '-t', 'ext4', ...options, image, '8m'], { stdio: 'ignore' });
    await expect(withReader(image, async () => undefined)).rejects.toMatchObject({
      code: 'BAD_EXT4',
      message: expect.stringContaining(name) as string,
    });
  });

  test('finds what is not there to be missing, and follows no link', async () => {
    await withReader(makeImage([]), async (reader) => {
      expect(await reader.lookup('nothing')).toBeUndefined();
      expect(await reader.lookup('size-1/below')).toBeUndefined();
      expect(await reader.lookup('short')).toMatchObject({ kind: 'symbolicLink' });
      expect((await reader.lookup('/deep//./er/'))?.kind).toBe('directory');
      expect((await reader.lookup(''))?.ino).toBe(2);
    });
  });
});

async function debugfsWrite(image: string, commands: readonly string[]): Promise<void> {
  execFileSync('debugfs', ['-w', '-f', '-', image], {
    input: commands.join('\n') + '\n',
    stdio: ['pipe', 'ignore', 'ignore'],
  });
  await debugfs(image, ['show_super_stats -h']);
}
