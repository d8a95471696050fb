import { open, type FileHandle } from 'node:fs/promises';
import { LcowError } from '../../errors/index.js';
import { asIoError } from '../../state/index.js';

/** Opens the file of a disk. @throws LcowError NOT_FOUND, IO_FAILED. */
export async function openDiskFile(path: string, flags: 'r' | 'r+' = 'r'): Promise<FileHandle> {
  try {
    return await open(path, flags);
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === 'ENOENT')
      throw new LcowError('NOT_FOUND', `The disk ${path} does not exist.`, { cause });
    throw asIoError(cause, `The disk ${path} cannot be opened`);
  }
}
