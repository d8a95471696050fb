import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { buffer } from 'node:stream/consumers';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { inPieces, makeTar, type Member } from '../../../test/support/make-tar.js';
import { tarToVhd } from '../convert/index.js';
import { readTar, writeTar, type TarInput } from '../tar/index.js';
import { vhdToTar, type VhdToTarOptions } from './index.js';

let work: string;
beforeAll(() => {
  work = mkdtempSync(join(tmpdir(), 'lcow-export-'));
});
afterAll(() => rmSync(work, { recursive: true }));

/** Everything about an entry in a form to compare; hard links told as the group of paths that are one. */
interface Told {
  [field: string]: unknown;
}

async function tell(tar: AsyncIterable<Uint8Array>): Promise<Map<string, Told>> {
  const told = new Map<string, Told>();
  const groups = new Map<string, string[]>();
  for await (const entry of readTar(tar)) {
    const content = (await buffer(entry.data)).toString('latin1');
    const path = entry.path.replace(/\/$/, '');
    const { linkPath, type } = entry;
    if (type === 'hardLink') {
      const group = groups.get(linkPath)!;
      group.push(path);
      groups.set(path, group);
      told.set(path, { ...told.get(linkPath)! });
      continue;
    }
    groups.set(path, [path]);
    const { mode, uid, gid, size, mtime, mtimeNs, deviceMajor, deviceMinor } = entry;
    const atime = entry.atime === undefined ? undefined : [entry.atime, entry.atimeNs];
    const ctime = entry.ctime === undefined ? undefined : [entry.ctime, entry.ctimeNs];
    const same = (time: number[] | undefined) => (time?.[0] === mtime && time[1] === mtimeNs ? undefined : time);
    told.set(path, {
      ...{ type, linkPath, mode, uid, gid, size, mtime, mtimeNs, deviceMajor, deviceMinor, content },
      atime: same(atime),
      ctime: same(ctime),
      xattrs: Object.fromEntries(
        [...(entry.xattrs ?? [])].map(([name, value]) => [name, value.toString('latin1')]).sort(),
      ),
    });
  }
  for (const [path, group] of groups) told.get(path)!['links'] = [...group].sort();
  return told;
}

async function convert(tar: AsyncIterable<Uint8Array>): Promise<string> {
  const vhd = join(work, 'layer.vhd');
  await tarToVhd(tar, vhd);
  return vhd;
}

const roundTrip = async (tar: Buffer, options: VhdToTarOptions = {}): Promise<Buffer> =>
  buffer(vhdToTar(await convert(inPieces(tar)), options));

const paths = async (tar: Buffer): Promise<string[]> => {
  const found: string[] = [];
  for await (const { path } of readTar(inPieces(tar))) found.push(path);
  return found;
};

const name = fc.oneof(
  { weight: 4, arbitrary: fc.stringMatching(/^[a-z]{1,3}$/) },
  { weight: 1, arbitrary: fc.constantFrom('größe', 'n'.repeat(180), 'with blank', 'new\nline', '~') },
  // Bytes that are no UTF-8.
  { weight: 1, arbitrary: fc.constantFrom('\u00ff\u00fe', '\u00c3(') },
);
const path = fc.array(name, { minLength: 1, maxLength: 4 }).map((parts) => parts.join('/'));
const time = fc.record({
  seconds: fc.integer({ min: -(2 ** 31), max: 2 ** 34 - 2 ** 31 - 1 }),
  ns: fc.oneof(fc.constant(0), fc.integer({ min: 0, max: 999_999_999 })),
});
const acl = Buffer.from(
  '0200000001000600ffffffff02000700e803000004000400ffffffff10000700ffffffff20000400ffffffff',
  'hex',
);
const xattrs = fc
  .dictionary(
    fc.constantFrom('user.a', 'user.größe', 'trusted.t', 'security.selinux', 'user.empty', 'user.long'),
    fc.oneof(fc.constant(''), fc.stringMatching(/^[a-z\n=]{1,200}$/)),
    { maxKeys: 3 },
  )
  .map(
    (values) =>
      new Map(Object.entries(values).map(([key, value]) => [Buffer.from(key).toString('latin1'), Buffer.from(value)])),
  );
const entry: fc.Arbitrary<TarInput> = fc
  .record({
    path,
    type: fc.constantFrom(
      'file',
      'file',
      'file',
      'directory',
      'symbolicLink',
      'characterDevice',
      'blockDevice',
      'fifo',
      'hardLink',
    ),
    mode: fc.integer({ min: 0, max: 0o7777 }),
    uid: fc.oneof(fc.nat(1000), fc.integer({ min: 0, max: 2 ** 32 - 1 })),
    gid: fc.oneof(fc.nat(1000), fc.integer({ min: 0, max: 2 ** 32 - 1 })),
    size: fc.oneof(fc.constantFrom(0, 1, 511, 512, 513, 4096, 4097), fc.nat(30_000)),
    mtime: time,
    atime: fc.option(time, { nil: undefined }),
    ctime: fc.option(time, { nil: undefined }),
    xattrs: fc.option(xattrs, { nil: undefined }),
    withAcl: fc.boolean(),
    major: fc.integer({ min: 1, max: 4095 }),
    minor: fc.integer({ min: 0, max: 2 ** 20 - 1 }),
    target: fc.oneof(path, fc.constantFrom('x'.repeat(59), 'y'.repeat(101), 'z'.repeat(300))),
  })
  .map(({ mtime, atime, ctime, size, withAcl, major, minor, target, ...rest }) => {
    const device = rest.type === 'characterDevice' || rest.type === 'blockDevice';
    const all = new Map([...(rest.xattrs ?? []), ...(withAcl ? ([['system.posix_acl_access', acl]] as const) : [])]);
    return {
      ...rest,
      type: rest.type,
      xattrs: rest.type === 'file' || rest.type === 'directory' ? all : undefined,
      size: rest.type === 'file' ? size : 0,
      linkPath: rest.type === 'symbolicLink' ? target : '',
      ...{ mtime: mtime.seconds, mtimeNs: mtime.ns },
      ...{ atime: atime?.seconds, atimeNs: atime?.ns ?? 0, ctime: ctime?.seconds, ctimeNs: ctime?.ns ?? 0 },
      ...{ deviceMajor: device ? major : 0, deviceMinor: device ? minor : 0 },
    };
  });

/** A tree without contradictions: every name once, parents before children, hard links to files that were there. */
function consistent(entries: readonly TarInput[]): TarInput[] {
  const kept = new Map<string, TarInput>();
  const files: string[] = [];
  for (const given of entries) {
    const parts = given.path.split('/');
    const parents = parts.slice(0, -1).map((_, index) => parts.slice(0, index + 1).join('/'));
    if (kept.has(given.path) || parents.some((parent) => kept.get(parent)?.type !== 'directory' && kept.has(parent)))
      continue;
    const target = files[given.mode % Math.max(1, files.length)];
    if (given.type === 'hardLink' && target === undefined) continue;
    for (const parent of parents)
      if (!kept.has(parent))
        kept.set(parent, {
          ...given,
          path: parent,
          type: 'directory',
          size: 0,
          linkPath: '',
          deviceMajor: 0,
          deviceMinor: 0,
        });
    kept.set(given.path, given.type === 'hardLink' ? { ...given, linkPath: target!, xattrs: undefined } : given);
    if (given.type !== 'directory' && given.type !== 'hardLink') files.push(given.path);
  }
  return [...kept.values()];
}

describe('tar → VHD → tar', () => {
  test('keeps every entry and attribute of any tree', async () => {
    let entries = 0;
    await fc.assert(
      fc.asyncProperty(fc.array(entry, { maxLength: 30 }), async (generated) => {
        const given = consistent(generated);
        entries += given.length;
        const tar = await buffer(
          writeTar(given.map((member) => ({ ...member, data: [Buffer.alloc(member.size, `${member.path} `)] }))),
        );
        const before = await tell(inPieces(tar));
        const vhd = await convert(inPieces(tar));
        const after = await tell(vhdToTar(vhd, { accessTimes: true, rootEntry: false, whiteouts: 'keep' }));
        expect(after).toEqual(before);
        expect([...after.keys()]).toEqual([...after.keys()].sort(byParts));
      }),
      { numRuns: 80, seed: 7, endOnFailure: true },
    );
    expect(entries).toBeGreaterThan(500);
  });

  test('keeps whiteouts and opaque directories', async () => {
    const dir = (path: string): Member => ({ name: path, type: '5', mode: 0o755 });
    const tar = makeTar(
      dir('a/'),
      { name: 'a/.wh.gone' },
      dir('o/'),
      { name: 'o/.wh..wh..opq' },
      { name: 'o/new', content: 'n' },
      { name: '.wh.top' },
    );
    const again = await roundTrip(tar);
    expect(await paths(again)).toEqual(
      ['./', 'a/', 'a/.wh.gone', 'o/', 'o/.wh..wh..opq', 'o/new', '.wh.top'].sort(byParts),
    );
    const kept = await tell(vhdToTar(join(work, 'layer.vhd'), { whiteouts: 'keep' }));
    expect(kept.get('a/gone')).toMatchObject({ type: 'characterDevice', deviceMajor: 0, deviceMinor: 0 });
    expect(kept.get('o')).toMatchObject({ xattrs: { 'trusted.overlay.opaque': 'y' } });
    expect(await roundTrip(again)).toEqual(again);
  });

  test('gives the same tar for the same tree, in whatever order it came', async () => {
    const members: Member[] = [
      { name: 'b', content: 'b' },
      { name: 'a/', type: '5' },
      { name: 'a/z', content: 'z' },
      { name: 'c', content: '' },
    ];
    const forward = await roundTrip(makeTar(...members));
    const backward = await roundTrip(
      makeTar(members[1]!, ...[...members].reverse().filter((member) => member.name !== 'a/')),
    );
    expect(backward).toEqual(forward);
  });

  test('exports a directory of the disk, and lets equal files share chunks when told to', async () => {
    const big = Buffer.alloc(5_000_000, 'big');
    const vhd = await convert(
      inPieces(makeTar({ name: 'upper/', type: '5' }, { name: 'upper/f', content: big }, { name: 'work/x' })),
    );
    const chunks: Buffer[] = [];
    for await (const chunk of vhdToTar(vhd, { root: '/upper', reuseChunks: true })) chunks.push(Buffer.from(chunk));
    const told = await tell(inPieces(Buffer.concat(chunks)));
    expect([...told.keys()]).toEqual(['.', 'f']);
    expect(told.get('f')!['content']).toBe(big.toString());
    await expect(buffer(vhdToTar(vhd, { root: '/nothing' }))).rejects.toMatchObject({ code: 'NOT_FOUND' });
    await expect(buffer(vhdToTar(join(work, 'no-file')))).rejects.toMatchObject({ code: 'NOT_FOUND' });
  });

  test('stores sparse files without their holes when told to, as GNU tar understands it', async () => {
    const source = join(work, 'sparse');
    execFileSync('sh', [
      '-c',
      'truncate -s 3M "$0" && printf data | dd of="$0" bs=1 seek=1000000 conv=notrunc 2>/dev/null',
      source,
    ]);
    const tar = execFileSync('tar', ['-c', '-S', '-C', work, 'sparse'], { maxBuffer: 1 << 26 });
    const sparse = await roundTrip(tar, { sparse: true });
    const plain = await roundTrip(tar);
    expect(sparse.length).toBeLessThan(20_000);
    expect(plain.length).toBeGreaterThan(3_000_000);
    for (const [index, made] of [sparse, plain].entries()) {
      writeFileSync(join(work, 'made.tar'), made);
      execFileSync('sh', [
        '-c',
        `cd "$0" && rm -rf out${index} && mkdir out${index} && tar -x -C out${index} -f made.tar && cmp sparse out${index}/sparse`,
        work,
      ]);
    }
    expect(await tell(inPieces(sparse))).toEqual(await tell(inPieces(plain)));
  });

  test('refuses what a layer cannot tell', async () => {
    const vhd = await convert(
      inPieces(makeTar({ name: 'd/', type: '5', pax: { 'SCHILY.xattr.trusted.overlay.redirect': 'x' } })),
    );
    await expect(buffer(vhdToTar(vhd))).rejects.toMatchObject({ code: 'NOT_SUPPORTED' });
    await tarToVhd(inPieces(makeTar({ name: '.wh.literal' })), join(work, 'literal'), { convertWhiteout: false });
    await expect(buffer(vhdToTar(join(work, 'literal')))).rejects.toMatchObject({ code: 'NOT_SUPPORTED' });
    expect(await paths(await buffer(vhdToTar(join(work, 'literal'), { whiteouts: 'keep' })))).toEqual([
      './',
      '.wh.literal',
    ]);
  });

  test('ends when it is aborted', async () => {
    const vhd = await convert(inPieces(makeTar({ name: 'f', content: Buffer.alloc(5_000_000) })));
    const controller = new AbortController();
    const chunks = vhdToTar(vhd, { signal: controller.signal });
    await chunks.next();
    controller.abort();
    await expect(chunks.next()).rejects.toMatchObject({ code: 'CANCELLED' });
  });
});

/** Depth first, siblings by the bytes of their names, the mark of an opaque directory first. */
function byParts(one: string, other: string): number {
  const parts = (path: string) =>
    path
      .replace(/\/$/, '')
      .split('/')
      .map((part) => part.replace('.wh..wh..opq', '').replace('.wh.', ''));
  const [a, b] = [parts(one), parts(other)];
  for (let index = 0; ; index += 1) {
    if (a[index] === undefined || b[index] === undefined) return a.length - b.length;
    if (a[index] !== b[index]) return a[index]! < b[index]! ? -1 : 1;
  }
}
