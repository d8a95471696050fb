import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { createFolderAtomic, isTemporaryName, sweepTemporary } from './index.js';

let root: string;
beforeEach(async () => {
  root = await mkdtemp(join(tmpdir(), 'lcow-folder-'));
});
afterEach(async () => {
  await rm(root, { recursive: true });
});

describe('createFolderAtomic', () => {
  it('shows the folder only when it is filled', async () => {
    const path = join(root, 'made');
    const result = await createFolderAtomic(path, async (temporary) => {
      await writeFile(join(temporary, 'file'), 'content');
      expect((await readdir(root)).every(isTemporaryName)).toBe(true);
      return 7;
    });
    expect(result).toBe(7);
    expect(await readFile(join(path, 'file'), 'utf8')).toBe('content');
    expect(await readdir(root)).toEqual(['made']);
  });

  it('leaves nothing when filling fails', async () => {
    const failure = new Error('no');
    const making = createFolderAtomic(join(root, 'made'), async (temporary) => {
      await writeFile(join(temporary, 'file'), 'content');
      throw failure;
    });
    await expect(making).rejects.toBe(failure);
    expect(await readdir(root)).toEqual([]);
  });

  it('keeps a folder or file that stands there', async () => {
    await mkdir(join(root, 'folder'));
    await writeFile(join(root, 'folder', 'old'), '');
    await writeFile(join(root, 'file'), '');
    for (const name of ['folder', 'file'])
      await expect(
        createFolderAtomic(join(root, name), async (temporary) => writeFile(join(temporary, 'new'), '')),
      ).rejects.toMatchObject({ code: 'ALREADY_EXISTS' });
    expect(await readdir(join(root, 'folder'))).toEqual(['old']);
    expect((await readdir(root)).sort()).toEqual(['file', 'folder']);
  });

  it('is swept when its maker died, contents and all', async () => {
    await mkdir(join(root, '.made.1-1-00000000.partial', 'deep'), { recursive: true });
    expect(await sweepTemporary(root)).toHaveLength(1);
    expect(await readdir(root)).toEqual([]);
  });
});
