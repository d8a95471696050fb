import { spawnSync } from 'node:child_process';
import { describe, expect, it } from 'vitest';
import { writeInitrd, type InitrdEntry } from '../../../guest/image/initrd-cpio.js';

const ENTRIES: [string, InitrdEntry][] = [
  ['init', { type: 'file', content: Buffer.from('#!/bin/sh\n'), mode: 0o755 }],
  ['a/deep/folder/file', { type: 'file', content: Buffer.alloc(4099, 7) }],
  ['a/empty', { type: 'file', content: Buffer.alloc(0) }],
  ['bin/sh', { type: 'link', target: 'busybox' }],
  ['dev/console', { type: 'device', mode: 0o600, major: 5, minor: 1 }],
  ['tmp', { type: 'folder', mode: 0o1777 }],
];

describe('the initrd writer', () => {
  it('gives equal bytes for equal entries in any order', () => {
    expect(writeInitrd(new Map(ENTRIES)).equals(writeInitrd(new Map([...ENTRIES].reverse())))).toBe(true);
  });

  it('pads the archive to whole sectors', () => {
    expect(writeInitrd(new Map(ENTRIES)).length % 512).toBe(0);
  });

  it.skipIf(spawnSync('cpio', ['--version']).error)(
    'writes what cpio reads: types, modes, owners, sizes, parents first',
    () => {
      const archive = writeInitrd(new Map(ENTRIES));
      const { stdout, status } = spawnSync('cpio', ['-itv', '--numeric-uid-gid', '--quiet'], {
        input: archive,
        encoding: 'utf8',
        env: { ...process.env, TZ: 'UTC', LC_ALL: 'C' },
      });
      expect(status).toBe(0);
      expect(
        stdout
          .trim()
          .split('\n')
          .map((line) => line.replace(/ +/g, ' ')),
      ).toEqual([
        'drwxr-xr-x 2 0 0 0 Jan 1 1970 a',
        'drwxr-xr-x 2 0 0 0 Jan 1 1970 a/deep',
        'drwxr-xr-x 2 0 0 0 Jan 1 1970 a/deep/folder',
        '-rw-r--r-- 1 0 0 4099 Jan 1 1970 a/deep/folder/file',
        '-rw-r--r-- 1 0 0 0 Jan 1 1970 a/empty',
        'drwxr-xr-x 2 0 0 0 Jan 1 1970 bin',
        'lrwxrwxrwx 1 0 0 7 Jan 1 1970 bin/sh -> busybox',
        'drwxr-xr-x 2 0 0 0 Jan 1 1970 dev',
        'crw------- 1 0 0 5, 1 Jan 1 1970 dev/console',
        '-rwxr-xr-x 1 0 0 10 Jan 1 1970 init',
        'drwxrwxrwt 2 0 0 0 Jan 1 1970 tmp',
      ]);
    },
  );
});
