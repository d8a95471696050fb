import type { FileHandle } from 'node:fs/promises';
import { readAt } from './read-at.js';

/** A file as its readers see it: as it is, or with changes laid over it that are not in it yet. */
export interface FileView {
  readonly sizeBytes: number;
  /** Up to `length` bytes at an offset; fewer only at the end. The caller bounds `length`: it is what is allocated. */
  read(offset: number, length: number): Promise<Buffer>;
}

/** The view of a file as it is. */
export async function viewFile(file: FileHandle): Promise<FileView> {
  const { size } = await file.stat();
  return { sizeBytes: size, read: (offset, length) => readAt(file, offset, length) };
}
