import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { CATALOGUE } from '../../src/errors/index.js';
import { SCALED, TIMEOUTS, type TimeoutName } from '../../src/lifetime/timeouts.js';

const read = (path: string): string => readFileSync(new URL(`../../${path}`, import.meta.url), 'utf8');
const rows = (page: string): string[][] =>
  page
    .split('\n')
    .filter((line) => /^\| (?!-)/.test(line))
    .map((line) => line.split('|').map((cell) => cell.trim()).slice(1, -1)); // prettier-ignore

describe('the documentation', () => {
  it('lists every error code with its meaning, and no other', () => {
    const documented = Object.fromEntries(
      rows(read('docs/errors.md'))
        .filter(([code]) => /^`[A-Z_0-9]+`$/.test(code ?? ''))
        .map(([code, meaning]) => [code!.slice(1, -1), meaning]),
    );
    expect(documented).toEqual(
      Object.fromEntries(Object.entries(CATALOGUE).map(([code, { meaning }]) => [code, meaning])),
    );
  });

  it('lists every time-out with its variable, default and scaling, and no other', () => {
    const documented = rows(read('docs/timeouts.md')).slice(1);
    expect(documented).toEqual(
      Object.entries(TIMEOUTS).map(([name, { env, seconds }]) => [
        name,
        env,
        `${seconds} s`,
        SCALED.has(name as TimeoutName) ? 'longer' : 'same',
      ]),
    );
  });

  it('gives a reason for every dependency', () => {
    const packageJson = JSON.parse(read('package.json')) as Record<string, Record<string, string>>;
    const names = rows(read('docs/dependencies.md')).flatMap(([cell]) => cell!.split(', '));
    const wanted = [
      ...Object.keys(packageJson['dependencies']!),
      ...Object.keys(packageJson['devDependencies']!).map((name) => (name.startsWith('@types/') ? '@types/*' : name)),
    ];
    expect(wanted.filter((name) => !names.includes(name))).toEqual([]);
  });
});
