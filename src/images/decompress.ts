import { Readable } from 'node:stream';
import zlib from 'node:zlib';
import { Decompress } from 'fzstd';
import { LcowError, errorMessage, isLcowError } from '../errors/index.js';

/** How a layer or an archive is packed, told by its first bytes and not by what it is called. */
export type Compression = 'none' | 'gzip' | 'zstd';

/** As many bytes as {@link detectCompression} looks at. */
export const MAGIC_BYTES = 18;
const OUTPUT_CHUNK_BYTES = 1024 * 1024;

// Node has zstd from 22.15 on.
type CreateZstd = (options: { chunkSize: number }) => zlib.Gunzip;
const createZstd = (zlib as { createZstdDecompress?: CreateZstd }).createZstdDecompress;

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
  if (compression === 'none') yield* whole;
  else if (compression === 'zstd' && !createZstd) yield* unzstd(whole, what);
  else yield* throughZlib(whole, compression, what);
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

async function* throughZlib(
  source: AsyncGenerator<Uint8Array>,
  compression: 'gzip' | 'zstd',
  what: string,
): AsyncGenerator<Uint8Array> {
  const options = { chunkSize: OUTPUT_CHUNK_BYTES };
  const engine = compression === 'gzip' ? zlib.createGunzip(options) : createZstd!(options);
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
    throw sourceError ?? damaged(error, what);
  } finally {
    input.destroy();
    engine.destroy();
  }
}

function damaged(cause: unknown, what: string): LcowError {
  if (isLcowError(cause)) return cause;
  return new LcowError('BAD_TAR', `The compressed data of ${what} is damaged or cut off: ${errorMessage(cause)}.`, {
    cause,
  });
}

/** Largest window we give a zstd stream, in bytes: the limit of the zstd tool. */
const MAX_WINDOW_BYTES = 128 * 1024 * 1024;
// A block of four bytes can stand for 128 KiB: small slices keep what one of them becomes in bounds.
const SLICE_BYTES = 2048;

/** zstd where Node has none. */
async function* unzstd(source: AsyncGenerator<Uint8Array>, what: string): AsyncGenerator<Uint8Array> {
  const output: Uint8Array[] = [];
  const decoder = new Decompress((chunk) => {
    // The decoder reuses nothing it hands out except its last chunk's memory, which it copies into its window at once.
    if (chunk.byteLength > 0) output.push(chunk);
  });
  let first = true;
  try {
    for await (const chunk of source) {
      if (first) checkWindow(chunk, what);
      first = false;
      for (let at = 0; at < chunk.byteLength; at += SLICE_BYTES) {
        push(decoder, chunk.subarray(at, at + SLICE_BYTES), false, what);
        yield* output.splice(0);
      }
    }
    push(decoder, new Uint8Array(), true, what);
    yield* output.splice(0);
  } finally {
    await source.return(undefined);
  }
}

function push(decoder: Decompress, slice: Uint8Array, final: boolean, what: string): void {
  try {
    decoder.push(slice, final);
  } catch (error) {
    throw damaged(error, what);
  }
}

/** The window a frame header asks for (RFC 8878, 3.1.1.1); the decoder would allocate whatever it says. */
function checkWindow(head: Uint8Array, what: string): void {
  const descriptor = head[4] ?? 0;
  const singleSegment = (descriptor & 0x20) !== 0;
  let window: number;
  if (singleSegment) {
    const idBytes = [0, 1, 2, 4][descriptor & 3]!;
    const sizeBytes = [1, 2, 4, 8][descriptor >> 6]!;
    window = 0;
    for (let index = sizeBytes - 1; index >= 0; index--) window = window * 256 + (head[5 + idBytes + index] ?? 0);
  } else {
    const byte = head[5] ?? 0;
    const base = 2 ** (10 + (byte >> 3));
    window = base + (base / 8) * (byte & 7);
  }
  if (head[0] === 0x28 && window > MAX_WINDOW_BYTES)
    throw new LcowError(
      'NOT_SUPPORTED',
      `${what} needs a zstd window of ${window} bytes; the limit is ${MAX_WINDOW_BYTES}.`,
    );
}
