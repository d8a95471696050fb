import { describe, expect, it } from 'vitest';
import { inert } from './failure.js';
import { grace, tail, time } from './options.js';
import { ago, quoted } from './output.js';
import { commandName } from './program.js';

describe('what the command prints', () => {
  it('holds nothing that a terminal obeys, whoever wrote it', () => {
    expect(inert('a\u001b[31mb\u001b]0;title\u0007\u009b2Jc\td\ne')).toBe('ab]0;title2Jc\td\ne');
    expect(quoted('sh -c "\u001b[2J\n\u009b"', 100)).toBe(String.raw`"sh -c \"\u001b[2J\n\u009b\""`);
    expect(quoted('a'.repeat(30), 20)).toBe(`"${'a'.repeat(19)}…"`);
  });

  it('has docker’s word for a date that is none', () => {
    expect(ago(new Date('garbage'))).toBe('N/A');
    expect(ago(new Date(0), new Date(120_000))).toBe('2 minutes ago');
  });
});

describe('an argument', () => {
  it.each([
    ['10m', 400_000],
    ['1m30s', 910_000],
    ['0.5s', 999_500],
    ['250ms', 999_750],
    ['100', 100_000],
    ['1.5', 1500],
    ['1970-01-01T00:00:02Z', 2000],
    ['1970-01-01T00:00:00.123456789Z', 123],
    ['1970-01-02', 86_400_000],
  ])('that is the time %s is understood as docker does', (text, ms) =>
    expect(time(text, 1_000_000).getTime()).toBe(ms),
  );
  it.each(['', 'yesterday', '5 m', 'foo 1', '2024-13-01T00:00:00Z', '1h!'])(
    'that is no time is refused: %j',
    (text) => {
      expect(() => time(text)).toThrow('Invalid time');
    },
  );
  it('takes a negative number for no limit', () => {
    expect([grace('-1'), grace('5'), tail('-1'), tail('all'), tail('3')]).toEqual([
      Infinity,
      5,
      undefined,
      undefined,
      3,
    ]);
    for (const bad of ['x', '1.5', '9'.repeat(20)]) expect(() => grace(bad)).toThrow('whole number');
  });
  it('before the command’s name belongs to lcow', () => {
    expect(commandName(['-D', 'run', '--bogus'])).toBe('run');
    expect(commandName(['--version'])).toBeUndefined();
  });
});
