import { existsSync, mkdtempSync } from 'node:fs';
import { mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { stateFolders, type StateFolders } from '../state/index.js';
import { ContainerStore } from './container-store.js';
import { startDetached } from './detached.js';

const ID = 'ab'.repeat(32);
let base: string;
let folders: StateFolders;
let store: ContainerStore;
beforeEach(async () => {
  base = mkdtempSync(join(tmpdir(), 'lcow-detached-'));
  folders = stateFolders({ LCOW_ROOT: join(base, 'r'), LCOW_RUNTIME_DIR: join(base, 'run') });
  store = new ContainerStore(folders);
  await mkdir(store.folder(ID));
});
afterEach(() => rm(base, { recursive: true }));

/** Starts a program in place of the supervisor. */
async function start(program: string, signal?: AbortSignal): Promise<void> {
  const path = join(base, 'supervisor.mjs');
  await writeFile(path, program);
  await startDetached(folders, store, ID, signal, pathToFileURL(path));
}

describe('the start of a detached supervisor', () => {
  it('is over when it says so, though the supervisor goes on, in the folders of its engine', async () => {
    await start(`
      import { writeFileSync } from 'node:fs';
      writeFileSync(process.env.LCOW_ROOT + '/args', process.argv[2] + process.env.LCOW_RUNTIME_DIR);
      process.on('disconnect', () => setTimeout(() => writeFileSync(process.env.LCOW_ROOT + '/done', ''), 50));
      process.send({ ok: true });
    `);
    expect(await readFile(join(folders.root, 'args'), 'utf8')).toBe(ID + folders.runtime);
    while (!existsSync(join(folders.root, 'done'))) await new Promise((resolve) => setTimeout(resolve, 5));
  });

  it('fails with the error that is reported, also by one that ends at once', async () => {
    const report = {
      ok: false,
      code: 'COMMAND_NOT_FOUND',
      message: 'No x.',
      hint: 'Look.',
      details: { consoleTail: 'y' },
    };
    await expect(start(`process.send(${JSON.stringify(report)}, () => process.exit(1));`)).rejects.toMatchObject({
      code: 'COMMAND_NOT_FOUND',
      message: 'No x.',
      hint: 'Look.',
      details: { consoleTail: 'y' },
    });
    const unknown = { ok: false, code: 'toString', message: 'Odd.' };
    await expect(start(`process.send(${JSON.stringify(unknown)})`)).rejects.toMatchObject({ code: 'IO_FAILED' });
  });

  it('names the log of one that ends without a word', async () => {
    const failed = start(`console.error('deep trouble'); process.exit(3);`);
    await expect(failed).rejects.toThrow('ended before it started (exit code 3)');
    await expect(failed).rejects.toMatchObject({ hint: `Its log is ${store.supervisorLogFile(ID)}.` });
    expect(await readFile(store.supervisorLogFile(ID), 'utf8')).toBe('deep trouble\n');
  });

  it('can be cancelled, before and meanwhile', async () => {
    await expect(start('', AbortSignal.abort())).rejects.toMatchObject({ code: 'CANCELLED' });
    const abort = new AbortController();
    const starting = start(`setInterval(() => {}, 1000);`, abort.signal);
    setTimeout(() => abort.abort(), 20);
    await expect(starting).rejects.toMatchObject({ code: 'CANCELLED' });
  });
});
