import {
  create,
  fromBinary,
  toBinary,
  type DescMessage,
  type MessageInitShape,
  type MessageShape,
} from '@bufbuild/protobuf';
import { AnySchema, type Any } from './ttrpc_pb.js';

/** Codes of a failed call (google.rpc.Code). */
export const StatusCode = {
  OK: 0,
  CANCELLED: 1,
  UNKNOWN: 2,
  INVALID_ARGUMENT: 3,
  DEADLINE_EXCEEDED: 4,
  NOT_FOUND: 5,
  ALREADY_EXISTS: 6,
  PERMISSION_DENIED: 7,
  RESOURCE_EXHAUSTED: 8,
  FAILED_PRECONDITION: 9,
  ABORTED: 10,
  OUT_OF_RANGE: 11,
  UNIMPLEMENTED: 12,
  INTERNAL: 13,
  UNAVAILABLE: 14,
  DATA_LOSS: 15,
  UNAUTHENTICATED: 16,
} as const;

const TYPE_URL_PREFIX = 'type.googleapis.com/';

/** A call failed by its server's word (google.rpc.Status). Thrown by a handler, it reaches the caller as it is. */
export class TtrpcError extends Error {
  readonly code: number;
  /** What the server adds; {@link errorDetail} reads one of a known type. */
  readonly details: readonly Any[];

  constructor(code: number, message: string, details: readonly Any[] = []) {
    super(message);
    this.name = 'TtrpcError';
    this.code = code;
    this.details = details;
  }
}

/** Packs a message for the details of a {@link TtrpcError}. */
export function packDetail<D extends DescMessage>(schema: D, init: MessageInitShape<D>): Any {
  return create(AnySchema, {
    typeUrl: TYPE_URL_PREFIX + schema.typeName,
    value: toBinary(schema, create(schema, init)),
  });
}

/** The first detail of a type; undefined when there is none, or it is not well formed. */
export function errorDetail<D extends DescMessage>(error: TtrpcError, schema: D): MessageShape<D> | undefined {
  for (const detail of error.details) {
    // What precedes the last slash names the sender's type registry and does not matter (google/protobuf/any.proto).
    if (detail.typeUrl.slice(detail.typeUrl.lastIndexOf('/') + 1) !== schema.typeName) continue;
    try {
      return fromBinary(schema, detail.value);
    } catch {
      return undefined;
    }
  }
  return undefined;
}
