import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { buffer } from 'node:stream/consumers';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { inPieces, makeTar, type Member } from '../../../test/support/make-tar.js';
import { tarToVhd } from '../convert/index.js';
import { changes, diffSize, openView, type FileView, type ViewLayer } from './index.js';

const dir = (name: string, more: Partial<Member> = {}): Member => ({
  name: `${name}/`,
  type: '5',
  mode: 0o755,
  ...more,
});
const file = (name: string, content = '', more: Partial<Member> = {}): Member => ({ name, content, ...more });
const symlink = (name: string, linkname: string): Member => ({ name, type: '2', linkname, mode: 0o777 });

let work: string;
let base: ViewLayer;
let middle: ViewLayer;
let upper: ViewLayer;
let view: FileView;

async function layer(name: string, ...members: Member[]): Promise<ViewLayer> {
  const disk = join(work, `${name}.vhd`);
  await tarToVhd(inPieces(makeTar(...members)), disk);
  return { disk };
}

beforeAll(async () => {
  work = mkdtempSync(join(tmpdir(), 'lcow-view-'));
  base = await layer(
    'base',
    ...[
      dir('etc'),
      file('etc/passwd', 'base passwd'),
      file('etc/gone', 'x'),
      file('etc/same', 's'),
      file('etc/touched', 't'),
    ],
    ...[dir('var'), dir('var/cache'), file('var/cache/old', 'old'), file('var/kept', 'kept')],
    ...[
      dir('replaced'),
      file('replaced/child', 'c'),
      file('file', 'a file'),
      dir('untouched'),
      file('untouched/f', 'f'),
    ],
    ...[
      symlink('abs', '/etc/passwd'),
      symlink('up', '../../../etc'),
      symlink('loop', 'loop'),
      symlink('bin', 'usr/bin'),
    ],
    ...[dir('usr'), dir('usr/bin'), file('usr/bin/sh', '#!')],
  );
  middle = await layer(
    'middle',
    dir('etc'),
    file('etc/.wh.gone'),
    file('etc/added', 'middle'),
    file('etc/passwd', 'middle passwd'),
  );
  upper = await layer(
    'upper',
    ...[dir('etc', { mode: 0o700 }), file('etc/new', 'new file'), { name: 'etc/hard', type: '1', linkname: 'etc/new' }],
    ...[file('etc/.wh.added'), file('etc/.wh.never'), file('etc/same', 's'), file('etc/touched', 't', { mtime: 5 })],
    ...[dir('var'), dir('var/cache'), file('var/cache/.wh..wh..opq'), file('var/cache/fresh', 'fresh')],
    ...[file('replaced', 'now a file'), dir('file'), file('file/inside', 'i'), dir('untouched')],
  );
  view = await openView([upper, middle, base]);
});
afterAll(async () => {
  await view.close();
  rmSync(work, { recursive: true });
});

const names = async (path: string): Promise<string[]> => (await view.readdir(path)).map(({ name }) => name);
const text = async (path: string): Promise<string> => (await buffer(view.stream(path))).toString();

describe('a view of layers', () => {
  test('is merged as overlayfs does it', async () => {
    expect(await names('/')).toEqual([
      'abs',
      'bin',
      'etc',
      'file',
      'loop',
      'replaced',
      'untouched',
      'up',
      'usr',
      'var',
    ]);
    expect(await names('/etc')).toEqual(['hard', 'new', 'passwd', 'same', 'touched']);
    expect(await names('var')).toEqual(['cache', 'kept']);
    expect(await names('var/cache')).toEqual(['fresh']);
    expect(await names('file')).toEqual(['inside']);
    expect(await text('/etc/passwd')).toBe('middle passwd');
    expect(await text('replaced')).toBe('now a file');
    expect(await text('var/kept')).toBe('kept');
    expect((await view.stat('etc')).mode).toBe(0o700);
    await expect(view.stat('etc/gone')).rejects.toMatchObject({ code: 'NOT_FOUND' });
    await expect(view.stat('etc/added')).rejects.toMatchObject({ code: 'NOT_FOUND' });
    await expect(view.stat('replaced/child')).rejects.toMatchObject({ code: 'NOT_FOUND' });
  });

  test('resolves symbolic links within itself', async () => {
    expect(await text('abs')).toBe('middle passwd');
    expect(await text('up/passwd')).toBe('middle passwd');
    expect(await text('bin/sh')).toBe('#!');
    expect(await view.realpath('/usr/../bin/../../up/./passwd')).toBe('/etc/passwd');
    expect(await view.readlink('bin')).toBe('usr/bin');
    expect((await view.stat('bin', { follow: false })).kind).toBe('symbolicLink');
    await expect(view.stat('loop')).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    await expect(view.readdir('abs')).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    await expect(view.readlink('etc')).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  });

  test('reads parts of files', async () => {
    expect((await view.read('etc/new', 4, 100)).toString()).toBe('file');
    expect((await buffer(view.stream('etc/new', 2))).toString()).toBe('w file');
    await expect(view.read('etc', 0, 1)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  });

  test('can be of one layer alone', async () => {
    await using own = await openView([middle]);
    expect((await own.readdir('etc')).map(({ name }) => name)).toEqual(['added', 'passwd']);
    await expect(openView([])).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    await expect(openView([{ ...base, root: '/nothing' }])).rejects.toMatchObject({ code: 'NOT_FOUND' });
  });
});

describe('the changes of a layer', () => {
  test('are what docker diff would tell', async () => {
    const letters = { added: 'A', modified: 'C', deleted: 'D' } as const;
    expect((await changes([middle, base], upper)).map(({ path, kind }) => `${letters[kind]} ${path}`)).toEqual([
      'C /etc',
      'D /etc/added',
      'A /etc/hard',
      'A /etc/new',
      'C /etc/touched',
      'C /file',
      'A /file/inside',
      'C /replaced',
      'D /replaced/child',
      'C /var',
      'C /var/cache',
      'A /var/cache/fresh',
      'D /var/cache/old',
    ]);
  });

  test('have the size of their files, hard links counted once', async () => {
    expect(await diffSize([middle, base], upper)).toBe(
      'new file'.length + 't'.length + 'i'.length + 'now a file'.length + 'fresh'.length,
    );
    expect(await diffSize([], { ...upper, root: 'var' })).toBe('fresh'.length);
  });
});
