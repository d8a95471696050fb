import { execFile } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { describe, expect, it } from 'vitest';

const fuzz = (...args: string[]): Promise<{ stdout: string }> =>
  promisify(execFile)(process.execPath, [
    '--import',
    'tsx',
    fileURLToPath(new URL('../fuzz/run.ts', import.meta.url)),
    ...args,
  ]);

describe('the parsers of disk formats', () => {
  it('meet damaged files of every kind with a result or an error of the library, in time and memory', async () => {
    const { stdout } = await fuzz('--time', '5');
    expect(stdout.split('\n').filter(Boolean)).toEqual(
      ['tar', 'ext4', 'vhd', 'vhdx'].map(
        (name) => expect.stringMatching(`^${name}: \\d+ cases, no failure$`) as string,
      ),
    );
  });
});
