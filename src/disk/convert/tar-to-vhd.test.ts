import { execFileSync } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { debugfs, fsck, listImage, readInodes, type Seen } from '../../../test/support/ext4-image.js';
import { inPieces, makeTar, member, type Member } from '../../../test/support/make-tar.js';
import { ext4Info } from '../ext4/index.js';
import { tarToVhd, type TarToVhdOptions } from './index.js';

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'lcow-tar-to-vhd-'));
});
afterAll(() => rmSync(folder, { recursive: true }));

async function* once(data: Uint8Array): AsyncGenerator<Uint8Array> {
  yield data;
}

/** Converts, and has e2fsck look at the image. Returns its path. */
async function makeImage(tar: Uint8Array, options: TarToVhdOptions = {}): Promise<string> {
  const image = join(folder, 'image');
  await tarToVhd(once(tar), image, { appendVhdFooter: false, ...options });
  expect(await fsck(image)).toEqual({ exitCode: 0, complaints: [] });
  return image;
}

/** Converts, has e2fsck look at the image, and lists it. */
async function convert(tar: Uint8Array, options: TarToVhdOptions = {}): Promise<Map<string, Seen>> {
  return listImage(await makeImage(tar, options));
}

/** A tar of so many members, without a list of them in memory. */
function tarOf(count: number, entry: (index: number) => Member, ...first: Member[]): Buffer {
  return Buffer.concat([
    ...first.map(member),
    ...Array.from({ length: count }, (_, i) => member(entry(i))),
    Buffer.alloc(1024),
  ]);
}

const dir = (name: string, more: Partial<Member> = {}): Member => ({ name, type: '5', mode: 0o755, ...more });
const file = (name: string, content: string | Buffer = '', more: Partial<Member> = {}): Member => ({
  name,
  content,
  ...more,
});
const link = (name: string, linkname: string): Member => ({ name, type: '1', linkname });
const symlink = (name: string, linkname: string): Member => ({ name, type: '2', linkname });
const names = (seen: Map<string, Seen>): string[] => [...seen.keys()].filter((path) => path !== '').sort();

describe('what a tar means', () => {
  test('an empty tar is an empty root', async () => {
    expect(names(await convert(makeTar()))).toEqual([]);
  });

  test('kinds, owners, modes, times and devices are kept', async () => {
    const seen = await convert(
      makeTar(
        dir('./', { mode: 0o700, uid: 5, mtime: 99 }),
        file('f', 'hello', { mode: 0o4711, uid: 100_000, gid: 4294967295, mtime: 1_700_000_000 }),
        symlink('short', 'f'),
        { name: 'null', type: '3', major: 1, minor: 3, mode: 0o666 },
        { name: 'disk', type: '4', major: 259, minor: 300_000 },
        { name: 'pipe', type: '6' },
      ),
    );
    expect(seen.get('')).toMatchObject({ mode: 0o700, uid: 5, mtime: [99, 0] });
    expect(seen.get('f')).toMatchObject({
      type: 'regular',
      size: 5,
      mode: 0o4711,
      uid: 100_000,
      gid: 4294967295,
      mtime: [1_700_000_000, 0],
    });
    expect(seen.get('short')).toMatchObject({ type: 'symlink', target: 'f' });
    expect(seen.get('null')).toMatchObject({ type: 'character special', device: '1:3', mode: 0o666 });
    expect(seen.get('disk')).toMatchObject({ type: 'block special', device: '259:300000' });
    expect(seen.get('pipe')).toMatchObject({ type: 'FIFO' });
  });

  test.each([
    ['0', [0, 0]],
    ['1700000000.123456789', [1700000000, 123456789]],
    ['-1.5', [-2, 500000000]],
    ['-2147483648', [-2147483648, 0]],
    ['2147483648.000000001', [2147483648, 1]],
    ['4294967296', [4294967296, 0]],
    ['15032385535.999999999', [15032385535, 999999999]],
    ['99999999999.5', [15032385535, 0]],
    ['-99999999999.5', [-2147483648, 0]],
  ])('the time %s is kept, as far as ext4 reaches', async (mtime, expected) => {
    expect((await convert(makeTar(file('f', '', { pax: { mtime } })))).get('f')?.mtime).toEqual(expected);
  });

  test.each([0, 1, 59, 60, 61, 4095])('a symbolic link of %i bytes is kept', async (length) => {
    const image = join(folder, 'image');
    const target = 'x'.repeat(length);
    const tar = makeTar({
      name: 'l',
      type: '2',
      linkname: target.slice(0, 99),
      ...(length > 0 ? { pax: { linkpath: target } } : {}),
    });
    if (length === 0) {
      await expect(convert(tar)).rejects.toMatchObject({ code: 'BAD_TAR' });
      return;
    }
    const seen = (await convert(tar)).get('l')!;
    expect(seen.size).toBe(length);
    if (length < 60) expect(seen.target).toBe(target);
    else expect((await readInodes(image, [seen.inode]))[0]?.toString()).toBe(target);
  });

  test('missing parents take after the directory they are made in', async () => {
    const seen = await convert(makeTar(dir('a', { mode: 0o711, uid: 7, gid: 8, mtime: 5 }), file('a/b/c/f')));
    for (const path of ['a/b', 'a/b/c'])
      expect(seen.get(path)).toMatchObject({ type: 'directory', mode: 0o711, uid: 7, gid: 8, mtime: [5, 0] });
  });

  test('hard links share an inode, those to symbolic links too', async () => {
    const seen = await convert(
      makeTar(file('f', 'x'), link('d/g', 'f'), link('./h', './d/g'), symlink('s', 'nowhere'), link('t', '/s')),
    );
    expect(seen.get('f')).toMatchObject({ links: 3 });
    expect(seen.get('d/g')?.inode).toBe(seen.get('f')?.inode);
    expect(seen.get('h')?.inode).toBe(seen.get('f')?.inode);
    expect(seen.get('t')).toMatchObject({ type: 'symlink', links: 2 });
  });

  test('a path through a symbolic link leads where the link does, never outside', async () => {
    const seen = await convert(
      makeTar(
        dir('usr/lib'),
        symlink('lib', 'usr/lib'),
        symlink('abs', '/usr'),
        symlink('out', '../../../usr'),
        symlink('missing', 'made/later'),
        file('lib/one'),
        file('abs/lib/two'),
        file('out/three'),
        file('missing/four'),
        link('five', 'lib/one'),
      ),
    );
    expect(names(seen)).toEqual(
      [
        'abs',
        'five',
        'lib',
        'made',
        'made/later',
        'made/later/four',
        'missing',
        'out',
        'usr',
        'usr/lib',
        'usr/lib/one',
        'usr/lib/two',
        'usr/three',
      ].sort(),
    );
  });

  test.each(['../../etc/x', '/etc/x', 'a/../../etc/x', './/etc//./x', 'etc/y/../x'])(
    '%s stays inside',
    async (path) => {
      expect(names(await convert(makeTar(file(path))))).toEqual(['etc', 'etc/x']);
    },
  );

  const replaced: [string, Member[], Record<string, string>][] = [
    ['a file over a file', [file('a', 'old'), file('a', 'newer')], { a: 'regular' }],
    [
      'a file over a tree',
      [dir('a/b'), file('a/b/c', 'x'), link('keep', 'a/b/c'), file('a')],
      { a: 'regular', keep: 'regular' },
    ],
    ['a directory over a file', [file('a', 'x'), dir('a'), file('a/b')], { a: 'directory', 'a/b': 'regular' }],
    [
      'a directory over a symbolic link',
      [dir('d'), symlink('a', 'd'), dir('a'), file('a/b')],
      { d: 'directory', a: 'directory', 'a/b': 'regular' },
    ],
    [
      'a directory over a directory keeps what is in it',
      [dir('a'), file('a/b'), dir('a')],
      { a: 'directory', 'a/b': 'regular' },
    ],
    ['a link over a file', [file('a'), file('b'), link('b', 'a')], { a: 'regular', b: 'regular' }],
    ['a link to itself', [file('a', 'x'), link('a', 'a')], { a: 'regular' }],
    ['a link over the directory its target is in', [file('a/b', 'x'), link('a', 'a/b')], { a: 'regular' }],
    [
      'a symbolic link over a directory with a path through it',
      [dir('x'), dir('a'), file('a/1'), symlink('a', 'x'), file('a/2')],
      { a: 'symlink', x: 'directory', 'x/2': 'regular' },
    ],
  ];
  test.each(replaced)('later members replace earlier ones: %s', async (_, members, expected) => {
    const seen = await convert(makeTar(...members));
    expect(Object.fromEntries(names(seen).map((path) => [path, seen.get(path)!.type]))).toEqual(expected);
  });

  test('a directory met again takes the later attributes, all of them', async () => {
    const seen = await convert(
      makeTar(
        dir('a', { uid: 1, pax: { 'SCHILY.xattr.user.old': '1' } }),
        file('a/b'),
        dir('a', { uid: 2, mode: 0o500 }),
      ),
    );
    expect(seen.get('a')).toMatchObject({ uid: 2, mode: 0o500, xattrs: {} });
  });

  test('the blocks of a replaced file are free', async () => {
    const image = join(folder, 'image');
    await convert(makeTar(file('a', 'x'.repeat(40_000)), file('b', 'y'), file('a', 'z')));
    const before = (await ext4Info(image)).freeBlocks;
    await convert(makeTar(file('b', 'y'), file('a', 'z')));
    expect(before - (await ext4Info(image)).freeBlocks).toBe(10);
  });

  const refused: [string, Member[], string][] = [
    ['a path through a file', [file('a'), file('a/b')], '"a/b"'],
    ['a hard link to nothing', [link('a', 'b')], 'not in the archive'],
    ['a hard link to a directory', [dir('d'), link('a', 'd')], 'directory'],
    ['a file as the root', [file('./')], 'root'],
    ['a name of 256 bytes', [file('x', '', { pax: { path: 'n'.repeat(256) } })], '255'],
    ['symbolic links in a circle', [symlink('a', 'b'), symlink('b', 'a'), file('a/x')], 'symbolic links'],
    ['a device number beyond Linux', [{ name: 'd', type: '3', major: 5000 }], '5000'],
    [
      'a symbolic link of 4096 bytes',
      [{ name: 'l', type: '2', linkname: 'x', pax: { linkpath: 'x'.repeat(4096) } }],
      '4096',
    ],
    ['too large an attribute', [file('f', '', { pax: { 'SCHILY.xattr.user.big': 'x'.repeat(5000) } })], '"f"'],
  ];
  test.each(refused)('%s is refused by name', async (_, members, part) => {
    await expect(convert(makeTar(...members))).rejects.toMatchObject({
      code: 'BAD_TAR',
      message: expect.stringContaining(part) as string,
    });
  });

  test('names need not be UTF-8', async () => {
    const image = join(folder, 'image');
    await tarToVhd(once(makeTar({ name: Buffer.from([0xff, 0xe4]), content: 'x' })), image, {
      appendVhdFooter: false,
    });
    expect((await fsck(image)).exitCode).toBe(0);
    // An entry of a directory: name_len 2, file_type 1, the name.
    expect(readFileSync(image).includes(Buffer.from([2, 1, 0xff, 0xe4]))).toBe(true);
  });
});

describe('whiteouts', () => {
  const whiteout = { type: 'character special', mode: 0, device: '0:0' };

  test('become devices 0:0, and opaque markers an attribute', async () => {
    const seen = await convert(
      makeTar(
        file('d/.wh.gone'),
        file('.wh.top'),
        dir('o', { pax: { 'SCHILY.xattr.user.a': '1' } }),
        file('o/.wh..wh..opq'),
        file('o/new'),
      ),
    );
    expect(names(seen)).toEqual(['d', 'd/gone', 'o', 'o/new', 'top']);
    expect(seen.get('d/gone')).toMatchObject(whiteout);
    expect(seen.get('top')).toMatchObject(whiteout);
    expect(seen.get('o')?.xattrs).toEqual({ 'trusted.overlay.opaque': 'y', 'user.a': '1' });
  });

  test('an opaque marker makes its directory, and outlives its attributes', async () => {
    const seen = await convert(makeTar(file('a/b/.wh..wh..opq'), dir('a/b', { uid: 3 }), file('./.wh..wh..opq')));
    expect(seen.get('a/b')).toMatchObject({ uid: 3, xattrs: { 'trusted.overlay.opaque': 'y' } });
    expect(seen.get('')?.xattrs).toEqual({ 'trusted.overlay.opaque': 'y' });
  });

  test.each([
    ['before', [file('.wh.d'), dir('d'), file('d/f')]],
    ['after', [dir('d'), file('d/f'), file('.wh.d')]],
    ['before an implied directory', [file('.wh.d'), file('d/f')]],
  ])('a whiteout %s a directory of the same layer makes it opaque', async (_, members) => {
    const seen = await convert(makeTar(...members));
    expect(names(seen)).toEqual(['d', 'd/f']);
    expect(seen.get('d')).toMatchObject({ type: 'directory', xattrs: { 'trusted.overlay.opaque': 'y' } });
  });

  test.each([
    ['before', [file('.wh.f'), file('f', 'x')]],
    ['after', [file('f', 'x'), file('.wh.f')]],
  ])('a whiteout %s a file of the same layer leaves the file', async (_, members) => {
    expect((await convert(makeTar(...members))).get('f')).toMatchObject({ type: 'regular', size: 1 });
  });

  test("what is aufs' own is left out", async () => {
    expect(
      names(
        await convert(makeTar(dir('.wh..wh.plnk'), file('.wh..wh.plnk/1.2', 'x'), file('./.wh..wh.aufs'), file('f'))),
      ),
    ).toEqual(['f']);
  });

  test.each(['.wh.', 'd/.wh..', '.wh...'])('%s is refused', async (name) => {
    await expect(convert(makeTar(file(name)))).rejects.toMatchObject({ code: 'BAD_TAR' });
  });

  test('are files like others when not to be converted', async () => {
    expect(names(await convert(makeTar(file('.wh.a'), file('.wh..wh..opq')), { convertWhiteout: false }))).toEqual([
      '.wh..wh..opq',
      '.wh.a',
    ]);
  });
});

describe('extended attributes', () => {
  test('stand in the inode and in a block, in the order the kernel needs', async () => {
    const pax = {
      'SCHILY.xattr.user.zz': 'short',
      'SCHILY.xattr.user.b': 'x'.repeat(500),
      'SCHILY.xattr.security.capability': Buffer.from('0100000200040000000000000000000000000000', 'hex'),
      'SCHILY.xattr.trusted.empty': '',
      'SCHILY.xattr.user.größe': 'y'.repeat(300),
      'SCHILY.xattr.user.a': 'z'.repeat(100),
      'SCHILY.xattr.com.apple.provenance': 'not for Linux',
    };
    const { xattrs } = (await convert(makeTar(file('f', 'x', { pax })))).get('f')!;
    expect(Object.keys(xattrs).sort()).toEqual(
      ['security.capability', 'trusted.empty', 'user.a', 'user.b', 'user.größe', 'user.zz'].sort(),
    );
    expect(xattrs['user.b']).toHaveLength(500);
    expect(xattrs['user.zz']).toBe('short');
  });

  test('equal sets share blocks, up to 1024 inodes each', async () => {
    const image = join(folder, 'image');
    const pax = { 'SCHILY.xattr.user.big': 'v'.repeat(1000) };
    const seen = await convert(makeTar(...Array.from({ length: 1500 }, (_, index) => file(`f${index}`, '', { pax }))));
    expect(seen.get('f1499')?.xattrs['user.big']).toHaveLength(1000);
    expect((await ext4Info(image)).blocks).toBeLessThan(200);
  });

  test('access control lists are stored in the form of the disk', async () => {
    const acl = Buffer.from(
      '0200000001000600ffffffff02000700e803000004000400ffffffff10000700ffffffff20000400ffffffff',
      'hex',
    );
    await convert(makeTar(file('f', '', { pax: { 'SCHILY.xattr.system.posix_acl_access': acl } })));
    const [shown] = await debugfs(join(folder, 'image'), ['ea_list /f']);
    expect(shown).toContain(
      'system.posix_acl_access (28) = 01 00 00 00 01 00 06 00 02 00 07 00 e8 03 00 00 04 00 04 00 10 00 07 00 20 00 04 00',
    );
  });
});

describe('size', () => {
  test('70,000 entries in one directory have an index that e2fsck finds no fault in', async () => {
    const image = await makeImage(tarOf(70_000, (i) => file(`big/entry-number-${i}`)));
    const [tree, listing] = await debugfs(image, ['htree_dump /big', 'ls -p /big']);
    expect(tree).toMatch(/Indirect levels: 0/);
    expect(listing!.split('\n').filter((line) => line.includes('entry-number-'))).toHaveLength(70_000);
  });

  test('longer names make an index of two levels', async () => {
    const image = await makeImage(tarOf(40_000, (i) => file(`b/${String(i).padStart(68, 'n')}`)));
    expect((await debugfs(image, ['htree_dump /b']))[0]).toMatch(/Indirect levels: 1/);
  });

  test('100,000 empty files fit their image: groups become smaller, not the image larger', async () => {
    const image = await makeImage(tarOf(100_000, (i) => file(`d${i % 100}/f${i}`)));
    const { inodes, sizeBytes } = await ext4Info(image);
    expect(inodes).toBeGreaterThan(100_000);
    expect(sizeBytes).toBeLessThan(40_000_000);
  });

  test('66,000 subdirectories are more than a link count holds', async () => {
    const image = await makeImage(tarOf(66_000, (i) => dir(`many/${i}`)));
    expect((await debugfs(image, ['stat /many']))[0]).toMatch(/^Links: 1 /m);
  });

  test('a file has 65,000 names, not one more', async () => {
    const links = (count: number): Buffer => tarOf(count, (i) => link(`l${i}`, 'f'), file('f', 'x'));
    expect((await debugfs(await makeImage(links(64_999)), ['stat /f']))[0]).toMatch(/^Links: 65000 /m);
    await expect(makeImage(links(65_000))).rejects.toMatchObject({
      code: 'BAD_TAR',
      message: expect.stringContaining('65000') as string,
    });
  });

  test('a sparse file keeps its holes, with more extents than a tree of one level holds', async () => {
    const ranges = Array.from({ length: 3000 }, (_, index) => [index * 12_288 + 100, 4000]);
    const size = 3000 * 12_288 + 5;
    const content = Buffer.concat(ranges.map((_, index) => Buffer.alloc(4000, `${index} `)));
    const pax = { 'GNU.sparse.map': ranges.join(','), 'GNU.sparse.size': String(size) };
    const seen = (await convert(makeTar(file('s', content, { pax })))).get('s')!;
    const expected = Buffer.alloc(size);
    ranges.forEach(([at], index) => content.copy(expected, at, index * 4000, (index + 1) * 4000));
    expect((await readInodes(join(folder, 'image'), [seen.inode]))[0]?.equals(expected)).toBe(true);
    expect((await ext4Info(join(folder, 'image'))).blocks).toBeLessThan(6100);
  });

  test('above the maximum disk size nothing is made', async () => {
    const target = join(folder, 'limited');
    const tar = makeTar(file('f', Buffer.alloc(2 << 20)));
    await expect(tarToVhd(once(tar), target, { maximumDiskSizeBytes: 1 << 20 })).rejects.toMatchObject({
      code: 'BAD_TAR',
    });
    await expect(tarToVhd(once(tar), target, { maximumDiskSizeBytes: 1 })).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
    });
    expect(readdirSync(folder).filter((name) => name.includes('limited'))).toEqual([]);
  });
});

describe('the file', () => {
  const tar = makeTar(dir('d'), file('d/f', 'x'.repeat(10_000)), symlink('l', 'd'));

  test('is a fixed VHD for QEMU, and the same for the same tar however it arrives', async () => {
    const one = join(folder, 'one.vhd');
    const two = join(folder, 'two.vhd');
    const result = await tarToVhd(once(tar), one);
    await tarToVhd(inPieces(tar, 77), two);
    expect(readFileSync(one).equals(readFileSync(two))).toBe(true);
    expect(statSync(one).size).toBe(result.sizeBytes);
    expect(result).toEqual({ imageBytes: result.sizeBytes - 512, sizeBytes: result.sizeBytes, entries: 3 });
    const info = JSON.parse(
      execFileSync('qemu-img', ['info', '--output=json', '-f', 'vpc', one], { encoding: 'utf8' }),
    ) as Record<string, unknown>;
    expect(info['virtual-size']).toBe(result.imageBytes);
    expect(await ext4Info(one)).toMatchObject({ sizeBytes: result.imageBytes, hasJournal: false, readOnly: true });
  });

  test('differs in its UUID when an attribute does', async () => {
    const uuids: string[] = [];
    for (const mtime of [1, 2]) {
      await convert(makeTar(file('f', 'x', { mtime })));
      uuids.push((await ext4Info(join(folder, 'image'))).uuid);
    }
    expect(uuids[0]).not.toBe(uuids[1]);
  });

  test('an open file is written from its start and cut to length', async () => {
    const path = join(folder, 'open');
    writeFileSync(path, Buffer.alloc(1 << 20, 1));
    const handle = await open(path, 'r+');
    const { sizeBytes } = await tarToVhd(once(tar), handle);
    expect((await handle.stat()).size).toBe(sizeBytes);
    await expect(tarToVhd(once(tar.subarray(0, 1000)), handle)).rejects.toMatchObject({ code: 'BAD_TAR' });
    expect((await handle.stat()).size).toBe(0);
    await handle.close();
  });

  test('a failure leaves what stood there, and nothing else', async () => {
    const path = join(folder, 'kept');
    writeFileSync(path, 'before');
    for (let length = 0; length < tar.length - 1024; length += 512)
      await expect(tarToVhd(once(tar.subarray(0, length)), path)).rejects.toMatchObject({ code: 'BAD_TAR' });
    expect(readFileSync(path, 'utf8')).toBe('before');
    expect(readdirSync(folder).filter((name) => name.endsWith('.partial'))).toEqual([]);
  });

  test('a full disk is DISK_FULL', async () => {
    const full = await open('/dev/full', 'r+');
    await expect(tarToVhd(once(tar), full)).rejects.toMatchObject({ code: 'DISK_FULL' });
    await full.close();
  });

  test('a source that is stuck does not keep a cancelled conversion', async () => {
    const abort = new AbortController();
    async function* stuck(): AsyncGenerator<Uint8Array> {
      yield tar.subarray(0, 700);
      abort.abort();
      await new Promise(() => undefined);
    }
    await expect(tarToVhd(stuck(), join(folder, 'never'), { signal: abort.signal })).rejects.toMatchObject({
      code: 'CANCELLED',
    });
    expect(readdirSync(folder).filter((name) => name.includes('never'))).toEqual([]);
  });

  test('progress counts the bytes of the source', async () => {
    const seen: number[] = [];
    await tarToVhd(inPieces(tar, 1000), join(folder, 'image'), { onProgress: (bytes) => seen.push(bytes) });
    expect(seen.at(-1)).toBe(tar.length);
    expect(seen).toEqual([...seen].sort((a, b) => a - b));
  });

  test('errors name the member and where it stands', async () => {
    const broken = makeTar(file('first', 'x'), link('second', 'nothing'));
    await expect(tarToVhd(once(broken), join(folder, 'image'))).rejects.toMatchObject({
      message: expect.stringMatching(/"second".*byte 1024/) as string,
      details: { member: 'second', offset: 1024 },
    });
  });
});
