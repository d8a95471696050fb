import { describe, expect, it } from 'vitest';
import { applyPatch } from '../../../guest/image/patch.js';

const FILE = ['one', 'two', 'three', 'four', 'five', ''].join('\n');
const read = (path: string): string => {
  expect(path).toBe('src/file.c');
  return FILE;
};
const diff = (...hunk: string[]): string =>
  ['Subject: text before', '---', '--- a/src/file.c', '+++ b/src/file.c', ...hunk, '-- ', '2.39.2', ''].join('\n');

describe('applying a patch', () => {
  it('changes the lines of its hunks', () => {
    const text = diff(
      '@@ -1,3 +1,3 @@',
      ' one',
      '-two',
      '+2',
      ' three',
      '@@ -4,2 +4,3 @@ context',
      ' four',
      '+4.5',
      ' five',
    );
    expect(applyPatch(text, read).get('src/file.c')).toBe('one\n2\nthree\nfour\n4.5\nfive\n');
  });

  it('finds a hunk that has moved', () => {
    expect(applyPatch(diff('@@ -1,2 +1,2 @@', ' four', '-five', '+5'), read).get('src/file.c')).toBe(
      'one\ntwo\nthree\nfour\n5\n',
    );
  });

  it('builds on what an earlier patch of the same text did to the file', () => {
    const twice = diff('@@ -1,1 +1,1 @@', '-one', '+1') + diff('@@ -1,2 +1,2 @@', ' 1', '-two', '+2');
    expect(applyPatch(twice, read).get('src/file.c')).toBe('1\n2\nthree\nfour\nfive\n');
  });

  it('refuses a hunk that does not fit, and one that is cut off', () => {
    expect(() => applyPatch(diff('@@ -1,1 +1,1 @@', '-uno', '+1'), read)).toThrow(/does not fit at line 1/);
    expect(() => applyPatch('--- a/src/file.c\n+++ b/src/file.c\n@@ -1,9 +1,1 @@\n-one', read)).toThrow(
      /ends in the middle/,
    );
  });
});
