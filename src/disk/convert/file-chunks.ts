import { open } from 'node:fs/promises';
import { asIoError } from '../../state/index.js';

const CHUNK_BYTES = 2 * 1024 * 1024;

/**
 * Reads a file ahead of its consumer, through two buffers that take turns: a third cheaper than a read stream, which
 * makes new memory for each chunk. A chunk is only good until the next one is asked for - which suits {@link tarToVhd},
 * but not a consumer that keeps what it gets.
 * @throws LcowError IO_FAILED.
 */
export async function* readFileChunks(path: string): AsyncGenerator<Uint8Array, void, undefined> {
  try {
    const file = await open(path, 'r');
    try {
      const buffers = [Buffer.allocUnsafeSlow(CHUNK_BYTES), Buffer.allocUnsafeSlow(CHUNK_BYTES)] as const;
      let position = 0;
      for (let turn = 0, ahead = file.read(buffers[0], 0, CHUNK_BYTES, 0); ; turn ^= 1) {
        const { bytesRead, buffer } = await ahead;
        if (bytesRead === 0) return;
        position += bytesRead;
        ahead = file.read(buffers[turn ^ 1]!, 0, CHUNK_BYTES, position);
        // Looked at above, or never when the consumer leaves: then its failure is nobody's.
        ahead.catch(() => undefined);
        yield buffer.subarray(0, bytesRead);
      }
    } finally {
      await file.close();
    }
  } catch (error) {
    throw asIoError(error, `${path} cannot be read`);
  }
}
