import { Readable } from 'node:stream';
import { createGunzip } from 'node:zlib';
import { LcowError, errorMessage } from '../errors/index.js';
import { damaged, decompressZstd } from './zstd.js';

/** How a layer or an archive is packed, told by its first bytes and not by what it is called. */
export type Compression = 'none' | 'gzip' | 'zstd';

/** As many bytes as {@link detectCompression} looks at. */
export const MAGIC_BYTES = 18;
const OUTPUT_CHUNK_BYTES = 1024 * 1024;

/** @throws LcowError NOT_SUPPORTED for compressions that images do not use: xz, bzip2, lz4. */
export function detectCompression(head: Uint8Array, what: string): Compression {
  const starts = (...magic: number[]): boolean => magic.every((byte, index) => head[index] === byte);
  if (starts(0x1f, 0x8b)) return 'gzip';
  if (starts(0x28, 0xb5, 0x2f, 0xfd)) return 'zstd';
  // A skippable frame may come first (RFC 8878, 3.1.2).
  if (((head[0] ?? 0) & 0xf0) === 0x50 && head[1] === 0x2a && head[2] === 0x4d && head[3] === 0x18) return 'zstd';
  const other =
    (starts(0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00) && 'xz') ||
    (starts(0x42, 0x5a, 0x68) && head[4] === 0x31 && 'bzip2') ||
    (starts(0x04, 0x22, 0x4d, 0x18) && 'lz4');
  if (other)
    throw new LcowError('NOT_SUPPORTED', `${what} is compressed with ${other}; gzip, zstd and none are supported.`);
  return 'none';
}

/**
 * Decompresses a stream as it is read; no more than the reader takes is held in memory.
 * @throws LcowError BAD_TAR when the compressed data is damaged or cut off; errors of the source pass unchanged.
 */
export async function* decompress(source: AsyncIterable<Uint8Array>, what: string): AsyncGenerator<Uint8Array> {
  const { head, whole } = await peek(source, MAGIC_BYTES);
  const compression = detectCompression(head, what);
  const unpacked = { none: () => whole, gzip: () => gunzip(whole, what), zstd: () => decompressZstd(whole, what) };
  yield* unpacked[compression]();
}

/** Reads the first bytes of a stream without taking them away. */
async function peek(
  source: AsyncIterable<Uint8Array>,
  length: number,
): Promise<{ head: Uint8Array; whole: AsyncGenerator<Uint8Array> }> {
  const iterator = source[Symbol.asyncIterator]();
  const chunks: Uint8Array[] = [];
  let size = 0;
  while (size < length) {
    const next = await iterator.next();
    if (next.done) break;
    chunks.push(next.value);
    size += next.value.byteLength;
  }
  async function* whole(): AsyncGenerator<Uint8Array> {
    try {
      yield* chunks.splice(0);
      for (let next = await iterator.next(); !next.done; next = await iterator.next()) yield next.value;
    } finally {
      await iterator.return?.();
    }
  }
  return { head: Buffer.concat(chunks).subarray(0, length), whole: whole() };
}

async function* gunzip(source: AsyncGenerator<Uint8Array>, what: string): AsyncGenerator<Uint8Array> {
  const engine = createGunzip({ chunkSize: OUTPUT_CHUNK_BYTES });
  const input = Readable.from(source, { objectMode: false, highWaterMark: 0 });
  let sourceError: unknown;
  input.on('error', (error) => {
    sourceError = error;
    engine.destroy(error);
  });
  input.pipe(engine);
  try {
    yield* engine as AsyncIterable<Buffer>;
  } catch (error) {
    throw sourceError ?? damaged(what, errorMessage(error), error);
  } finally {
    input.destroy();
    engine.destroy();
  }
}
