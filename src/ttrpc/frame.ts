import { ByteQueue } from './byte-queue.js';
import { TransportError } from './transport-error.js';

/** Length of a frame's header (containerd/ttrpc PROTOCOL.md, "Message Frame"). */
export const HEADER_BYTES = 10;
/** Longest payload of a frame (containerd/ttrpc channel.go, messageLengthMax). */
export const MAX_PAYLOAD_BYTES = 4 * 1024 * 1024;

/** Types of frames (containerd/ttrpc PROTOCOL.md, "Message Types"). */
export const FrameType = { request: 1, response: 2, data: 3 } as const;

export interface Frame {
  readonly streamId: number;
  readonly type: number;
  readonly flags: number;
  readonly payload: Buffer;
}

/** A frame's bytes. The caller has checked the payload against {@link MAX_PAYLOAD_BYTES}. */
export function encodeFrame(streamId: number, type: number, payload: Uint8Array): Buffer {
  const frame = Buffer.allocUnsafe(HEADER_BYTES + payload.length);
  frame.writeUInt32BE(payload.length, 0);
  frame.writeUInt32BE(streamId, 4);
  frame.writeUInt8(type, 8);
  // Unary requests and responses carry no flags.
  frame.writeUInt8(0, 9);
  frame.set(payload, HEADER_BYTES);
  return frame;
}

/** Cuts a byte stream into frames, however it arrives in pieces. */
export class FrameReader {
  readonly #queue = new ByteQueue();
  #header: { length: number; streamId: number; type: number; flags: number } | undefined;

  push(chunk: Buffer): void {
    this.#queue.push(chunk);
  }

  /** Whether bytes of an unfinished frame are held: an end of the connection now cuts it off. */
  get midFrame(): boolean {
    return this.#header !== undefined || this.#queue.length > 0;
  }

  /**
   * The next whole frame, or undefined until more bytes come.
   * @throws TransportError `protocol` when a header announces more than 4 MiB: as soon as the header is there.
   */
  next(): Frame | undefined {
    if (!this.#header) {
      if (this.#queue.length < HEADER_BYTES) return undefined;
      const header = this.#queue.take(HEADER_BYTES);
      const length = header.readUInt32BE(0);
      const streamId = header.readUInt32BE(4);
      if (length > MAX_PAYLOAD_BYTES)
        throw new TransportError(
          'protocol',
          `A ttrpc frame of stream ${streamId} announces ${length} bytes; at most ${MAX_PAYLOAD_BYTES} are allowed.`,
        );
      this.#header = { length, streamId, type: header.readUInt8(8), flags: header.readUInt8(9) };
    }
    if (this.#queue.length < this.#header.length) return undefined;
    const { length, streamId, type, flags } = this.#header;
    this.#header = undefined;
    return { streamId, type, flags, payload: this.#queue.take(length) };
  }
}
