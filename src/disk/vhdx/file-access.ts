import type { FileHandle } from 'node:fs/promises';

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
