import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import type { Socket } from 'node:net';
import { Duplex, Readable, Writable } from 'node:stream';
import { buffer, text } from 'node:stream/consumers';
import { pipeline } from 'node:stream/promises';
import fc from 'fast-check';
import { afterEach, describe, expect, test } from 'vitest';
import { socketPair, until } from '../../test/support/socket-pair.js';
import { isLcowError } from '../errors/index.js';
import { Multiplexer, MAX_PENDING_STREAMS, MAX_STREAMS } from './multiplexer.js';
import {
  creditFrame,
  INITIAL_CREDIT,
  MAX_DATA_BYTES,
  muxFrame,
  MuxFrameReader,
  MuxType,
  resetFrame,
} from './mux-frame.js';
import { StreamResetError } from './mux-stream.js';
import { TransportError } from './transport-error.js';

const open: Multiplexer[] = [];
afterEach(() => {
  for (const mux of open.splice(0)) mux.close();
});

async function pair(): Promise<[host: Multiplexer, guest: Multiplexer]> {
  const [near, far] = await socketPair();
  const muxes: [Multiplexer, Multiplexer] = [
    new Multiplexer(near, { side: 'host' }),
    new Multiplexer(far, { side: 'guest' }),
  ];
  open.push(...muxes);
  return muxes;
}

/** A multiplexer whose peer is the test, speaking in raw frames. */
async function withRawPeer(): Promise<{
  mux: Multiplexer;
  peer: Socket;
  frames: { id: number; type: number; payload: Buffer }[];
}> {
  const [near, peer] = await socketPair();
  const mux = new Multiplexer(near, { side: 'host' });
  open.push(mux);
  const reader = new MuxFrameReader();
  const frames: { id: number; type: number; payload: Buffer }[] = [];
  peer.on('error', () => {});
  peer.on('data', (chunk) => {
    reader.push(chunk);
    for (let frame = reader.next(); frame; frame = reader.next()) frames.push(frame);
  });
  return { mux, peer, frames };
}

function data(id: number, payload: Buffer): Buffer {
  const frame = muxFrame(id, MuxType.DATA, payload.length);
  payload.copy(frame, 8);
  return frame;
}

/** Reads to the end without destroying the other half, which `for await` would do. */
async function untilEnd(stream: Readable): Promise<string> {
  const chunks: Buffer[] = [];
  stream.on('data', (chunk: Buffer) => chunks.push(chunk));
  await once(stream, 'end');
  return Buffer.concat(chunks).toString();
}

describe('a stream', () => {
  test('carries bytes both ways and ends each way by itself', async () => {
    const [host, guest] = await pair();
    const near = host.open();
    const far = guest.claim(near.id);
    near.end('question');
    expect(await untilEnd(far)).toBe('question');
    expect(near.destroyed).toBe(false);
    far.end('answer');
    expect(await untilEnd(near)).toBe('answer');
    await until(() => host.streamCount === 0 && guest.streamCount === 0);
  });

  test('claimed before its OPEN has arrived comes to life with it', async () => {
    const [host, guest] = await pair();
    const far = guest.claim(1);
    far.write('early');
    const near = host.open();
    near.end('late');
    expect(await untilEnd(far)).toBe('late');
    far.end();
    expect(await untilEnd(near)).toBe('early');
  });

  test('claimed early and given up is reset when its OPEN comes', async () => {
    const [host, guest] = await pair();
    guest.claim(1).destroy();
    const near = host.open();
    const [error] = (await once(near, 'error')) as [Error];
    expect(error).toBeInstanceOf(StreamResetError);
    expect(host.streamCount).toBe(0);
    expect(guest.streamCount).toBe(0);
  });

  test('opened by the guest has an even id', async () => {
    const [host, guest] = await pair();
    const stream = guest.open();
    expect(stream.id).toBe(2);
    stream.end('from below');
    expect(await text(host.claim(2))).toBe('from below');
  });

  test('can be claimed once, and not when it is gone or of the wrong side', async () => {
    const [host, guest] = await pair();
    const near = host.open();
    guest.claim(near.id);
    expect(() => guest.claim(near.id)).toThrow(expect.objectContaining({ code: 'IN_USE' }));
    await until(() => guest.streamCount === 1);
    near.destroy();
    await until(() => guest.streamCount === 0);
    expect(() => guest.claim(near.id)).toThrow(expect.objectContaining({ code: 'NOT_FOUND' }));
    expect(() => guest.claim(2)).toThrow(expect.objectContaining({ code: 'NOT_FOUND' }));
    expect(() => guest.claim(0)).toThrow(expect.objectContaining({ code: 'NOT_FOUND' }));
  });

  test('destroyed with an error resets the peer with code 3 and the words, without one with code 0', async () => {
    const [host, guest] = await pair();
    for (const [error, code] of [
      [new Error('disk on fire'), 3],
      [undefined, 0],
    ] as const) {
      const near = host.open();
      const far = guest.claim(near.id);
      const failed = once(far, 'error') as Promise<[StreamResetError]>;
      near.destroy(error);
      const [reset] = await failed;
      expect(reset.resetCode).toBe(code);
      if (error) expect(reset.message).toContain('disk on fire');
    }
  });

  test('delivers what had arrived before a RESET, then fails', async () => {
    const { mux, peer } = await withRawPeer();
    const stream = mux.open();
    peer.write(Buffer.concat([data(1, Buffer.from('last words')), resetFrame(1, 3, 'gone')]));
    await until(() => mux.streamCount === 0);
    const seen: string[] = [];
    const read = async (): Promise<void> => {
      for await (const chunk of stream) seen.push(String(chunk));
    };
    await expect(read()).rejects.toThrow('gone');
    expect(seen.join('')).toBe('last words');
  });

  test('whose peer ended it before the session broke is still read to its end', async () => {
    const { mux, peer } = await withRawPeer();
    const stream = mux.open();
    peer.end(Buffer.concat([data(1, Buffer.from('all there')), muxFrame(1, MuxType.END, 0)]));
    await mux.closed;
    expect(await text(stream)).toBe('all there');
  });

  test('fails a write that waits for credit when the session breaks', async () => {
    const { mux, peer, frames } = await withRawPeer();
    const stream = mux.open();
    const written = pipeline(Readable.from([Buffer.alloc(INITIAL_CREDIT + 1)]), stream);
    written.catch(() => {});
    await until(() => frames.reduce((sum, frame) => sum + frame.payload.length, 0) === INITIAL_CREDIT);
    peer.destroy();
    await expect(written).rejects.toBeInstanceOf(TransportError);
  });

  test('does not crash the process when it fails and nobody listens', async () => {
    const [host, guest] = await pair();
    host.open();
    guest.close();
    expect(await host.closed).toBeInstanceOf(TransportError);
  });
});

describe('credit', () => {
  test('is given for bytes the reader has taken, not for bytes that arrived', async () => {
    const { mux, peer, frames } = await withRawPeer();
    const stream = mux.open();
    for (let sent = 0; sent < INITIAL_CREDIT; sent += MAX_DATA_BYTES) peer.write(data(1, Buffer.alloc(MAX_DATA_BYTES)));
    await until(() => {
      stream.read(0);
      return stream.readableLength > MAX_DATA_BYTES;
    });
    await new Promise((resolve) => setTimeout(resolve, 20));
    expect(stream.bytesConsumed).toBe(0);
    expect(frames.filter((frame) => frame.type === MuxType.CREDIT)).toEqual([]);
    let taken = 0;
    while (taken < 100_000) taken += (stream.read(1000) as Buffer).length;
    expect(stream.bytesConsumed).toBe(100_000);
    await until(() => frames.some((frame) => frame.type === MuxType.CREDIT));
    const credit = (): number =>
      frames.filter((f) => f.type === MuxType.CREDIT).reduce((sum, f) => sum + f.payload.readUInt32BE(0), 0);
    await until(() => credit() > 100_000 - MAX_DATA_BYTES);
    expect(credit()).toBeLessThanOrEqual(100_000);
  });

  test('for the last bytes is given when the stream ends, so that credit acknowledges everything', async () => {
    const { mux, peer, frames } = await withRawPeer();
    const stream = mux.open();
    peer.write(data(1, Buffer.from('short')));
    stream.resume();
    await until(() => stream.bytesConsumed === 5);
    peer.write(muxFrame(1, MuxType.END, 0));
    await until(() => frames.some((frame) => frame.type === MuxType.CREDIT));
    expect(frames.find((frame) => frame.type === MuxType.CREDIT)?.payload.readUInt32BE(0)).toBe(5);
  });

  test('is counted in bytes even when the reader decodes text', async () => {
    const [host, guest] = await pair();
    const near = host.open();
    const far = guest.claim(near.id);
    far.setEncoding('utf8');
    near.end('é'.repeat(100_000));
    expect(await text(far)).toBe('é'.repeat(100_000));
    expect(far.bytesConsumed).toBe(200_000);
  });

  test('stops a writer whose peer does not read, and only that one', async () => {
    const [host, guest] = await pair();
    const stuck = host.open();
    const stuckFar = guest.claim(stuck.id);
    const chunk = Buffer.alloc(MAX_DATA_BYTES);
    let sent = 0;
    const writing = pipeline(
      Readable.from(
        (function* () {
          for (let i = 0; i < 64; i++) {
            sent += chunk.length;
            yield chunk;
          }
        })(),
      ),
      stuck,
    );
    const lively = host.open();
    const livelyFar = guest.claim(lively.id);
    const content = randomBytes(3_000_000);
    lively.end(content);
    expect((await buffer(livelyFar)).equals(content)).toBe(true);
    expect(sent).toBeLessThan(64 * chunk.length);
    expect((await buffer(stuckFar)).length).toBe(64 * chunk.length);
    await writing;
  });
});

test('busy streams take turns, one frame each', async () => {
  const order: number[] = [];
  const slow = new Duplex({
    read() {},
    writableHighWaterMark: 1,
    write(frame: Buffer, _encoding, callback) {
      if (frame.readUInt8(4) === MuxType.DATA) order.push(frame.readUInt32BE(0));
      setImmediate(callback);
    },
  });
  const mux = new Multiplexer(slow, { side: 'host' });
  open.push(mux);
  const streams = [mux.open(), mux.open(), mux.open()];
  for (const [i, stream] of streams.entries()) stream.write(Buffer.alloc((i + 2) * MAX_DATA_BYTES));
  await until(() => order.length === 9);
  expect(order).toEqual([1, 3, 5, 1, 3, 5, 3, 5, 5]);
});

describe('a session', () => {
  const violations: [string, (stream: number) => Buffer][] = [
    ['an unknown type', () => muxFrame(1, 9, 0)],
    ['stream 0', () => muxFrame(0, MuxType.DATA, 0)],
    ['a payload above 32 KiB', () => muxFrame(1, MuxType.DATA, MAX_DATA_BYTES + 1)],
    ['OPEN with a payload', () => muxFrame(2, MuxType.OPEN, 1)],
    ['OPEN of a number of the other side', () => muxFrame(3, MuxType.OPEN, 0)],
    ['OPEN of a used id', () => Buffer.concat([muxFrame(2, MuxType.OPEN, 0), muxFrame(2, MuxType.OPEN, 0)])],
    [
      'OPEN of an id that was reset',
      () => Buffer.concat([muxFrame(2, MuxType.OPEN, 0), resetFrame(2, 0, ''), muxFrame(2, MuxType.OPEN, 0)]),
    ],
    ['CREDIT of 3 bytes', () => muxFrame(1, MuxType.CREDIT, 3)],
    ['credit for bytes never sent', () => creditFrame(1, 1)],
    ['END with a payload', () => muxFrame(1, MuxType.END, 1)],
    ['END twice', () => Buffer.concat([muxFrame(1, MuxType.END, 0), muxFrame(1, MuxType.END, 0)])],
    ['bytes after END', () => Buffer.concat([muxFrame(1, MuxType.END, 0), data(1, Buffer.from('x'))])],
    ['RESET without a code', () => muxFrame(1, MuxType.RESET, 3)],
    ['DATA for a stream never opened', () => data(5, Buffer.from('x'))],
    ['END for a stream never opened', () => muxFrame(4, MuxType.END, 0)],
    ['CREDIT for a stream never opened', () => creditFrame(5, 1)],
    [
      'more bytes than credit',
      () => Buffer.concat(Array.from({ length: 9 }, () => data(1, Buffer.alloc(MAX_DATA_BYTES)))),
    ],
    ['the word of a guest that it has given up', () => resetFrame(0, 2, 'enough')],
    ['text that is no frame', () => Buffer.from('GET / HTTP/1.1\r\n\r\n')],
  ];
  test.each(violations)('ends with one protocol error for every stream at %s', async (_, bytes) => {
    const { mux, peer } = await withRawPeer();
    mux.open();
    const failed = once(mux.open(), 'error') as Promise<[Error]>;
    peer.write(bytes(1));
    const failure = await mux.closed;
    expect(failure).toMatchObject({ kind: 'protocol' });
    expect((await failed)[0]).toBe(failure);
    expect(() => mux.open()).toThrow(failure!);
  });

  test('drops late frames for a stream that is gone', async () => {
    const { mux, peer, frames } = await withRawPeer();
    mux.open().destroy();
    await until(() => frames.some((frame) => frame.type === MuxType.RESET));
    peer.write(
      Buffer.concat([
        data(1, Buffer.from('late')),
        creditFrame(1, 9),
        muxFrame(1, MuxType.END, 0),
        resetFrame(1, 0, ''),
      ]),
    );
    peer.write(resetFrame(77, 0, 'never opened'));
    peer.write(muxFrame(2, MuxType.OPEN, 0));
    await until(() => mux.streamCount === 1);
  });

  test('resets streams beyond 256 that nobody claims', async () => {
    const { mux, peer, frames } = await withRawPeer();
    for (let i = 0; i < MAX_PENDING_STREAMS + 3; i++) peer.write(muxFrame(2 + 2 * i, MuxType.OPEN, 0));
    await until(() => frames.filter((frame) => frame.type === MuxType.RESET).length === 3);
    expect(mux.streamCount).toBe(MAX_PENDING_STREAMS);
    expect(mux.claim(2 * MAX_PENDING_STREAMS).destroyed).toBe(false);
    expect(() => mux.claim(2 * MAX_PENDING_STREAMS + 2)).toThrow('no stream');
  });

  test('refuses to open more than 1024 streams', async () => {
    const { mux } = await withRawPeer();
    for (let i = 0; i < MAX_STREAMS; i++) mux.open();
    expect(() => mux.open()).toThrow('1024 are open');
  });

  test('stops listening to a peer who provokes answers and does not read them', async () => {
    const [near, peer] = await socketPair();
    const mux = new Multiplexer(near, { side: 'host' });
    open.push(mux);
    peer.pause();
    const flood = Buffer.concat(Array.from({ length: 4096 }, (_, i) => muxFrame(2 + 2 * (i + 300), MuxType.OPEN, 0)));
    for (let i = 0; i < MAX_PENDING_STREAMS; i++) peer.write(muxFrame(2 + 2 * i, MuxType.OPEN, 0));
    await until(() => mux.streamCount === MAX_PENDING_STREAMS);
    // Ids far out of order end the session, so the flood goes on in order.
    let next = 2 + 2 * MAX_PENDING_STREAMS;
    for (let round = 0; round < 40 && peer.writableLength < 1_000_000; round++) {
      const frames = Buffer.from(flood);
      for (let at = 0; at < frames.length; at += 8, next += 2) frames.writeUInt32BE(next, at);
      peer.write(frames);
      await new Promise((resolve) => setImmediate(resolve));
    }
    expect(near.isPaused()).toBe(true);
    expect(near.writableLength).toBeLessThan(1_000_000);
    peer.destroy();
    near.destroy();
  });

  test('closed by this side tells streams the given error and the peer an end', async () => {
    const [host, guest] = await pair();
    const near = host.open();
    const failed = once(near, 'error') as Promise<[Error]>;
    host.close(new Error('the machine is gone'));
    expect((await failed)[0].message).toBe('the machine is gone');
    expect(await host.closed).toBeUndefined();
    expect(await guest.closed).toMatchObject({ kind: 'closed' });
  });

  test('loses nothing of a finished stream when it is closed', async () => {
    const [host, guest] = await pair();
    const near = host.open();
    const far = guest.claim(near.id);
    const content = randomBytes(200_000);
    const received = buffer(far);
    near.end(content);
    await once(near, 'finish');
    host.close();
    expect((await received).equals(content)).toBe(true);
  });

  test('closed while its peer is slow still sends what was written', async () => {
    const [near, far] = await socketPair();
    const host = new Multiplexer(near, { side: 'host' });
    const guest = new Multiplexer(far, { side: 'guest' });
    far.pause();
    const content = randomBytes(250_000);
    const streams = [1, 2, 3, 4].map(() => host.open());
    for (const stream of streams) stream.end(content);
    expect(near.writableNeedDrain).toBe(true);
    host.close();
    const received = streams.map((stream) => buffer(guest.claim(stream.id)));
    far.resume();
    for (const bytes of await Promise.all(received)) expect(bytes.equals(content)).toBe(true);
  });

  test('maps its failures for the users of its streams', async () => {
    const [near, far] = await socketPair();
    const mux = new Multiplexer(near, { side: 'host', mapError: (error) => new Error(`mapped ${error.name}`) });
    const stream = mux.open();
    far.destroy();
    await expect(text(stream)).rejects.toThrow('mapped TransportError');
  });
});

/** A connection of two in-memory halves whose bytes arrive in the given portions. */
function choppedPair(portions: () => number): [Duplex, Duplex] {
  const make = (): Duplex & { peer?: Duplex } =>
    new Duplex({
      read() {},
      write(this: Duplex & { peer?: Duplex }, chunk: Buffer, _encoding, callback) {
        for (let at = 0; at < chunk.length;) {
          const length = Math.max(1, portions());
          this.peer!.push(Buffer.from(chunk.subarray(at, at + length)));
          at += length;
        }
        setImmediate(callback);
      },
      final(this: Duplex & { peer?: Duplex }, callback) {
        this.peer!.push(null);
        callback();
      },
      destroy(this: Duplex & { peer?: Duplex }, error, callback) {
        if (!this.peer!.readableEnded) this.peer!.push(null);
        callback(error);
      },
    });
  const [a, b] = [make(), make()];
  a.peer = b;
  b.peer = a;
  return [a, b];
}

test('random traffic in random portions arrives whole, in order, on the right stream', async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.array(fc.uint8Array({ maxLength: 3000 }), { maxLength: 6 }), { minLength: 1, maxLength: 8 }),
      fc.array(fc.integer({ min: 1, max: 5000 }), { minLength: 1, maxLength: 20 }),
      async (contents, portions) => {
        let turn = 0;
        const [near, far] = choppedPair(() => portions[turn++ % portions.length]!);
        const host = new Multiplexer(near, { side: 'host' });
        const guest = new Multiplexer(far, { side: 'guest' });
        await Promise.all(
          contents.map(async (chunks) => {
            const stream = host.open();
            const echo = guest.claim(stream.id);
            const echoing = pipeline(echo, echo);
            const received = buffer(stream);
            for (const chunk of chunks) if (!stream.write(chunk)) await once(stream, 'drain');
            stream.end();
            expect((await received).equals(Buffer.concat(chunks))).toBe(true);
            await echoing;
          }),
        );
        expect(host.streamCount).toBe(0);
        expect(guest.streamCount).toBe(0);
        host.close();
        guest.close();
      },
    ),
    { numRuns: 40, seed: 7 },
  );
});

test('random bytes and random frames end the session or are taken, and never throw elsewhere', async () => {
  const frame = fc.oneof(
    fc.uint8Array({ maxLength: 40 }).map((bytes) => Buffer.from(bytes)),
    fc
      .tuple(fc.integer({ min: 0, max: 6 }), fc.integer({ min: 0, max: 6 }), fc.uint8Array({ maxLength: 12 }))
      .map(([id, type, payload]) => {
        const bytes = muxFrame(id, type, payload.length);
        bytes.set(payload, 8);
        return bytes;
      }),
    fc.integer({ min: 1, max: 6 }).map((id) => muxFrame(id, MuxType.OPEN, 0)),
    fc.integer({ min: 1, max: 6 }).map((id) => data(id, Buffer.alloc(100))),
    fc.integer({ min: 1, max: 6 }).map((id) => muxFrame(id, MuxType.END, 0)),
  );
  await fc.assert(
    fc.asyncProperty(fc.array(frame, { maxLength: 30 }), fc.integer({ min: 1, max: 30 }), async (frames, portion) => {
      const [near, far] = choppedPair(() => portion);
      const mux = new Multiplexer(near, { side: 'host' });
      const streams = [mux.open(), mux.open()];
      for (const stream of streams) stream.resume();
      far.resume();
      far.on('error', () => {});
      far.end(Buffer.concat(frames));
      const failure = await mux.closed;
      expect(failure).toBeInstanceOf(TransportError);
      expect(mux.streamCount).toBe(0);
      expect(() => mux.open()).toThrow(TransportError);
    }),
    { numRuns: 300, seed: 11 },
  );
});

test('64 MB pass through one stream both ways at once with equal sums and bounded memory', async () => {
  const [host, guest] = await pair();
  const near = host.open();
  const far = guest.claim(near.id);
  const block = randomBytes(1 << 20);
  const total = 64;
  const sums = [createHash('sha256'), createHash('sha256'), createHash('sha256')] as const;
  const source = (sum: ReturnType<typeof createHash>): Readable =>
    Readable.from(
      (function* () {
        for (let i = 0; i < total; i++) {
          block.writeUInt32BE(i);
          const copy = Buffer.from(block);
          sum.update(copy);
          yield copy;
        }
      })(),
    );
  let peak = 0;
  const sink = (sum: ReturnType<typeof createHash>): Writable =>
    new Writable({
      write(chunk: Buffer, _encoding, callback) {
        sum.update(chunk);
        peak = Math.max(peak, process.memoryUsage().arrayBuffers);
        callback();
      },
    });
  const before = process.memoryUsage().arrayBuffers;
  const started = performance.now();
  await Promise.all([pipeline(source(sums[0]), near), pipeline(far, far), pipeline(near, sink(sums[1]))]);
  const seconds = (performance.now() - started) / 1000;
  console.log(`mux echo: ${((2 * total) / seconds).toFixed(0)} MB/s, peak ${((peak - before) / 1e6).toFixed(0)} MB`);
  expect(sums[1].digest('hex')).toBe(sums[0].digest('hex'));
  expect(peak - before).toBeLessThan(100e6);
});

test('a flood of one-byte frames for a slow reader costs bounded memory and linear time', async () => {
  const { mux, peer } = await withRawPeer();
  const stream = mux.open();
  const frames = Buffer.concat(Array.from({ length: 65_536 }, () => data(1, Buffer.from('x'))));
  const before = process.memoryUsage();
  for (let i = 0; i < 4; i++) peer.write(frames);
  peer.write(muxFrame(1, MuxType.END, 0));
  await until(() => peer.writableLength === 0);
  stream.read(0);
  const after = process.memoryUsage();
  expect(after.arrayBuffers + after.heapUsed - before.arrayBuffers - before.heapUsed).toBeLessThan(64e6);
  expect((await buffer(stream)).length).toBe(INITIAL_CREDIT);
});

test('errors of claim carry codes', async () => {
  const [, guest] = await pair();
  try {
    guest.claim(3.5);
    expect.unreachable();
  } catch (error) {
    expect(isLcowError(error, 'NOT_FOUND')).toBe(true);
  }
});
