/**
 * The guest connection: the client of the guest agent, its containers, processes and their streams. It is given two
 * connected ports and knows nothing of what runs the guest.
 */
export type {
  ConsoleSize,
  Container,
  GuestStats,
  Process,
  ProcessConfig,
  ProcessExit,
  ProcessHost,
  Stdio,
} from './cow.js';
export type { OciProcess, OciSpec } from './oci.js';
export { connectGuest, PROTOCOL_MAJOR, type ConnectGuestOptions, type GuestPorts } from './connect.js';
export type {
  AttachOptions,
  CreateContainerOptions,
  GuestCapabilities,
  GuestConnection,
  RenewOptions,
} from './guest-connection.js';
export type { GuestClient } from './guest-client.js';
export type { GuestContainer } from './guest-container.js';
export type { GuestProcess } from './guest-process.js';
export type { StdioOffsets, StdioWish } from './stdio-streams.js';
export { hasReason, type GuestReason } from './guest-errors.js';
export { MAX_LOG_LINE_BYTES, type GuestLogLine } from './guest-log.js';
