import { open, type FileHandle } from 'node:fs/promises';
import { LcowError } from '../../errors/index.js';
import { asIoError } from '../../state/index.js';

/** Opens a file. @throws LcowError NOT_FOUND, IO_FAILED. */
export async function openFile(path: string, flags: 'r' | 'r+'): Promise<FileHandle> {
  try {
    return await open(path, flags);
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === 'ENOENT')
      throw new LcowError('NOT_FOUND', `The disk ${path} does not exist.`, { cause });
    throw asIoError(cause, `The disk ${path} cannot be opened`);
  }
}

/** Writes all of some bytes at an offset of the file. */
export async function writeFully(file: FileHandle, data: Uint8Array, position: number): Promise<void> {
  for (let done = 0; done < data.length;)
    done += (await file.write(data, done, data.length - done, position + done)).bytesWritten;
}

const ZEROS = Buffer.alloc(2 ** 20);

/** Overwrites a stretch of the file with zeros. */
export async function writeZeros(file: FileHandle, start: number, end: number): Promise<void> {
  for (let at = start; at < end; at += ZEROS.length)
    await writeFully(file, ZEROS.subarray(0, Math.min(ZEROS.length, end - at)), at);
}
