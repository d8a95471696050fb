import { randomBytes } from 'node:crypto';
import { mkdir, open, readdir, rename, rm, unlink, type FileHandle } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { LcowError } from '../errors/index.js';
import { isAlive, ownIdentity, type ProcessIdentity } from './process-identity.js';

// .<name>.<pid>-<start>-<random>.partial: a sweep can tell whether the writer still lives.
const TEMPORARY = /^\..+\.(\d+)-(\d+)-[0-9a-f]{8}\.partial$/;

function temporaryName(path: string): string {
  const { pid, startTime } = ownIdentity();
  return join(dirname(path), `.${basename(path)}.${pid}-${startTime}-${randomBytes(4).toString('hex')}.partial`);
}

/** Whether a file name is that of an unfinished {@link createAtomic}. */
export function isTemporaryName(name: string): boolean {
  return TEMPORARY.test(name);
}

/**
 * Makes a file whole or not at all: `write` fills a temporary file in the same folder, which is synced and renamed.
 * On failure the temporary file is deleted and what stood at `path` stays.
 * @throws LcowError DISK_FULL, IO_FAILED, or whatever `write` throws.
 */
export async function createAtomic<T>(
  path: string,
  write: (file: FileHandle, temporaryPath: string) => Promise<T>,
  mode = 0o600,
): Promise<T> {
  const temporary = temporaryName(path);
  try {
    const file = await open(temporary, 'wx+', mode);
    let result: T;
    try {
      result = await write(file, temporary);
      await file.sync();
    } finally {
      await file.close();
    }
    await rename(temporary, path);
    await syncFolder(dirname(path));
    return result;
  } catch (error) {
    await unlink(temporary).catch((cleanup: unknown) => {
      if ((cleanup as NodeJS.ErrnoException).code !== 'ENOENT')
        throw asIoError(cleanup, `The partial file ${temporary} cannot be deleted`);
    });
    throw asIoError(error, `${path} cannot be written`);
  }
}

/** Writes a whole small file atomically. Mode 0600 unless given. */
export async function writeFileAtomic(path: string, content: string | Uint8Array, mode = 0o600): Promise<void> {
  await createAtomic(path, async (file) => file.writeFile(content), mode);
}

/**
 * Makes a folder whole or not at all: `fill` fills a temporary folder beside it, which is synced and renamed. The files
 * inside are synced by whoever writes them. On failure nothing is left.
 * @throws LcowError ALREADY_EXISTS when something stands at `path`; DISK_FULL, IO_FAILED, or whatever `fill` throws.
 */
export async function createFolderAtomic<T>(
  path: string,
  fill: (temporaryPath: string) => Promise<T>,
  mode = 0o700,
): Promise<T> {
  const temporary = temporaryName(path);
  try {
    await mkdir(temporary, { mode });
    const result = await fill(temporary);
    await syncFolder(temporary);
    await rename(temporary, path);
    await syncFolder(dirname(path));
    return result;
  } catch (error) {
    await rm(temporary, { recursive: true, force: true });
    const code = (error as NodeJS.ErrnoException).code;
    // rename(2) says so of a folder that is not empty, or of a file.
    if (code === 'ENOTEMPTY' || code === 'EEXIST' || code === 'ENOTDIR')
      throw new LcowError('ALREADY_EXISTS', `The folder ${path} exists already.`, { cause: error });
    throw asIoError(error, `The folder ${path} cannot be made`);
  }
}

/** Makes a rename in the folder durable. */
export async function syncFolder(folder: string): Promise<void> {
  const handle = await open(folder, 'r');
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}

/** Deletes partial files whose writer is dead. Returns their paths. */
export async function sweepTemporary(folder: string): Promise<string[]> {
  const swept: string[] = [];
  for (const name of await readdir(folder)) {
    const match = TEMPORARY.exec(name);
    if (!match) continue;
    const writer: ProcessIdentity = { pid: Number(match[1]), startTime: Number(match[2]) };
    if (isAlive(writer)) continue;
    const path = join(folder, name);
    await rm(path, { force: true, recursive: true });
    swept.push(path);
  }
  return swept;
}

/** Turns an errno error into IO_FAILED or DISK_FULL with a sentence; other errors pass unchanged. */
export function asIoError(error: unknown, what: string): unknown {
  const code = (error as NodeJS.ErrnoException | null)?.code;
  if (error instanceof LcowError || typeof code !== 'string' || !/^E[A-Z0-9]+$/.test(code)) return error;
  if (code === 'ENOSPC' || code === 'EDQUOT')
    return new LcowError('DISK_FULL', `${what}: no space is left on the device.`, { cause: error });
  return new LcowError('IO_FAILED', `${what}: ${(error as Error).message}.`, { cause: error });
}
