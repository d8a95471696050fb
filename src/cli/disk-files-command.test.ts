import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { makeTar } from '../../test/support/make-tar.js';
import { readTar, tarToVhd } from '../disk/index.js';
import { diskCommand } from './disk-command.js';

let work: string;
let base: string;
let top: string;
beforeAll(async () => {
  work = mkdtempSync(join(tmpdir(), 'lcow-disk-command-'));
  base = join(work, 'base.vhd');
  top = join(work, 'top.vhd');
  await tarToVhd(
    Readable.from([
      makeTar(
        { name: 'etc/', type: '5', mode: 0o755 },
        { name: 'etc/größe', content: 'x', mode: 0o4755, mtime: 1_700_000_000 },
        { name: 'etc/link', type: '2', linkname: 'größe', mode: 0o777 },
        { name: 'etc/null', type: '3', major: 1, minor: 3, mode: 0o666 },
        { name: 'etc/evil\u001b[2J', mode: 0o644 },
      ),
    ]),
    base,
  );
  await tarToVhd(Readable.from([makeTar({ name: 'etc/.wh.link' }, { name: 'etc/new', content: 'n' })]), top);
});
afterAll(() => rmSync(work, { recursive: true }));

/** What a command prints. */
async function printed(...args: string[]): Promise<string> {
  const log = vi.spyOn(console, 'log').mockImplementation(() => undefined);
  try {
    await diskCommand().parseAsync(args, { from: 'user' });
    return log.mock.calls.map(([line]) => String(line)).join('\n');
  } finally {
    log.mockRestore();
  }
}

describe('lcow disk', () => {
  test('ls shows a directory as ls -l does, and no escape sequences', async () => {
    const lines = (await printed('ls', base, '/etc')).split('\n').map((line) => line.replaceAll(/ {2,}/g, ' '));
    expect(lines).toEqual([
      'MODE LINKS UID GID SIZE MODIFIED NAME',
      '-rw-r--r-- 1 0 0 0 1970-01-01 00:00:00 evil?[2J',
      '-rwsr-xr-x 1 0 0 1 2023-11-14 22:13:20 größe',
      'lrwxrwxrwx 1 0 0 6 1970-01-01 00:00:00 link -> größe'.replace(' 6 ', ` ${Buffer.byteLength('größe')} `),
      'crw-rw-rw- 1 0 0 1, 3 1970-01-01 00:00:00 null',
    ]);
  });

  test('ls --json shows a chain of layers', async () => {
    const entries = JSON.parse(await printed('ls', '--json', top, 'etc', '--lower', base)) as { name: string }[];
    expect(entries.map(({ name }) => name)).toEqual(['evil\u001b[2J', 'größe', 'new', 'null']);
    expect(entries[1]).toMatchObject({ kind: 'file', mode: 0o4755, size: 1, modified: '2023-11-14T22:13:20.000Z' });
  });

  test('diff shows what a layer changes', async () => {
    expect(await printed('diff', top, '--lower', base)).toBe('C /etc\nD /etc/link\nA /etc/new');
  });

  test('vhd2tar writes a tar, whole or not at all', async () => {
    const output = join(work, 'out.tar');
    await printed('vhd2tar', top, '-o', output);
    const paths: string[] = [];
    for await (const { path } of readTar(Readable.from([readFileSync(output)]))) paths.push(path);
    expect(paths).toEqual(['./', 'etc/', 'etc/.wh.link', 'etc/new']);
    await expect(printed('vhd2tar', top, '-o', join(work, 'none.tar'), '--root', '/none')).rejects.toMatchObject({
      code: 'NOT_FOUND',
    });
    expect(() => readFileSync(join(work, 'none.tar'))).toThrow('ENOENT');
  });
});
