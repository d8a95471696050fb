import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import type { Socket } from 'node:net';
import { create, toBinary } from '@bufbuild/protobuf';
import { BytesValueSchema, Int32ValueSchema, StringValueSchema } from '@bufbuild/protobuf/wkt';
import fc from 'fast-check';
import { afterEach, describe, expect, test } from 'vitest';
import { Echo } from '../../test/go-ttrpc/echo_pb.js';
import { socketPair, until } from '../../test/support/socket-pair.js';
import { LcowError } from '../errors/index.js';
import { serviceClient, TtrpcClient } from './client.js';
import { encodeFrame, FrameReader, FrameType, MAX_PAYLOAD_BYTES, type Frame } from './frame.js';
import { Multiplexer } from './multiplexer.js';
import { TtrpcServer } from './server.js';
import type { CallContext, ServiceImplementation } from './service-types.js';
import { errorDetail, packDetail, StatusCode, TtrpcError } from './status.js';
import { TransportError } from './transport-error.js';
import { RequestSchema, ResponseSchema } from './ttrpc_pb.js';

const sockets: Socket[] = [];
afterEach(() => {
  for (const socket of sockets.splice(0)) socket.destroy();
});

const echo: ServiceImplementation<typeof Echo> = {
  say: ({ value }) => ({ value }),
  fail: ({ value }) => {
    throw new TtrpcError(value, 'as asked', [packDetail(StringValueSchema, { value: 'the detail' })]);
  },
  hang: (_, { signal }) =>
    new Promise((_resolve, reject) => signal.addEventListener('abort', () => reject(signal.reason as Error))),
  metadata: ({ value }, { metadata }) => ({ value: metadata.get(value)?.[0] ?? '' }),
  zeros: ({ value }) => ({ value: new Uint8Array(value) }),
};

async function pair(): Promise<[Socket, Socket]> {
  const made = await socketPair();
  sockets.push(...made);
  return made;
}

async function served(implementation = echo, maxConcurrent?: number) {
  const [near, far] = await pair();
  const server = new TtrpcServer(maxConcurrent ? { maxConcurrent } : {}).addService(Echo, implementation);
  const done = server.serve(far);
  const client = new TtrpcClient(near);
  return { client, echo: serviceClient(Echo, client), done, near, far };
}

/** A client whose server is the test. */
async function withRawServer() {
  const [near, far] = await pair();
  const client = new TtrpcClient(near);
  const reader = new FrameReader();
  const frames: Frame[] = [];
  far.on('error', () => {});
  far.on('data', (chunk) => {
    reader.push(chunk);
    for (let frame = reader.next(); frame; frame = reader.next()) frames.push(frame);
  });
  const respond = (streamId: number, value: string): void => {
    const payload = toBinary(StringValueSchema, create(StringValueSchema, { value }));
    far.write(encodeFrame(streamId, FrameType.response, toBinary(ResponseSchema, create(ResponseSchema, { payload }))));
  };
  return { client, echo: serviceClient(Echo, client), far, frames, respond };
}

test('frames are the same however their bytes arrive', () => {
  fc.assert(
    fc.property(
      fc.array(fc.tuple(fc.integer({ min: 0, max: 0xffff_ffff }), fc.nat(255), fc.uint8Array({ maxLength: 200 }))),
      fc.array(fc.integer({ min: 1, max: 60 }), { minLength: 1 }),
      (frames, portions) => {
        const bytes = Buffer.concat(frames.map(([id, type, payload]) => encodeFrame(id, type, payload)));
        const reader = new FrameReader();
        const seen: Frame[] = [];
        for (let at = 0, turn = 0; at < bytes.length; turn++) {
          const length = portions[turn % portions.length]!;
          reader.push(bytes.subarray(at, at + length));
          at += length;
          for (let frame = reader.next(); frame; frame = reader.next()) seen.push(frame);
        }
        expect(reader.midFrame).toBe(false);
        expect(seen.map(({ streamId, type, payload }) => [streamId, type, new Uint8Array(payload)])).toEqual(frames);
      },
    ),
    { seed: 13 },
  );
});

describe('a call', () => {
  test('carries messages up to 4 MiB both ways', async () => {
    const { echo } = await served();
    for (const size of [0, 1, 100_000, MAX_PAYLOAD_BYTES - 100]) {
      const value = randomBytes(size);
      expect(Buffer.from((await echo.say({ value })).value).equals(value)).toBe(true);
    }
  });

  test('above 4 MiB is refused on its side, and the connection goes on', async () => {
    const { echo } = await served();
    const refused = { name: 'TtrpcError', code: StatusCode.RESOURCE_EXHAUSTED };
    await expect(echo.say({ value: new Uint8Array(MAX_PAYLOAD_BYTES) })).rejects.toMatchObject(refused);
    await expect(echo.zeros({ value: MAX_PAYLOAD_BYTES + 1 })).rejects.toMatchObject(refused);
    expect((await echo.zeros({ value: 3 })).value.length).toBe(3);
  });

  test('is one of a thousand at once, answered in any order', async () => {
    const held: (() => void)[] = [];
    const { echo } = await served(
      { say: ({ value }) => new Promise((resolve) => held.push(() => resolve({ value }))) },
      1000,
    );
    const calls = Array.from({ length: 1000 }, (_, i) => echo.say({ value: Buffer.from(String(i)) }));
    await until(() => held.length === 1000);
    for (const release of held.reverse()) release();
    const answers = await Promise.all(calls);
    expect(answers.every(({ value }, i) => Buffer.from(value).toString() === String(i))).toBe(true);
  });

  test('fails with the code, message and details the handler threw', async () => {
    const { echo } = await served();
    const error = (await echo.fail({ value: StatusCode.FAILED_PRECONDITION }).catch((e: unknown) => e)) as TtrpcError;
    expect(error).toMatchObject({ name: 'TtrpcError', code: StatusCode.FAILED_PRECONDITION, message: 'as asked' });
    expect(errorDetail(error, StringValueSchema)?.value).toBe('the detail');
    expect(errorDetail(error, Int32ValueSchema)).toBeUndefined();
  });

  test('never looks like success when its handler failed', async () => {
    const { echo } = await served();
    await expect(echo.fail({ value: StatusCode.OK })).rejects.toMatchObject({ code: StatusCode.UNKNOWN });
  });

  test('of a method or service that is not there is unimplemented, in the words of the Go server', async () => {
    const { client, echo } = await served({});
    const unimplemented = { code: StatusCode.UNIMPLEMENTED, message: 'method Say' };
    await expect(echo.say({})).rejects.toMatchObject(unimplemented);
    const other = client.call('no.Service', 'Say', StringValueSchema, StringValueSchema, {});
    await expect(other).rejects.toMatchObject({ code: StatusCode.UNIMPLEMENTED, message: 'service no.Service' });
  });

  test('tells its time-out to the handler and gives up by itself', async () => {
    let seen: CallContext | undefined;
    const { echo } = await served({
      hang: (_, context) => {
        seen = context;
        return new Promise(() => {});
      },
    });
    const started = performance.now();
    const call = echo.hang({}, { timeoutMs: 60 });
    await expect(call).rejects.toMatchObject({ code: StatusCode.DEADLINE_EXCEEDED });
    expect(performance.now() - started).toBeGreaterThan(50);
    await until(() => seen!.signal.aborted);
  });

  test('carries metadata', async () => {
    const { echo } = await served();
    expect((await echo.metadata({ value: 'key' }, { metadata: { key: ['value', 'other'], x: 'y' } })).value).toBe(
      'value',
    );
  });

  test('given up rejects at once; its late response is dropped and others are not disturbed', async () => {
    const { client, echo, frames, respond } = await withRawServer();
    const abort = new AbortController();
    const given = echo.metadata({ value: '1' }, { signal: abort.signal });
    const kept = echo.metadata({ value: '2' });
    await until(() => frames.length === 2);
    abort.abort();
    await expect(given).rejects.toMatchObject({ code: 'CANCELLED' });
    respond(1, 'late');
    respond(3, 'in time');
    expect((await kept).value).toBe('in time');
    await expect(echo.say({}, { signal: abort.signal })).rejects.toBeInstanceOf(LcowError);
    expect(frames.length).toBe(2);
    client.close();
  });

  test('given up before the connection takes bytes is never sent', async () => {
    const { client, echo, far, frames } = await withRawServer();
    far.pause();
    const big = Array.from({ length: 3 }, () => echo.say({ value: new Uint8Array(1 << 20) }));
    const failures = Promise.allSettled(big);
    const abort = new AbortController();
    const given = echo.say({ value: Buffer.from('never') }, { signal: abort.signal });
    abort.abort();
    await expect(given).rejects.toMatchObject({ code: 'CANCELLED' });
    far.resume();
    await until(() => frames.length === 3);
    expect(frames.map((frame) => frame.streamId)).toEqual([1, 3, 5]);
    client.close();
    for (const result of await failures) expect(result).toMatchObject({ reason: { kind: 'closed' } });
  });
});

describe('a client', () => {
  const answers: [string, (streamId: number) => Buffer][] = [
    ['answers a stream on which no call waits', () => encodeFrame(99, FrameType.response, new Uint8Array())],
    [
      'answers twice',
      (id) => Buffer.concat([1, 2].map(() => encodeFrame(id + 2, FrameType.response, new Uint8Array()))),
    ],
    ['sends data on a unary call', (id) => encodeFrame(id, FrameType.data, new Uint8Array())],
    ['sends a request', () => encodeFrame(2, FrameType.request, new Uint8Array())],
    ['sends no Response', (id) => encodeFrame(id, FrameType.response, Buffer.from([0x0a, 0xff]))],
    ['announces more than 4 MiB', (id) => Buffer.from(encodeFrame(id, 2, new Uint8Array(1))).fill(0xff, 0, 4)],
  ];
  test.each(answers)('whose server %s fails every call with one error', async (_, bytes) => {
    const { client, echo, far, frames } = await withRawServer();
    const calls = [echo.say({}), echo.say({}), echo.say({})];
    await until(() => frames.length === 3);
    const failures = Promise.all(
      calls.map((call) =>
        call.then(
          () => undefined,
          (error: unknown) => error,
        ),
      ),
    );
    far.write(bytes(1));
    const failure = await client.closed;
    expect(failure).toMatchObject({ name: 'TransportError', kind: 'protocol' });
    for (const error of await failures) expect([failure, undefined]).toContain(error);
    await expect(echo.say({})).rejects.toBe(failure);
  });

  test('whose connection ends in the middle of a frame says so', async () => {
    const { client, echo, far, frames } = await withRawServer();
    const call = echo.say({});
    await until(() => frames.length === 1);
    far.end(encodeFrame(1, FrameType.response, new Uint8Array(100)).subarray(0, 50));
    await expect(call).rejects.toMatchObject({
      kind: 'closed',
      message: expect.stringContaining('middle of a frame') as string,
    });
    expect(await client.closed).toMatchObject({ kind: 'closed' });
  });

  test('closed by its owner rejects what waits and tells no failure', async () => {
    const { client, echo, frames } = await withRawServer();
    const call = echo.say({});
    await until(() => frames.length === 1);
    client.close();
    await expect(call).rejects.toMatchObject({ kind: 'closed' });
    expect(await client.closed).toBeUndefined();
  });

  test("refuses a payload that is not the method's message", async () => {
    const { echo, far, frames } = await withRawServer();
    const call = echo.zeros({ value: 1 });
    await until(() => frames.length === 1);
    const response = create(ResponseSchema, { payload: Buffer.from([0xff]) });
    far.write(encodeFrame(1, FrameType.response, toBinary(ResponseSchema, response)));
    await expect(call).rejects.toMatchObject({ kind: 'protocol' });
  });
});

describe('a server', () => {
  async function withRawClient(implementation = echo, maxConcurrent?: number) {
    const [near, far] = await pair();
    const server = new TtrpcServer(maxConcurrent ? { maxConcurrent } : {}).addService(Echo, implementation);
    const done = server.serve(far);
    const reader = new FrameReader();
    const frames: Frame[] = [];
    near.on('data', (chunk) => {
      reader.push(chunk);
      for (let frame = reader.next(); frame; frame = reader.next()) frames.push(frame);
    });
    const request = (streamId: number, method = 'Say', payload = new Uint8Array()): Buffer => {
      const message = create(RequestSchema, { service: Echo.typeName, method, payload });
      return encodeFrame(streamId, FrameType.request, toBinary(RequestSchema, message));
    };
    return { near, far, done, frames, request };
  }

  test('fires the signals of running handlers when the connection ends', async () => {
    let running: AbortSignal | undefined;
    const { client, echo, done } = await served({
      hang: (_, { signal }) => {
        running = signal;
        return new Promise(() => {});
      },
    });
    const failed = expect(echo.hang({})).rejects.toBeInstanceOf(TransportError);
    await until(() => running !== undefined);
    client.close();
    await done;
    expect(running!.aborted).toBe(true);
    await failed;
  });

  test('stops when it is told to, after the responses already given', async () => {
    const [near, far] = await pair();
    const stop = new AbortController();
    const done = new TtrpcServer().addService(Echo, echo).serve(far, stop.signal);
    const client = serviceClient(Echo, new TtrpcClient(near));
    expect((await client.zeros({ value: 5 })).value.length).toBe(5);
    stop.abort();
    await done;
    await expect(client.zeros({ value: 5 })).rejects.toBeInstanceOf(TransportError);
  });

  test('refuses even, repeated and decreasing stream ids, data, and what is no Request, and goes on', async () => {
    const { near, frames, request } = await withRawClient();
    near.write(Buffer.concat([request(2), request(5), request(5), request(3)]));
    near.write(encodeFrame(7, FrameType.data, new Uint8Array()));
    near.write(encodeFrame(9, FrameType.request, Buffer.from([0xff])));
    near.write(encodeFrame(10, 77, new Uint8Array()));
    near.write(encodeFrame(11, 77, new Uint8Array()));
    near.write(request(13, 'Say', toBinary(BytesValueSchema, create(BytesValueSchema, { value: Buffer.from('on') }))));
    near.write(request(15, 'Say', Buffer.from([0xff])));
    await until(() => frames.length === 9);
    expect(frames.map((frame) => frame.streamId).sort((a, b) => a - b)).toEqual([2, 3, 5, 5, 7, 9, 10, 13, 15]);
  });

  test('ends the connection at a frame above 4 MiB', async () => {
    const { near, done, request } = await withRawClient();
    near.on('error', () => {});
    near.write(Buffer.from(request(1)).fill(0xff, 0, 4));
    await expect(done).rejects.toMatchObject({ kind: 'protocol' });
  });

  test('runs a bounded number of calls at once', async () => {
    let running = 0;
    const { echo } = await served({ hang: () => new Promise(() => running++) }, 3);
    const calls = Array.from({ length: 3 }, () => echo.hang({}));
    for (const call of calls) call.catch(() => {});
    await until(() => running === 3);
    await expect(echo.hang({})).rejects.toMatchObject({ code: StatusCode.RESOURCE_EXHAUSTED });
  });

  test('does not hear a client that does not take its responses', async () => {
    const [near, far] = await pair();
    let calls = 0;
    void new TtrpcServer()
      .addService(Echo, { zeros: ({ value }) => (calls++, { value: new Uint8Array(value) }) })
      .serve(far);
    const payload = toBinary(Int32ValueSchema, create(Int32ValueSchema, { value: 1 << 20 }));
    const message = toBinary(
      RequestSchema,
      create(RequestSchema, { service: Echo.typeName, method: 'Zeros', payload }),
    );
    near.pause();
    let id = 1;
    // Nobody reads at the other end in the long run, so that writing stalls.
    while (near.writableLength < 1_000_000 && id < 200_000) {
      near.write(encodeFrame(id, FrameType.request, message));
      id += 2;
      if (id % 2000 === 1) await new Promise((resolve) => setImmediate(resolve));
    }
    expect(calls).toBeLessThan(5000);
    expect(far.isPaused()).toBe(true);
    near.destroy();
    await until(() => far.destroyed);
  });

  test('has a service only once', () => {
    const server = new TtrpcServer().addService(Echo, echo);
    expect(() => server.addService(Echo, echo)).toThrow('already registered');
  });

  test('survives any bytes', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(
          fc.oneof(
            fc.uint8Array({ maxLength: 60 }),
            fc
              .tuple(fc.nat(9), fc.integer({ min: 0, max: 4 }), fc.uint8Array({ maxLength: 30 }))
              .map(([id, type, payload]) => new Uint8Array(encodeFrame(id, type, payload))),
          ),
          { maxLength: 12 },
        ),
        async (pieces) => {
          const { near, done } = await withRawClient();
          near.on('error', () => {});
          for (const piece of pieces) near.write(piece);
          near.end();
          await done.catch((error: unknown) => expect(error).toMatchObject({ kind: 'protocol' }));
        },
      ),
      { seed: 5, numRuns: 60 },
    );
  });
});

test('calls over stream 1 of a multiplexer go beside other streams of it', async () => {
  const [near, far] = await pair();
  const host = new Multiplexer(near, { side: 'host' });
  const guest = new Multiplexer(far, { side: 'guest' });
  const done = new TtrpcServer()
    .addService(Echo, {
      // As a supervisor does: the call names another stream of the same session.
      say: ({ value }) => {
        const stream = guest.claim(Number(Buffer.from(value).toString()));
        stream.end('from the server');
        return { value };
      },
    })
    .serve(guest.claim(1));
  const client = new TtrpcClient(host.open());
  const stream = host.open();
  await serviceClient(Echo, client).say({ value: Buffer.from(String(stream.id)) });
  expect(String((await once(stream, 'data'))[0])).toBe('from the server');
  client.close();
  await done;
  host.close();
  expect(await guest.closed).toMatchObject({ kind: 'closed' });
});

test('10,000 calls one after another and 100 at a time stay quick', async () => {
  const { echo } = await served();
  const started = performance.now();
  for (let i = 0; i < 2000; i++) await echo.metadata({ value: 'x' });
  const one = (performance.now() - started) / 2000;
  const again = performance.now();
  for (let i = 0; i < 80; i++) await Promise.all(Array.from({ length: 100 }, () => echo.metadata({ value: 'x' })));
  const many = (performance.now() - again) / 8000;
  console.log(`ttrpc call: ${(one * 1000).toFixed(0)} us alone, ${(many * 1000).toFixed(0)} us among 100`);
  expect(one).toBeLessThan(20);
});
