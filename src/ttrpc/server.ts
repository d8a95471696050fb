import {
  create,
  fromBinary,
  toBinary,
  type DescMessage,
  type DescMethod,
  type DescService,
  type Message,
  type MessageInitShape,
  type MessageShape,
} from '@bufbuild/protobuf';
import type { Duplex } from 'node:stream';
import { errorMessage, LcowError } from '../errors/index.js';
import { MAX_TIMER_MS } from '../lifetime/index.js';
import { encodeFrame, FrameReader, FrameType, MAX_PAYLOAD_BYTES, type Frame } from './frame.js';
import { closeGently, follow } from './follow.js';
import type { CallContext, ServiceImplementation } from './service-types.js';
import { StatusCode, TtrpcError } from './status.js';
import { TransportError } from './transport-error.js';
import { RequestSchema, ResponseSchema, type Request } from './ttrpc_pb.js';

// Far more than one peer needs, far less than one peer could ask for.
const DEFAULT_MAX_CONCURRENT = 256;

type Output = MessageInitShape<DescMessage>;
type Handler = (request: Message, context: CallContext) => Output | Promise<Output>;

interface Method {
  readonly desc: DescMethod;
  readonly handler: Handler;
}

export interface TtrpcServerOptions {
  /** Calls running at once on one connection; a further one is answered with RESOURCE_EXHAUSTED. Default 256. */
  readonly maxConcurrent?: number;
}

/**
 * The server side of ttrpc: dispatches unary calls of any number of connections to registered services.
 * Wire-compatible with containerd's ttrpc 1.x, and answers bad requests with the same codes as its Go server.
 */
export class TtrpcServer {
  readonly #services = new Map<string, Map<string, Method>>();
  readonly #maxConcurrent: number;

  constructor(options: TtrpcServerOptions = {}) {
    this.#maxConcurrent = options.maxConcurrent ?? DEFAULT_MAX_CONCURRENT;
  }

  /**
   * Registers the handlers of a service.
   * @throws LcowError ALREADY_EXISTS for a second service of the same name.
   */
  addService<S extends DescService>(service: S, implementation: ServiceImplementation<S>): this {
    if (this.#services.has(service.typeName))
      throw new LcowError('ALREADY_EXISTS', `The ttrpc service ${service.typeName} is already registered.`);
    const handlers = implementation as Record<string, Handler | undefined>;
    const methods = new Map<string, Method>();
    for (const desc of service.methods) {
      const handler = handlers[desc.localName];
      if (handler && desc.methodKind === 'unary')
        methods.set(desc.name, { desc, handler: handler.bind(implementation) });
    }
    this.#services.set(service.typeName, methods);
    return this;
  }

  /**
   * Serves one connection until it ends, and then fires the signals of the handlers still running.
   * @returns After a clean end by the client, when `stop` fires, or when the connection breaks.
   * @throws TransportError `protocol` when the client sent what is no ttrpc.
   */
  async serve(duplex: Duplex, stop?: AbortSignal): Promise<void> {
    const connection = new Connection(duplex, this.#services, this.#maxConcurrent);
    const onStop = (): void => connection.end();
    stop?.addEventListener('abort', onStop, { once: true });
    if (stop?.aborted) onStop();
    try {
      await connection.done;
    } finally {
      stop?.removeEventListener('abort', onStop);
    }
  }
}

class Connection {
  readonly done: Promise<void>;
  readonly #reader = new FrameReader();
  readonly #ended = new AbortController();
  readonly #stopFollowing: () => void;
  #lastId = 0;
  #running = 0;
  #settle!: { resolve: () => void; reject: (error: Error) => void };

  constructor(
    readonly duplex: Duplex,
    readonly services: ReadonlyMap<string, ReadonlyMap<string, Method>>,
    readonly maxConcurrent: number,
  ) {
    this.done = new Promise((resolve, reject) => (this.#settle = { resolve, reject }));
    // A client that does not take its responses is not heard until it does: that bounds what waits to be written.
    duplex.on('drain', () => duplex.resume());
    this.#stopFollowing = follow(duplex, {
      chunk: (bytes) => this.#receive(bytes),
      over: () => this.end(),
    });
  }

  end(failure?: TransportError): void {
    if (this.#ended.signal.aborted) return;
    this.#ended.abort(failure ?? new TransportError('closed', 'The ttrpc connection ended.'));
    this.#stopFollowing();
    if (failure) this.duplex.destroy();
    // Responses already written still go out.
    else closeGently(this.duplex);
    if (failure) this.#settle.reject(failure);
    else this.#settle.resolve();
  }

  #receive(bytes: Buffer): void {
    this.#reader.push(bytes);
    try {
      for (let frame = this.#reader.next(); frame; frame = this.#reader.next()) {
        this.#accept(frame);
        if (this.#ended.signal.aborted) return;
      }
    } catch (error) {
      this.end(error instanceof TransportError ? error : new TransportError('protocol', errorMessage(error), error));
    }
  }

  #accept(frame: Frame): void {
    try {
      this.#dispatch(frame);
    } catch (error) {
      if (!(error instanceof TtrpcError)) throw error;
      this.#respond(frame.streamId, encodeStatus(error));
    }
  }

  // The order of the checks and their codes are those of containerd/ttrpc server.go.
  #dispatch({ streamId, type, payload }: Frame): void {
    if (streamId % 2 !== 1) throw invalid('StreamID must be odd for client initiated streams');
    if (type === FrameType.data) throw invalid('StreamID is no longer active');
    // Other types are left for later versions of the protocol.
    if (type !== FrameType.request) return;
    if (streamId <= this.#lastId) throw invalid('StreamID cannot be re-used and must increment');
    this.#lastId = streamId;
    const request = decode(RequestSchema, payload);
    const service = this.services.get(request.service);
    if (!service) throw new TtrpcError(StatusCode.UNIMPLEMENTED, `service ${request.service}`);
    const method = service.get(request.method);
    if (!method) throw new TtrpcError(StatusCode.UNIMPLEMENTED, `method ${request.method}`);
    if (this.#running >= this.maxConcurrent)
      throw new TtrpcError(StatusCode.RESOURCE_EXHAUSTED, `more than ${this.maxConcurrent} calls at once`);
    this.#running++;
    void this.#run(streamId, method, request).finally(() => this.#running--);
  }

  async #run(streamId: number, method: Method, request: Request): Promise<void> {
    const timeoutMs = Number(request.timeoutNano) / 1e6;
    const timed = timeoutMs > 0 && timeoutMs <= MAX_TIMER_MS;
    const expiry = new AbortController();
    const timer = timed
      ? setTimeout(() => expiry.abort(new TtrpcError(StatusCode.DEADLINE_EXCEEDED, 'deadline exceeded')), timeoutMs)
      : undefined;
    const signal = timed ? AbortSignal.any([this.#ended.signal, expiry.signal]) : this.#ended.signal;
    try {
      const input = decode(method.desc.input, request.payload);
      const output = await method.handler(input, { signal, metadata: metadataOf(request) });
      const result = toBinary(method.desc.output, create(method.desc.output, output));
      this.#respond(streamId, toBinary(ResponseSchema, create(ResponseSchema, { payload: result })));
    } catch (error) {
      const status = error instanceof TtrpcError ? error : new TtrpcError(StatusCode.UNKNOWN, errorMessage(error));
      this.#respond(streamId, encodeStatus(status));
    } finally {
      clearTimeout(timer);
    }
  }

  #respond(streamId: number, response: Uint8Array): void {
    if (this.#ended.signal.aborted) return;
    if (response.length > MAX_PAYLOAD_BYTES) {
      const text = `the response has ${response.length} bytes; at most ${MAX_PAYLOAD_BYTES} can be sent`;
      response = encodeStatus(new TtrpcError(StatusCode.RESOURCE_EXHAUSTED, text));
    }
    if (!this.duplex.write(encodeFrame(streamId, FrameType.response, response))) this.duplex.pause();
  }
}

function decode<D extends DescMessage>(desc: D, payload: Uint8Array): MessageShape<D> {
  try {
    return fromBinary(desc, payload);
  } catch (error) {
    throw invalid(`the request is no well-formed ${desc.typeName}: ${errorMessage(error)}`);
  }
}

function invalid(message: string): TtrpcError {
  return new TtrpcError(StatusCode.INVALID_ARGUMENT, message);
}

function encodeStatus({ code, message, details }: TtrpcError): Uint8Array {
  // An error whose code says OK would look like success to the caller.
  const status = { code: code === StatusCode.OK ? StatusCode.UNKNOWN : code, message, details: [...details] };
  return toBinary(ResponseSchema, create(ResponseSchema, { status }));
}

function metadataOf(request: Request): ReadonlyMap<string, readonly string[]> {
  const metadata = new Map<string, string[]>();
  for (const { key, value } of request.metadata) {
    const values = metadata.get(key);
    if (values) values.push(value);
    else metadata.set(key, [value]);
  }
  return metadata;
}
