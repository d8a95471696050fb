import type { FileHandle } from 'node:fs/promises';

/**
 * Reads up to `length` bytes at an offset; fewer only at the end of the file.
 * The caller bounds `length`: it is what is allocated.
 */
export async function readAt(file: FileHandle, offset: number, length: number): Promise<Buffer> {
  const buffer = Buffer.allocUnsafe(length);
  let filled = 0;
  while (filled < length) {
    const { bytesRead } = await file.read(buffer, filled, length - filled, offset + filled);
    if (bytesRead === 0) break;
    filled += bytesRead;
  }
  return buffer.subarray(0, filled);
}
