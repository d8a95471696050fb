import { fork } from 'node:child_process';
import { mkdtemp, readFile, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { tryLock, withLock } from './lock.js';

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'lcow-lock-'));
});
afterEach(() => rm(folder, { recursive: true }));

describe('a lock', () => {
  it('has one holder at a time and leaves no file', async () => {
    const first = await tryLock(folder, 'key');
    expect(await tryLock(folder, 'key')).toBeUndefined();
    expect(await tryLock(folder, 'other')).toBeDefined();
    await first!.release();
    const second = await tryLock(folder, 'key');
    expect(second).toBeDefined();
    await second!.release();
    await second!.release();
    expect((await readdir(folder)).length).toBe(1);
  });

  it('serialises what runs under it', async () => {
    const counter = join(folder, 'counter');
    await writeFile(counter, '0');
    await Promise.all(
      Array.from({ length: 20 }, () =>
        withLock(folder, 'key', async () => {
          await writeFile(counter, String(Number(await readFile(counter, 'utf8')) + 1));
        }),
      ),
    );
    expect(await readFile(counter, 'utf8')).toBe('20');
  });

  it('is taken over at once from a holder that was killed, by one of many who want it', async () => {
    const program = join(folder, 'holder.mjs');
    // A holder as tryLock writes it: its identity, then it dies without releasing.
    await writeFile(program, 'process.send({ pid: process.pid }); setInterval(() => {}, 1000);');
    const child = fork(program, { stdio: ['ignore', 'ignore', 'ignore', 'ipc'] });
    await new Promise((resolve) => child.once('message', resolve));
    const own = await tryLock(folder, 'key');
    const [name] = (await readdir(folder)).filter((entry) => entry.endsWith('.lock'));
    const held = JSON.parse(await readFile(join(folder, name!), 'utf8')) as { startTime: number };
    await own!.release();
    const stat = await readFile(`/proc/${child.pid!}/stat`, 'latin1');
    const startTime = Number(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19]);
    expect(startTime).toBeGreaterThanOrEqual(held.startTime);
    await writeFile(join(folder, name!), JSON.stringify({ pid: child.pid, startTime, token: 'dead', key: 'key' }));
    expect(await tryLock(folder, 'key')).toBeUndefined();
    const gone = new Promise((resolve) => child.once('exit', resolve));
    child.kill('SIGKILL');
    await gone;
    let inside = 0;
    let most = 0;
    await Promise.all(
      Array.from({ length: 8 }, () =>
        withLock(folder, 'key', async () => {
          most = Math.max(most, ++inside);
          await Promise.resolve();
          inside -= 1;
        }),
      ),
    );
    expect(most).toBe(1);
  });

  it('is released when what runs under it fails', async () => {
    await expect(withLock(folder, 'key', () => Promise.reject(new Error('no')))).rejects.toThrow('no');
    expect(await tryLock(folder, 'key')).toBeDefined();
  });

  it('is not waited for longer than the caller wants', async () => {
    const held = await tryLock(folder, 'key');
    const signal = AbortSignal.timeout(20);
    await expect(withLock(folder, 'key', () => Promise.resolve(), signal)).rejects.toMatchObject({ code: 'CANCELLED' });
    await held!.release();
  });
});
