import type { FileHandle } from 'node:fs/promises';
import { readAt } from '../structure/index.js';

/** Whether a file looks like a VHDX: the file type identifier is at its start ([MS-VHDX] 2.2.1). */
export async function looksLikeVhdx(file: FileHandle): Promise<boolean> {
  return (await readAt(file, 0, 8)).toString('latin1') === 'vhdxfile';
}
