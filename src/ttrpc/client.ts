import {
  create,
  fromBinary,
  toBinary,
  type DescMessage,
  type DescMethod,
  type DescService,
  type MessageInitShape,
  type MessageShape,
} from '@bufbuild/protobuf';
import type { Duplex } from 'node:stream';
import { LcowError } from '../errors/index.js';
import { abortable, throwIfAborted } from '../lifetime/index.js';
import { MAX_TIMER_MS } from '../lifetime/index.js';
import { encodeFrame, FrameReader, FrameType, MAX_PAYLOAD_BYTES, type Frame } from './frame.js';
import { follow } from './follow.js';
import type { CallOptions, ServiceClient } from './service-types.js';
import { StatusCode, TtrpcError } from './status.js';
import { TransportError } from './transport-error.js';
import { RequestSchema, ResponseSchema, type Response } from './ttrpc_pb.js';

/** The last odd id of 32 bits; a connection that used it up takes no more calls. */
const LAST_STREAM_ID = 0xffff_ffff;
/** Given-up calls whose responses are still owed. A server that owes more is not answering at all. */
const MAX_ABANDONED = 16_384;

interface Waiter {
  readonly what: string;
  readonly payload: Uint8Array;
  /** 0 until the request has been sent. */
  streamId: number;
  resolve(response: Response): void;
  reject(error: Error): void;
}

/**
 * The client side of one ttrpc connection: concurrent unary calls over any duplex stream, wire-compatible with
 * containerd's ttrpc 1.x (PROTOCOL.md there). A frame that is malformed, too long or answers no call fails the
 * connection, and every waiter gets the same {@link TransportError}.
 */
export class TtrpcClient {
  /** Resolves when the connection is over: with the failure, or undefined after {@link TtrpcClient.close}. Never rejects. */
  readonly closed: Promise<TransportError | undefined>;
  readonly #duplex: Duplex;
  readonly #reader = new FrameReader();
  readonly #waiters = new Map<number, Waiter>();
  readonly #abandoned = new Set<number>();
  readonly #unsent = new Set<Waiter>();
  #nextId = 1;
  #failure: TransportError | undefined;
  #resolveClosed!: (error: TransportError | undefined) => void;

  /** Takes the connection over, and destroys it at the end. */
  constructor(duplex: Duplex) {
    this.#duplex = duplex;
    this.closed = new Promise((resolve) => (this.#resolveClosed = resolve));
    duplex.on('drain', () => this.#flush());
    follow(duplex, {
      chunk: (bytes) => this.#receive(bytes),
      over: (error) => {
        const cut = this.#reader.midFrame ? ' in the middle of a frame' : '';
        const message = `The ttrpc connection ended${cut}${error ? `: ${error.message}` : ''}.`;
        this.#fail(new TransportError('closed', message, error));
      },
    });
  }

  /**
   * One unary call.
   * @throws TtrpcError when the server says so, or DEADLINE_EXCEEDED after `timeoutMs`; RESOURCE_EXHAUSTED for a request
   *   above 4 MiB, which is not sent. TransportError when the connection is or goes over. LcowError CANCELLED.
   */
  async call<I extends DescMessage, O extends DescMessage>(
    service: string,
    method: string,
    input: I,
    output: O,
    request: MessageInitShape<I>,
    options: CallOptions = {},
  ): Promise<MessageShape<O>> {
    const what = `${service}/${method}`;
    throwIfAborted(options.signal);
    const payload = encodeRequest(service, method, toBinary(input, create(input, request)), options);
    const response = await this.#exchange(what, payload, options);
    const { status } = response;
    if (status && status.code !== StatusCode.OK) throw new TtrpcError(status.code, status.message, status.details);
    try {
      return fromBinary(output, response.payload);
    } catch (cause) {
      throw new TransportError('protocol', `The response to ${what} is no well-formed ${output.typeName}.`, cause);
    }
  }

  /** Ends the connection. Waiting calls reject. Idempotent. */
  close(): void {
    this.#fail(new TransportError('closed', 'The ttrpc connection was closed on this side.'), true);
  }

  async #exchange(what: string, payload: Uint8Array, { signal, timeoutMs }: CallOptions): Promise<Response> {
    if (this.#failure) throw this.#failure;
    let timer: NodeJS.Timeout | undefined;
    let waiter!: Waiter;
    const answer = new Promise<Response>((resolve, reject) => {
      waiter = { what, payload, streamId: 0, resolve, reject };
      if (timeoutMs === undefined || timeoutMs > MAX_TIMER_MS) return;
      timer = setTimeout(() => {
        reject(new TtrpcError(StatusCode.DEADLINE_EXCEEDED, `${what} was not answered within ${timeoutMs} ms.`));
      }, timeoutMs);
    });
    this.#unsent.add(waiter);
    this.#flush();
    try {
      return await abortable(answer, signal);
    } finally {
      clearTimeout(timer);
      this.#giveUp(waiter);
    }
  }

  /** Forgets a call, if it is still waiting: not sent when it has not been, its response dropped when it has. */
  #giveUp(waiter: Waiter): void {
    if (this.#unsent.delete(waiter) || !this.#waiters.delete(waiter.streamId)) return;
    this.#abandoned.add(waiter.streamId);
    if (this.#abandoned.size > MAX_ABANDONED)
      this.#fail(
        new TransportError('protocol', `The server owes responses to ${MAX_ABANDONED} calls that were given up.`),
      );
  }

  #flush(): void {
    for (const waiter of this.#unsent) {
      if (this.#failure || this.#duplex.writableNeedDrain) return;
      this.#unsent.delete(waiter);
      // Ids are given when the bytes go out: on the wire they must increase.
      const id = this.#nextId;
      if (id > LAST_STREAM_ID) {
        waiter.reject(new TransportError('closed', 'The ttrpc connection has used up its stream ids.'));
        continue;
      }
      this.#nextId += 2;
      waiter.streamId = id;
      this.#waiters.set(id, waiter);
      this.#duplex.write(encodeFrame(id, FrameType.request, waiter.payload));
    }
  }

  #receive(bytes: Buffer): void {
    this.#reader.push(bytes);
    try {
      for (let frame = this.#reader.next(); frame && !this.#failure; frame = this.#reader.next()) this.#accept(frame);
    } catch (error) {
      this.#fail(error instanceof TransportError ? error : new TransportError('protocol', String(error), error));
    }
  }

  #accept(frame: Frame): void {
    const { streamId, type } = frame;
    const waiter = this.#waiters.get(streamId);
    if (type !== FrameType.response)
      throw new TransportError(
        'protocol',
        `The server sent a frame of type ${type} on stream ${streamId}; only responses are allowed.`,
      );
    if (!waiter) {
      if (this.#abandoned.delete(streamId)) return;
      throw new TransportError('protocol', `The server answered stream ${streamId}, on which no call waits.`);
    }
    let response: Response;
    try {
      response = fromBinary(ResponseSchema, frame.payload);
    } catch (cause) {
      throw new TransportError('protocol', `The response to ${waiter.what} is not well formed.`, cause);
    }
    this.#waiters.delete(streamId);
    waiter.resolve(response);
  }

  #fail(error: TransportError, closedHere = false): void {
    if (this.#failure) return;
    this.#failure = error;
    const waiters = [...this.#waiters.values(), ...this.#unsent];
    this.#waiters.clear();
    this.#unsent.clear();
    this.#abandoned.clear();
    this.#duplex.destroy();
    for (const waiter of waiters) waiter.reject(error);
    this.#resolveClosed(closedHere ? undefined : error);
  }
}

function encodeRequest(service: string, method: string, payload: Uint8Array, options: CallOptions): Uint8Array {
  const metadata = Object.entries(options.metadata ?? {}).flatMap(([key, values]) =>
    (typeof values === 'string' ? [values] : values).map((value) => ({ key, value })),
  );
  const timeoutNano = options.timeoutMs === undefined ? 0n : BigInt(Math.ceil(options.timeoutMs * 1e6));
  const request = toBinary(RequestSchema, create(RequestSchema, { service, method, payload, timeoutNano, metadata }));
  if (request.length > MAX_PAYLOAD_BYTES)
    throw new TtrpcError(
      StatusCode.RESOURCE_EXHAUSTED,
      `The request to ${service}/${method} has ${request.length} bytes; at most ${MAX_PAYLOAD_BYTES} can be sent.`,
    );
  return request;
}

/** What makes calls: a {@link TtrpcClient}, or something around one. */
export type Caller = Pick<TtrpcClient, 'call'>;

/**
 * A typed object with one function for each unary method of a service.
 * @throws LcowError NOT_SUPPORTED from a method that streams: this client has unary calls only.
 */
export function serviceClient<S extends DescService>(service: S, caller: Caller): ServiceClient<S> {
  const methods: Record<string, unknown> = {};
  for (const method of service.methods) methods[method.localName] = methodCaller(service, method, caller);
  return methods as ServiceClient<S>;
}

function methodCaller(service: DescService, method: DescMethod, caller: Caller) {
  return async (request: MessageInitShape<DescMessage>, options?: CallOptions) => {
    if (method.methodKind !== 'unary')
      throw new LcowError(
        'NOT_SUPPORTED',
        `${service.typeName}/${method.name} streams; only unary calls are supported.`,
      );
    return caller.call(service.typeName, method.name, method.input, method.output, request, options);
  };
}
