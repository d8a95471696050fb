import { mkdtemp, readFile, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { asIoError, createAtomic, isTemporaryName, sweepTemporary, writeFileAtomic } from './atomic.js';

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'lcow-atomic-'));
});
afterEach(() => rm(folder, { recursive: true }));

describe('an atomic file', () => {
  it('replaces the old content only when all of the new is there', async () => {
    const path = join(folder, 'file');
    await writeFileAtomic(path, 'old');
    await expect(
      createAtomic(path, async (file) => {
        await file.writeFile('half');
        expect((await readdir(folder)).some(isTemporaryName)).toBe(true);
        throw new Error('power cut');
      }),
    ).rejects.toThrow('power cut');
    expect(await readFile(path, 'utf8')).toBe('old');
    expect(await readdir(folder)).toEqual(['file']);
  });

  it('is swept when its writer is dead, and left alone while it lives', async () => {
    await writeFile(join(folder, '.layer.vhd.999999999-1-00000000.partial'), '');
    await createAtomic(join(folder, 'file'), async () => {
      expect(await sweepTemporary(folder)).toEqual([join(folder, '.layer.vhd.999999999-1-00000000.partial')]);
    });
    expect(await readdir(folder)).toEqual(['file']);
  });

  it('tells a full disk from other failures', () => {
    const errno = (code: string): Error => Object.assign(new Error(`${code}: no`), { code });
    expect(asIoError(errno('ENOSPC'), 'It')).toMatchObject({ code: 'DISK_FULL' });
    expect(asIoError(errno('EACCES'), 'It')).toMatchObject({ code: 'IO_FAILED', message: 'It: EACCES: no.' });
    const other = new TypeError('x');
    expect(asIoError(other, 'It')).toBe(other);
  });
});
