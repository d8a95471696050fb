import { constants, type Stats } from 'node:fs';
import { copyFile, lstat, type FileHandle } from 'node:fs/promises';
import { LcowError } from '../../errors/index.js';
import { throwIfAborted } from '../../lifetime/index.js';
import { asIoError, createAtomic } from '../../state/index.js';
import { openDiskFile } from '../structure/index.js';
import { nonZeroRuns } from './zeros.js';

/** How {@link copySparse} did it. */
export interface SparseCopyResult {
  /** Blocks are shared with the source (FICLONE), which costs neither time nor space. */
  readonly cloned: boolean;
  /** Bytes that were written; 0 for a clone. */
  readonly writtenBytes: number;
}

/** What is read at a time. */
const CHUNK_BYTES = 2 ** 20;
/** The block of nearly all file systems: a smaller hole is none. */
const GRAIN_BYTES = 4096;

/** What a file system or kernel that cannot clone, or not between these two files, answers. */
const CANNOT_CLONE: ReadonlySet<string | undefined> = new Set([
  'ENOTSUP',
  'EOPNOTSUPP',
  'EXDEV',
  'EINVAL',
  'ENOSYS',
  'ENOTTY',
  'EPERM',
  'ETXTBSY',
]);

/**
 * Copies a disk file whole or not at all, as a clone where the file system can (Btrfs, XFS, bcachefs), else with holes
 * where the source has 4 KiB of zeros: Node's own copyFile would fill them. The source must not change meanwhile.
 *
 * The destination must not exist. Two copies to one name at the same moment may both succeed, the later one standing:
 * callers that can meet hold a lock on the name.
 * @param options.mode permissions of the copy, 0600 unless given.
 * @throws LcowError NOT_FOUND, ALREADY_EXISTS, DISK_FULL, IO_FAILED, CANCELLED
 */
export async function copySparse(
  source: string,
  destination: string,
  options: { signal?: AbortSignal | undefined; mode?: number } = {},
): Promise<SparseCopyResult> {
  const { signal, mode = 0o600 } = options;
  throwIfAborted(signal);
  const from = await openDiskFile(source);
  try {
    await refuseExisting(destination);
    if (await clone(source, destination, mode)) return { cloned: true, writtenBytes: 0 };
    return await createAtomic(
      destination,
      async (to) => {
        const writtenBytes = await copyData(from, to, signal);
        await refuseExisting(destination);
        return { cloned: false, writtenBytes };
      },
      mode,
    );
  } finally {
    await from.close();
  }
}

/** @throws LcowError ALREADY_EXISTS when anything, be it a dangling link, has this name. */
export async function refuseExisting(path: string): Promise<void> {
  let found: Stats;
  try {
    found = await lstat(path);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return;
    throw asIoError(error, `${path} cannot be made`);
  }
  throw new LcowError('ALREADY_EXISTS', `${path} cannot be made: ${describeKind(found)} of that name exists.`);
}

function describeKind(found: Stats): string {
  return found.isDirectory() ? 'a folder' : 'a file';
}

/** Whether the file system could clone. libuv deletes the target when it could not, so a copy needs a new one. */
async function clone(source: string, destination: string, mode: number): Promise<boolean> {
  try {
    await createAtomic(
      destination,
      async (to, temporaryPath) => {
        await copyFile(source, temporaryPath, constants.COPYFILE_FICLONE_FORCE).catch((cause: unknown) => {
          throw CANNOT_CLONE.has((cause as NodeJS.ErrnoException).code) ? new CannotClone() : cause;
        });
        await to.chmod(mode); // it came with the permissions of its source
        await refuseExisting(destination);
      },
      mode,
    );
    return true;
  } catch (error) {
    if (error instanceof CannotClone) return false;
    throw error;
  }
}

class CannotClone extends Error {}

async function copyData(from: FileHandle, to: FileHandle, signal: AbortSignal | undefined): Promise<number> {
  const chunk = Buffer.allocUnsafe(CHUNK_BYTES);
  let position = 0;
  let writtenBytes = 0;
  for (;;) {
    throwIfAborted(signal);
    const { bytesRead } = await from.read(chunk, 0, CHUNK_BYTES, position);
    if (bytesRead === 0) break;
    for (const [start, end] of nonZeroRuns(chunk.subarray(0, bytesRead), GRAIN_BYTES)) {
      await writeFully(to, chunk.subarray(start, end), position + start);
      writtenBytes += end - start;
    }
    position += bytesRead;
  }
  await to.truncate(position);
  return writtenBytes;
}

async function writeFully(file: FileHandle, data: Uint8Array, position: number): Promise<void> {
  for (let done = 0; done < data.length;)
    done += (await file.write(data, done, data.length - done, position + done)).bytesWritten;
}
