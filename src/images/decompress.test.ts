import { execFileSync } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { gzipSync } from 'node:zlib';
import { describe, expect, test } from 'vitest';
import { isLcowError } from '../errors/index.js';
import { decompress, detectCompression } from './decompress.js';

async function* chunks(bytes: Buffer, size: number): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < bytes.length; at += size) yield bytes.subarray(at, at + size);
}

async function unpack(bytes: Buffer, size = 65536): Promise<{ digest: string; length: number; largest: number }> {
  const hash = createHash('sha256');
  let [length, largest] = [0, 0];
  for await (const chunk of decompress(chunks(bytes, size), 'The layer')) {
    hash.update(chunk);
    length += chunk.byteLength;
    largest = Math.max(largest, chunk.byteLength);
  }
  return { digest: hash.digest('hex'), length, largest };
}

const zstd = (bytes: Buffer, ...options: string[]): Buffer =>
  execFileSync('zstd', ['-q', '-c', ...options], { input: bytes, maxBuffer: 1 << 28 });
const digestOf = (bytes: Buffer): string => createHash('sha256').update(bytes).digest('hex');

const mixed = Buffer.concat([Buffer.alloc(700_000, 'lcow '), randomBytes(300_000), Buffer.alloc(500_000)]);

describe('what was packed comes out again', () => {
  test.each<[string, () => Buffer]>([
    ['not at all', () => mixed],
    ['by gzip', () => gzipSync(mixed)],
    [
      'by gzip in several members',
      () => Buffer.concat([gzipSync(mixed.subarray(0, 100_000)), gzipSync(mixed.subarray(100_000))]),
    ],
    ['by zstd', () => zstd(mixed)],
    ['by zstd at level 19', () => zstd(mixed, '-19')],
    ['by zstd in several frames', () => Buffer.concat([zstd(mixed.subarray(0, 1000)), zstd(mixed.subarray(1000))])],
    ['by zstd without checksum', () => zstd(mixed, '--no-check')],
    [
      'by zstd after a skippable frame',
      () => Buffer.concat([Buffer.from([0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3]), zstd(mixed)]),
    ],
  ])('%s', async (_, pack) => {
    const bytes = pack();
    for (const size of [37, 65536, 1 << 24]) expect((await unpack(bytes, size)).digest).toBe(digestOf(mixed));
  });

  test('in chunks of at most 1 MiB however well it was packed', async () => {
    const zeros = Buffer.alloc(64 << 20);
    for (const bytes of [gzipSync(zeros), zstd(zeros)]) {
      const { length, largest } = await unpack(bytes, 1 << 20);
      expect(length).toBe(zeros.length);
      expect(largest).toBeLessThanOrEqual(1 << 20);
    }
  });
});

describe('damaged data is an error, not an end', () => {
  const refused = async (bytes: Buffer): Promise<void> => {
    const error: unknown = await unpack(bytes).catch((reason: unknown) => reason);
    expect(isLcowError(error, 'BAD_TAR')).toBe(true);
    expect((error as Error).message).toMatch(/The layer is damaged or cut off/);
  };

  test.each<[string, () => Buffer]>([
    ['gzip', () => gzipSync(mixed)],
    ['zstd', () => zstd(mixed)],
  ])('%s that is cut off anywhere', async (_, pack) => {
    const bytes = pack();
    for (const end of [20, 1000, bytes.length >> 1, bytes.length - 300, bytes.length - 1])
      await refused(bytes.subarray(0, end));
  });

  test.each<[string, () => Buffer]>([
    ['gzip', () => gzipSync(mixed)],
    ['zstd', () => zstd(mixed, '--no-check')],
  ])('%s with noise in it', async (_, pack) => {
    const bytes = Buffer.from(pack());
    bytes.fill(0xff, 40, 300);
    await refused(bytes);
  });
});

describe('a zstd frame that wants gigabytes of memory is refused before it gets them', () => {
  // Frame headers: window descriptor 0xa8 is 2^31 bytes; one segment of 2^32 - 1 bytes.
  const wide = Buffer.concat([Buffer.from([0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xa8]), Buffer.alloc(100)]);
  const long = Buffer.concat([Buffer.from([0x28, 0xb5, 0x2f, 0xfd, 0xa0, 0xff, 0xff, 0xff, 0xff]), Buffer.alloc(100)]);

  test.each([
    ['by its window', () => wide],
    ['by its content size', () => long],
    ['after a good frame', () => Buffer.concat([zstd(mixed), wide])],
    ['after a skippable frame', () => Buffer.concat([Buffer.from([0x5f, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, 9]), long])],
  ])('%s', async (_, frame) => {
    const bytes = frame();
    for (const size of [1, 65536]) {
      const error: unknown = await unpack(bytes, size).catch((reason: unknown) => reason);
      expect(isLcowError(error, 'NOT_SUPPORTED')).toBe(true);
      expect((error as Error).message).toMatch(/needs a zstd window of/);
    }
  });
});

test('a zstd stream of a frame for every file, as for lazy pulling, comes out whole', async () => {
  const frame = zstd(randomBytes(700));
  const skippable = Buffer.from([0x50, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 7, 7]);
  const frames = Array.from({ length: 3000 }, () => Buffer.concat([frame, skippable]));
  expect((await unpack(Buffer.concat(frames))).length).toBe(3000 * 700);
});

test('a source that fails fails the reader with its own error', async () => {
  const failure = new Error('the disk broke');
  async function* broken(): AsyncGenerator<Uint8Array> {
    yield gzipSync(mixed).subarray(0, 500);
    throw failure;
  }
  const read = async (): Promise<void> => {
    for await (const chunk of decompress(broken(), 'x')) expect(chunk.byteLength).toBeGreaterThan(0);
  };
  await expect(read()).rejects.toBe(failure);
});

test('a reader that stops early lets go of the source', async () => {
  let released = false;
  async function* endless(): AsyncGenerator<Uint8Array> {
    try {
      for (;;) yield gzipSync(mixed);
    } finally {
      released = true;
    }
  }
  for await (const chunk of decompress(endless(), 'x')) if (chunk.byteLength > 0) break;
  await new Promise((resolve) => setImmediate(resolve));
  expect(released).toBe(true);
});

test('compressions that images do not use are named in the refusal', () => {
  const refuse = (bytes: number[]) => () => detectCompression(Uint8Array.from(bytes), 'The layer');
  expect(refuse([0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00])).toThrow(/xz/);
  expect(refuse([0x42, 0x5a, 0x68, 0x39, 0x31, 0x41])).toThrow(/bzip2/);
  expect(refuse([0x04, 0x22, 0x4d, 0x18])).toThrow(/lz4/);
  expect(detectCompression(new Uint8Array(), 'x')).toBe('none');
});
