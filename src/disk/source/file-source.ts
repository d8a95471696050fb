import type { FileHandle } from 'node:fs/promises';
import { LcowError } from '../../errors/index.js';
import { asIoError } from '../../state/index.js';
import type { BlockSource } from './block-source.js';

/** A stretch of a file as a disk: a raw image, or a fixed VHD without its footer. Does not close the file. */
export class FileSource implements BlockSource {
  constructor(
    private readonly file: FileHandle,
    readonly name: string,
    readonly sizeBytes: number,
    private readonly start = 0,
  ) {}

  async readInto(target: Uint8Array, offset: number): Promise<void> {
    await readFully(this.file, target, this.start + offset, this.name);
  }
}

/** Fills `target` from a file. @throws LcowError IO_FAILED, also when the file ends before. */
export async function readFully(file: FileHandle, target: Uint8Array, offset: number, name: string): Promise<void> {
  for (let filled = 0; filled < target.length;) {
    let bytesRead: number;
    try {
      ({ bytesRead } = await file.read(target, filled, target.length - filled, offset + filled));
    } catch (error) {
      throw asIoError(error, `${name} cannot be read`);
    }
    if (bytesRead === 0)
      throw new LcowError('IO_FAILED', `${name} ended at byte ${offset + filled} while it was being read.`);
    filled += bytesRead;
  }
}
