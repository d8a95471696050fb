import { chmodSync, mkdirSync, mkdtempSync, rmSync, statSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { stateFolders } from './folders.js';

let base: string;
beforeEach(() => {
  base = mkdtempSync(join(tmpdir(), 'lcow-folders-'));
});
afterEach(() => {
  vi.unstubAllEnvs();
  rmSync(base, { recursive: true });
});

const mode = (path: string): number => statSync(path).mode & 0o777;

describe('the state folders', () => {
  it('are made private, where the variables say', () => {
    const env = { XDG_DATA_HOME: join(base, 'data'), XDG_RUNTIME_DIR: join(base, 'run') };
    const folders = stateFolders(env);
    expect(folders).toMatchObject({ root: join(base, 'data/lcow'), runtime: join(base, 'run/lcow') });
    for (const folder of Object.values(folders) as string[]) expect(mode(folder)).toBe(0o700);
    expect(stateFolders({ ...env, LCOW_ROOT: join(base, 'r') }).layers).toBe(join(base, 'r/layers'));
  });

  it('may be somewhere else by a link of the user', () => {
    mkdirSync(join(base, 'big-disk'));
    symlinkSync(join(base, 'big-disk'), join(base, 'r'));
    expect(() => stateFolders({ LCOW_ROOT: join(base, 'r'), LCOW_RUNTIME_DIR: join(base, 'run') })).not.toThrow();
  });

  it('are not taken when everybody can write to them', () => {
    for (const name of ['LCOW_ROOT', 'LCOW_RUNTIME_DIR']) {
      const open = join(base, name);
      mkdirSync(open);
      chmodSync(open, 0o777);
      const env = { LCOW_ROOT: join(base, 'r'), LCOW_RUNTIME_DIR: join(base, 'run'), [name]: open };
      expect(() => stateFolders(env)).toThrow(`${open} can be written to by everybody`);
      chmodSync(open, 0o1777);
      expect(() => stateFolders(env)).not.toThrow();
    }
  });

  describe.runIf(process.getuid)('in /tmp, where others may have been first,', () => {
    const env = (): NodeJS.ProcessEnv => ({ LCOW_ROOT: join(base, 'r') });
    let fallback: string;
    beforeEach(() => {
      vi.stubEnv('TMPDIR', base);
      fallback = join(base, `lcow-${process.getuid!()}`);
    });

    it('are made private, and private again', () => {
      expect(stateFolders(env()).runtime).toBe(fallback);
      chmodSync(fallback, 0o755);
      stateFolders(env());
      expect(mode(fallback)).toBe(0o700);
    });

    it('are not followed by a link to a folder of ours', () => {
      mkdirSync(join(base, 'precious'));
      symlinkSync(join(base, 'precious'), fallback);
      expect(() => stateFolders(env())).toThrow(`${fallback} is not a folder of its own`);
    });

    it('are no file', () => {
      writeFileSync(fallback, '');
      expect(() => stateFolders(env())).toThrow(fallback);
    });
  });
});
