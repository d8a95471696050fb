import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { buffer } from 'node:stream/consumers';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { readTar, writeTar, type TarInput } from './index.js';

let work: string;
beforeAll(() => {
  work = mkdtempSync(join(tmpdir(), 'lcow-write-tar-'));
});
afterAll(() => rmSync(work, { recursive: true }));

const plain: TarInput = {
  type: 'file',
  path: 'f',
  linkPath: '',
  mode: 0o644,
  uid: 0,
  gid: 0,
  size: 0,
  mtime: 0,
  mtimeNs: 0,
  atime: undefined,
  atimeNs: 0,
  ctime: undefined,
  ctimeNs: 0,
  deviceMajor: 0,
  deviceMinor: 0,
  xattrs: undefined,
};
const latin1 = (text: string): string => Buffer.from(text).toString('latin1');

const MEMBERS: readonly TarInput[] = [
  { ...plain, type: 'directory', path: 'd', mode: 0o1777 },
  { ...plain, path: 'd/content', size: 600, data: [Buffer.alloc(500, 'x'), Buffer.alloc(100, 'y')] },
  { ...plain, path: `${'deep/'.repeat(25)}name`, uid: 2097151, gid: 2097152 },
  { ...plain, path: 'n'.repeat(200), mtime: 1_700_000_000, mtimeNs: 123_456_789 },
  { ...plain, path: latin1('größe'), mtime: -2, mtimeNs: 750_000_000 },
  { ...plain, path: 'x'.repeat(100), atime: 5, ctime: 6, ctimeNs: 7 },
  {
    ...plain,
    path: 'attributed',
    xattrs: new Map([
      ['user.b', Buffer.from('two\nlines=')],
      ['user.a', Buffer.alloc(0)],
    ]),
  },
  { ...plain, type: 'symbolicLink', path: 'long-link', linkPath: 't'.repeat(150), mode: 0o777 },
  { ...plain, type: 'hardLink', path: 'hard', linkPath: 'd/content' },
  { ...plain, type: 'characterDevice', path: 'null', deviceMajor: 1, deviceMinor: 3 },
  { ...plain, type: 'fifo', path: 'pipe' },
];

describe('the writer of tars', () => {
  test('writes what our reader reads back', async () => {
    const tar = await buffer(writeTar(MEMBERS));
    const read: TarInput[] = [];
    for await (const { offset: _offset, data: _data, ...entry } of readTar(asyncOf(tar))) read.push(entry);
    expect(read).toEqual(
      MEMBERS.map(({ data: _data, ...member }) => ({
        ...member,
        path: member.type === 'directory' ? `${member.path}/` : member.path,
      })),
    );
    expect(tar.length % 512).toBe(0);
    expect(await buffer(writeTar(MEMBERS))).toEqual(tar);
  });

  test('is understood by GNU tar and by Python', async () => {
    const file = join(work, 'made.tar');
    writeFileSync(file, await buffer(writeTar(MEMBERS)));
    const listed = execFileSync('tar', ['-tf', file, '--quoting-style=literal', '--full-time'], {
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    const names = MEMBERS.map(
      ({ path, type }) => Buffer.from(path, 'latin1').toString() + (type === 'directory' ? '/' : ''),
    );
    expect(listed.trimEnd().split('\n')).toEqual(names);
    const script = `
import json, sys, tarfile
print(json.dumps([[m.name, m.size, m.mode, m.uid, m.gid, float(m.mtime), m.linkname, m.type.decode(),
  {k: v for k, v in m.pax_headers.items() if 'xattr' in k}] for m in tarfile.open(sys.argv[1])]))`;
    const seen = JSON.parse(execFileSync('python3', ['-c', script, file], { encoding: 'utf8' })) as unknown[][];
    expect(seen.map(([name]) => name)).toEqual(names.map((name) => name.replace(/\/$/, '')));
    expect(seen[2]!.slice(3, 5)).toEqual([2097151, 2097152]);
    expect(seen[4]![5]).toBe(-1.25);
    expect(seen[3]![5]).toBeCloseTo(1_700_000_000.123, 2);
    expect(seen[6]![8]).toEqual({ 'SCHILY.xattr.user.a': '', 'SCHILY.xattr.user.b': 'two\nlines=' });
    expect(seen[7]![6]).toBe('t'.repeat(150));
  });

  test('writes sizes above 8 GiB, and asks for content only as it is taken', async () => {
    let asked = 0;
    const size = 9 * 2 ** 30;
    async function* content(): AsyncGenerator<Uint8Array> {
      const piece = Buffer.alloc(65536);
      for (let left = size; left > 0; left -= piece.length) {
        asked += 1;
        yield piece;
      }
    }
    const chunks = writeTar([{ ...plain, size, data: content() }]);
    const first = (await chunks.next()).value as Buffer;
    expect(asked).toBeLessThan(20);
    expect(first.toString('latin1')).toContain(`size=${size}\n`);
    await chunks.return();
  });

  test('refuses content of another length than the member says', async () => {
    for (const data of [[], [Buffer.alloc(3)], [Buffer.alloc(2), Buffer.alloc(3)]])
      await expect(buffer(writeTar([{ ...plain, size: 4, data }]))).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  });
});

async function* asyncOf(bytes: Uint8Array): AsyncGenerator<Uint8Array> {
  yield bytes;
}
