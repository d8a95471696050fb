import { createHash, randomBytes } from 'node:crypto';
import { link, mkdir, readFile, unlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { LcowError } from '../errors/index.js';
import { abortable, delay, timeoutMs } from '../lifetime/index.js';
import { asIoError } from './atomic.js';
import { isAlive, ownIdentity, type ProcessIdentity } from './process-identity.js';

/** A held lock; disposing releases it. */
export interface Lock extends AsyncDisposable {
  release(): Promise<void>;
}

function lockPath(folder: string, key: string): string {
  // A key may be any text; the digest keeps names short and equal keys equal.
  return join(folder, `${createHash('sha256').update(key).digest('hex').slice(0, 32)}.lock`);
}

/**
 * Takes the lock of a key if no live process holds it. The lock file names its holder, so that one left by a process
 * that was killed is taken over at once.
 * @returns undefined when another live holder has it (this process too: locks are not re-entrant).
 */
export async function tryLock(folder: string, key: string): Promise<Lock | undefined> {
  const path = lockPath(folder, key);
  const token = randomBytes(8).toString('hex');
  const claim = `${path}.${token}`;
  await mkdir(folder, { recursive: true, mode: 0o700 });
  try {
    await writeFile(claim, JSON.stringify({ ...ownIdentity(), token, key }), { mode: 0o600, flag: 'wx' });
    try {
      for (;;) {
        try {
          // link fails when the name exists, and never shows a half-written file.
          await link(claim, path);
          return heldLock(path, token);
        } catch (error) {
          if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
        }
        const holder = await readHolder(path);
        if (holder && isAlive(holder)) return undefined;
        if (holder) await removeStale(folder, path, holder);
      }
    } finally {
      await unlink(claim);
    }
  } catch (error) {
    throw asIoError(error, `The lock of ${key} cannot be taken`);
  }
}

interface Holder extends ProcessIdentity {
  readonly token: string;
}

async function readHolder(path: string): Promise<Holder | undefined> {
  try {
    return JSON.parse(await readFile(path, 'utf8')) as Holder;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw error;
  }
}

/** Two processes may find the same dead holder: only the one that gets the second link may remove it. */
async function removeStale(folder: string, path: string, dead: Holder): Promise<void> {
  const breaker = join(folder, `${dead.token}.breaking`);
  try {
    await writeFile(breaker, JSON.stringify(ownIdentity()), { flag: 'wx', mode: 0o600 });
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
    const other = await readHolder(breaker);
    if (other && !isAlive(other)) await unlink(breaker).catch(ignoreMissing);
    await delay(5);
    return;
  }
  try {
    if ((await readHolder(path))?.token === dead.token) await unlink(path);
  } finally {
    await unlink(breaker).catch(ignoreMissing);
  }
}

function ignoreMissing(error: unknown): void {
  if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
}

function heldLock(path: string, token: string): Lock {
  let held = true;
  const release = async (): Promise<void> => {
    if (!held) return;
    held = false;
    if ((await readHolder(path))?.token === token) await unlink(path);
  };
  return { release, [Symbol.asyncDispose]: release };
}

// Waiters of this process queue here, so that only one of them polls for other processes.
const queues = new Map<string, Promise<unknown>>();

/**
 * Runs `critical` while holding the lock of a key, waiting for other holders.
 * @throws LcowError LOCK_HELD when a live holder keeps it for longer than the `lock` time-out; CANCELLED.
 */
export async function withLock<T>(
  folder: string,
  key: string,
  critical: () => Promise<T>,
  signal?: AbortSignal,
): Promise<T> {
  const path = lockPath(folder, key);
  const before = queues.get(path) ?? Promise.resolve();
  let leave!: () => void;
  const mine = new Promise<void>((resolve) => (leave = resolve));
  const tail = before.then(() => mine);
  queues.set(path, tail);
  try {
    await abortable(before, signal);
    const lock = await pollForLock(folder, key, signal);
    try {
      return await critical();
    } finally {
      await lock.release();
    }
  } finally {
    leave();
    if (queues.get(path) === tail) queues.delete(path);
  }
}

async function pollForLock(folder: string, key: string, signal: AbortSignal | undefined): Promise<Lock> {
  const patience = Date.now() + timeoutMs('lock');
  let pause = 5;
  for (;;) {
    const lock = await tryLock(folder, key);
    if (lock) return lock;
    if (Date.now() > patience) throw new LcowError('LOCK_HELD', `Another process holds the lock of ${key}.`);
    // Polled: Node has no blocking file lock that works on every host.
    await delay(pause, signal);
    pause = Math.min(pause * 2, 100);
  }
}
