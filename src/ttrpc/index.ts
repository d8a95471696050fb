/**
 * ttrpc over any duplex stream, client and server, wire-compatible with containerd's; the multiplexer that carries byte
 * streams with credit beside it; and the handshake that begins a session on a port (docs/protocol.md).
 */
export { TtrpcClient, serviceClient, type Caller } from './client.js';
export { TtrpcServer, type TtrpcServerOptions } from './server.js';
export type { CallContext, CallOptions, ServiceClient, ServiceImplementation } from './service-types.js';
export { TtrpcError, StatusCode, packDetail, errorDetail } from './status.js';
export { TransportError, printable } from './transport-error.js';
export { Multiplexer, MAX_STREAMS, MAX_PENDING_STREAMS, type MultiplexerOptions } from './multiplexer.js';
export { StreamResetError, type MuxStream } from './mux-stream.js';
export { ResetCode } from './mux-frame.js';
export { handshake, type HandshakeOptions } from './handshake.js';
export { AnySchema, type Any } from './ttrpc_pb.js';
