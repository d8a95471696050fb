import { execFileSync } from 'node:child_process';
import {
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  symlinkSync,
  linkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { inPieces, makeTar, member, paxRecords, type Member } from '../../../test/support/make-tar.js';
import { readTar, type TarEntry } from './index.js';

type Read = TarEntry & { content: Buffer };

async function readAll(tar: Uint8Array, pieceBytes?: number): Promise<Read[]> {
  const entries: Read[] = [];
  for await (const entry of readTar(inPieces(tar, pieceBytes))) {
    const chunks: Buffer[] = [];
    for await (const chunk of entry.data) chunks.push(Buffer.from(chunk));
    entries.push({ ...entry, content: Buffer.concat(chunks) });
  }
  return entries;
}

async function readOne(entry: Member): Promise<Read> {
  const entries = await readAll(makeTar(entry));
  expect(entries).toHaveLength(1);
  return entries[0]!;
}

describe('archives of real tools', () => {
  let folder: string;
  const long = `${'directory-with-a-long-name/'.repeat(5)}${'x'.repeat(120)}`;

  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), 'lcow-tar-'));
    mkdirSync(join(folder, 'tree', long, '..'), { recursive: true });
    mkdirSync(join(folder, 'tree', 'directory-with-a-long-name/'.repeat(5)), { recursive: true });
    writeFileSync(join(folder, 'tree', long), 'long');
    writeFileSync(join(folder, 'tree', 'größe'), 'x'.repeat(70_000));
    writeFileSync(Buffer.concat([Buffer.from(join(folder, 'tree/')), Buffer.from([0xff, 0xfe])]), 'raw');
    symlinkSync('y'.repeat(300), join(folder, 'tree', 'link'));
    linkSync(join(folder, 'tree', 'größe'), join(folder, 'tree', 'hard'));
    execFileSync('mkfifo', [join(folder, 'tree', 'fifo')]);
    writeFileSync(join(folder, 'tree', 'sparse'), 'start');
    truncateSync(join(folder, 'tree', 'sparse'), 3_000_000);
    writeFileSync(join(folder, 'tree', 'sparse'), 'end', { flag: 'a' });
  });
  afterAll(() => rmSync(folder, { recursive: true }));

  const cases: [string, string, string[]][] = [
    ['GNU tar, gnu format', 'tar', ['--format=gnu']],
    ['GNU tar, gnu format, sparse', 'tar', ['--format=gnu', '-S']],
    ['GNU tar, posix format', 'tar', ['--format=posix']],
    ...['0.0', '0.1', '1.0'].map((version): [string, string, string[]] => [
      `GNU tar, posix format, sparse ${version}`,
      'tar',
      ['--format=posix', '-S', `--sparse-version=${version}`],
    ]),
  ];
  test.each(cases)('%s', async (_, command, options) => {
    const archive = join(folder, 'made.tar');
    execFileSync(command, [...options, '--sort=name', '-C', join(folder, 'tree'), '-cf', archive, '.']);
    const entries = new Map((await readAll(readFileSync(archive))).map((entry) => [entry.path, entry]));
    expect(entries.get(`./${long}`)?.content.toString()).toBe('long');
    const big = Buffer.from('./größe').toString('latin1');
    expect(entries.get(big)?.content.equals(Buffer.alloc(70_000, 'x'))).toBe(true);
    expect(entries.get('./\xff\xfe')?.content.toString()).toBe('raw');
    expect(entries.get('./link')).toMatchObject({ type: 'symbolicLink', linkPath: 'y'.repeat(300), size: 0 });
    expect(entries.get('./hard')).toMatchObject({ type: 'hardLink', linkPath: big });
    expect(entries.get('./fifo')).toMatchObject({ type: 'fifo' });
    expect(entries.get('./')).toMatchObject({ type: 'directory' });
    const sparse = entries.get('./sparse')!;
    expect(sparse.size).toBe(3_000_003);
    expect(sparse.content.equals(readFileSync(join(folder, 'tree', 'sparse')))).toBe(true);
  });

  test.each(['USTAR_FORMAT', 'GNU_FORMAT', 'PAX_FORMAT'])("Python's tarfile, %s", async (format) => {
    const script = `
import sys, tarfile, io
t = tarfile.open(fileobj=sys.stdout.buffer, mode='w|', format=tarfile.${format})
i = tarfile.TarInfo('a/' * 60 + 'file'); i.size = 5; i.uid = 1000; i.gid = 2000; i.mode = 0o4755; i.mtime = 1234567890
t.addfile(i, io.BytesIO(b'hello'))
i = tarfile.TarInfo('dev'); i.type = tarfile.BLKTYPE; i.devmajor = 8; i.devminor = 17; t.addfile(i)
t.close()`;
    const [file, device] = await readAll(execFileSync('python3', ['-c', script]));
    expect(file).toMatchObject({
      path: 'a/'.repeat(60) + 'file',
      uid: 1000,
      gid: 2000,
      mode: 0o4755,
      mtime: 1234567890,
    });
    expect(file?.content.toString()).toBe('hello');
    expect(device).toMatchObject({ type: 'blockDevice', deviceMajor: 8, deviceMinor: 17 });
  });
});

describe('header fields', () => {
  test('numbers beyond octal are read from base 256, below zero too', async () => {
    const entry = await readOne({ name: 'a', uid: 4294967294, mtime: -86400 });
    expect(entry).toMatchObject({ uid: 4294967294, mtime: -86400, mtimeNs: 0 });
  });

  test.each([
    ['1700000000.123456789', 1700000000, 123456789],
    ['1700000000.5', 1700000000, 500000000],
    ['-1.25', -2, 750000000],
    ['-3', -3, 0],
    ['5000000000.0000000019', 5000000000, 1],
  ])('the pax time %s keeps its nanoseconds', async (text, mtime, mtimeNs) => {
    expect(await readOne({ name: 'a', pax: { mtime: text } })).toMatchObject({ mtime, mtimeNs });
  });

  test('pax records override the header, for one member only', async () => {
    const [first, second] = await readAll(
      makeTar(
        { name: 'short', uid: 1, pax: { path: 'long', uid: '70000', 'SCHILY.xattr.user.a': Buffer.from([0, 1, 10]) } },
        { name: 'second', uid: 2 },
      ),
    );
    expect(first).toMatchObject({ path: 'long', uid: 70000 });
    expect(first?.xattrs).toEqual(new Map([['user.a', Buffer.from([0, 1, 10])]]));
    expect(second).toMatchObject({ path: 'second', uid: 2, xattrs: undefined });
  });

  test('a global pax header is no file, holds for all that follow, and yields to local ones', async () => {
    const tar = makeTar(
      { name: 'first', uid: 1 },
      { name: 'pax_global_header', type: 'g', content: paxRecords({ uid: '9', comment: 'x' }) },
      { name: 'second', uid: 1 },
      { name: 'third', uid: 1, pax: { uid: '3' } },
      { name: 'fourth', uid: 1, pax: { uid: '' } },
      { name: 'fifth', uid: 1 },
    );
    expect((await readAll(tar)).map(({ path, uid }) => [path, uid])).toEqual([
      ['first', 1],
      ['second', 9],
      ['third', 3],
      ['fourth', 1],
      ['fifth', 9],
    ]);
  });

  test('the ustar prefix is joined, the one of GNU headers is not', async () => {
    expect((await readOne({ name: 'name', alter: (header) => header.write('a/b', 345) })).path).toBe('a/b/name');
    const gnu = (header: Buffer): void => {
      header.write('ustar  \0', 257);
      header.write('a/b', 345);
    };
    expect((await readOne({ name: 'name', alter: gnu })).path).toBe('name');
  });

  test('an old header whose name ends in a slash is a directory', async () => {
    expect((await readOne({ name: 'old/', type: '\0' })).type).toBe('directory');
  });

  test('a size on a hard link brings no content', async () => {
    const entries = await readAll(
      Buffer.concat([member({ name: 'link', type: '1', linkname: 'x', size: 700 }), makeTar({ name: 'next' })]),
    );
    expect(entries.map(({ path, size }) => [path, size])).toEqual([
      ['link', 0],
      ['next', 0],
    ]);
  });

  test('a checksum over signed bytes passes, as old archives have it', async () => {
    const tar = makeTar({ name: Buffer.from([0x61, 0xe9]) });
    const sum = tar
      .subarray(0, 512)
      .reduce((total, byte, at) => total + (at >= 148 && at < 156 ? 32 : (byte << 24) >> 24), 0);
    tar.write(sum.toString(8).padStart(6, '0'), 148);
    expect((await readAll(tar))[0]?.path).toBe('a\xe9');
  });
});

describe('content', () => {
  test.each([1, 3, 511, 512, 513, 4096, 1 << 20])('arrives whole in pieces of %i bytes', async (bytes) => {
    const contents = [0, 1, 511, 512, 513, 2000].map((size) => Buffer.alloc(size, 'abcdefg'));
    const tar = makeTar(...contents.map((content, index) => ({ name: `f${index}`, content })));
    const entries = await readAll(tar, bytes);
    expect(entries.map(({ content }) => content)).toEqual(contents);
  });

  test('what is not read of a member is passed over', async () => {
    const tar = makeTar(
      { name: 'a', content: Buffer.alloc(5000, 1) },
      { name: 'b', content: Buffer.alloc(5000, 2) },
      { name: 'c' },
    );
    const paths: string[] = [];
    for await (const entry of readTar(inPieces(tar, 700))) {
      paths.push(entry.path);
      if (entry.path === 'b') for await (const chunk of entry.data) if (chunk.length > 0) break;
    }
    expect(paths).toEqual(['a', 'b', 'c']);
  });

  test('the source is read to its end, behind the end marker too', async () => {
    let taken = 0;
    const tar = Buffer.concat([makeTar({ name: 'a' }), Buffer.alloc(100_000, 7)]);
    async function* source(): AsyncGenerator<Uint8Array> {
      for await (const piece of inPieces(tar, 1000)) {
        taken += piece.length;
        yield piece;
      }
    }
    for await (const entry of readTar(source())) expect(entry.path).toBe('a');
    expect(taken).toBe(tar.length);
  });

  test('leaving early lets the source go', async () => {
    let returned = false;
    async function* source(): AsyncGenerator<Uint8Array> {
      try {
        for (;;) yield makeTar({ name: 'a', content: 'x' }).subarray(0, 1024);
      } finally {
        returned = true;
      }
    }
    for await (const entry of readTar(source())) if (entry.path === 'a') break;
    expect(returned).toBe(true);
  });
});

describe('damage', () => {
  const whole = makeTar(
    { name: 'dir/', type: '5' },
    { name: 'file', content: 'x'.repeat(1000), pax: { path: 'renamed', 'SCHILY.xattr.user.x': 'y' } },
    { name: 'link', type: '2', linkname: 'file' },
  );

  test('a tar that is cut off anywhere before its end marker is refused', async () => {
    const end = whole.length - 1024;
    for (let length = 0; length <= end + 511; length += length % 512 === 0 ? 1 : length % 512 === 1 ? 510 : 1)
      await expect(readAll(whole.subarray(0, length)), `${length} bytes`).rejects.toMatchObject({
        code: 'BAD_TAR',
        message: expect.stringContaining('cut off') as string,
      });
    expect(await readAll(whole.subarray(0, end + 512))).toHaveLength(3);
    expect(await readAll(whole)).toHaveLength(3);
  });

  test('any changed byte of a header is found by its checksum', async () => {
    for (let at = 0; at < 512; at += 1) {
      // Behind the NUL that ends the checksum: neither part of it nor of the sum.
      if (at === 155) continue;
      const damaged = Buffer.from(whole);
      damaged[at]! ^= 0x15;
      await expect(readAll(damaged), `byte ${at}`).rejects.toMatchObject({ code: 'BAD_TAR' });
    }
  });

  test('no damage makes the reader fail in another way, or run on', async () => {
    let seed = 12345;
    const random = (below: number): number => {
      seed = (Math.imul(seed, 1103515245) + 12345) >>> 0;
      return Math.floor((seed / 2 ** 32) * below);
    };
    for (let round = 0; round < 2000; round += 1) {
      const damaged = Buffer.from(whole);
      const block = random(damaged.length / 512) * 512;
      for (let change = 0; change < 4; change += 1) damaged[block + random(512)] = random(256);
      // The checksum is put right, so that the fields themselves are tried.
      damaged.fill(0x20, block + 148, block + 156);
      const sum = damaged.subarray(block, block + 512).reduce((total, byte) => total + byte, 0);
      damaged.write(`${sum.toString(8).padStart(6, '0')}\0 `, block + 148);
      try {
        await readAll(damaged);
      } catch (error) {
        expect(error).toMatchObject({ code: 'BAD_TAR' });
      }
    }
  });

  const bad: [string, Buffer][] = [
    ['an unknown kind of member', makeTar({ name: 'a', type: 'Z' })],
    ['a multi-volume continuation', makeTar({ name: 'a', type: 'M' })],
    ['an empty name', makeTar({ name: '' })],
    ['an empty link target', makeTar({ name: 'a', type: '2' })],
    ['a NUL in a pax path', makeTar({ name: 'a', pax: { path: 'a\0b' } })],
    ['a pax record without a key', makeTar({ name: 'a', type: 'x', content: '5 =a\n' }, { name: 'b' })],
    ['a pax record that is too long', makeTar({ name: 'a', type: 'x', content: '50 path=a\n' }, { name: 'b' })],
    ['a pax record without a newline', makeTar({ name: 'a', type: 'x', content: '10 path=ab' }, { name: 'b' })],
    ['a pax size that is no number', makeTar({ name: 'a', pax: { size: '1e3' } })],
    ['a pax size beyond what can be counted', makeTar({ name: 'a', pax: { size: '99999999999999999' } })],
    ['a pax time that is none', makeTar({ name: 'a', pax: { mtime: 'yesterday' } })],
    ['a user id beyond 32 bits', makeTar({ name: 'a', pax: { uid: '4294967296' } })],
    ['a negative size', makeTar({ name: 'a', size: -5 })],
    ['a size of letters', makeTar({ name: 'a', alter: (header) => header.write('hello', 124) })],
    ['an extension header of 2 MiB', makeTar({ name: 'a', type: 'x', content: Buffer.alloc(2 << 20) }, { name: 'b' })],
    [
      'extension headers of 2 MiB in sum, for one member',
      makeTar(...Array.from({ length: 4 }, () => ({ name: 'a', type: 'x', content: Buffer.alloc(1 << 19) })), {
        name: 'b',
      }),
    ],
    [
      'global headers of 2 MiB in sum',
      makeTar(...Array.from({ length: 4 }, () => ({ name: 'a', type: 'g', content: Buffer.alloc(1 << 19) })), {
        name: 'b',
      }),
    ],
    ['an extension header for nothing', makeTar({ name: 'a', type: 'L', content: 'name\0' })],
    ['a path of 40,000 bytes', makeTar({ name: 'a', pax: { path: 'x/'.repeat(20_000) } })],
    ['content behind one block of zeros', Buffer.concat([Buffer.alloc(512), makeTar({ name: 'a' })])],
    [
      'a sparse map that does not fit',
      makeTar({ name: 'a', content: 'x', pax: { 'GNU.sparse.map': '0,2', 'GNU.sparse.size': '9' } }),
    ],
    [
      'a sparse map that goes back',
      makeTar({ name: 'a', content: 'xy', pax: { 'GNU.sparse.map': '5,1,0,1', 'GNU.sparse.size': '9' } }),
    ],
    ['no tar at all', Buffer.from('PK\u0003\u0004'.padEnd(2000, 'x'))],
    ['nothing', Buffer.alloc(0)],
  ];
  test.each(bad)('%s is refused', async (_, tar) => {
    await expect(readAll(tar)).rejects.toMatchObject({ code: 'BAD_TAR' });
  });

  test('the error says where', async () => {
    const tar = makeTar({ name: 'a', content: 'x' }, { name: 'b', type: 'Z' });
    await expect(readAll(tar)).rejects.toMatchObject({ details: { offset: 1024 } });
  });

  test('what the source throws comes through', async () => {
    async function* source(): AsyncGenerator<Uint8Array> {
      yield whole.subarray(0, 600);
      throw new Error('unexpected end of file');
    }
    await expect(async () => {
      for await (const entry of readTar(source())) expect(entry.path).toBe('dir/');
    }).rejects.toThrow('unexpected end of file');
  });
});
