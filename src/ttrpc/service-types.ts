import type { DescMethodUnary, DescService, MessageInitShape, MessageShape } from '@bufbuild/protobuf';

/** Options of one call. */
export interface CallOptions {
  /** Gives the call up: it rejects at once, and a response that still comes is dropped. The server is not told. */
  readonly signal?: AbortSignal | undefined;
  /** Told to the server as timeout_nano, and kept here: DEADLINE_EXCEEDED when no response came. Milliseconds. */
  readonly timeoutMs?: number | undefined;
  /** Key-value pairs sent beside the request (ttrpc metadata). */
  readonly metadata?: Readonly<Record<string, string | readonly string[]>> | undefined;
}

/** What a handler knows of its call. */
export interface CallContext {
  /** Fires when the connection ends or the caller's time-out has passed. */
  readonly signal: AbortSignal;
  readonly metadata: ReadonlyMap<string, readonly string[]>;
}

/** The unary methods of a service as functions. */
export type ServiceClient<S extends DescService> = {
  readonly [
    K in keyof S['method'] as S['method'][K] extends DescMethodUnary ? K : never
  ]: S['method'][K] extends DescMethodUnary<infer I, infer O>
    ? (request: MessageInitShape<I>, options?: CallOptions) => Promise<MessageShape<O>>
    : never;
};

/** Handlers for the unary methods of a service; a method left out is answered with UNIMPLEMENTED. */
export type ServiceImplementation<S extends DescService> = {
  readonly [
    K in keyof S['method'] as S['method'][K] extends DescMethodUnary ? K : never
  ]?: S['method'][K] extends DescMethodUnary<infer I, infer O>
    ? (request: MessageShape<I>, context: CallContext) => MessageInitShape<O> | Promise<MessageInitShape<O>>
    : never;
};
