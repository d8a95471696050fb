import { ByteQueue } from './byte-queue.js';
import { TransportError } from './transport-error.js';

// docs/protocol.md, section 3.
export const MUX_HEADER_BYTES = 8;
/** Longest payload of a frame. */
export const MAX_DATA_BYTES = 32_768;
/** Credit each direction of a stream begins with. */
export const INITIAL_CREDIT = 262_144;

export const MuxType = { OPEN: 1, DATA: 2, CREDIT: 3, END: 4, RESET: 5 } as const;

/** Why a stream was reset. */
export const ResetCode = { CANCELLED: 0, NO_SUCH_STREAM: 1, PROTOCOL_ERROR: 2, IO_ERROR: 3 } as const;

/** Text of a RESET, cut to this many bytes when sent. */
const MAX_RESET_TEXT_BYTES = 1024;

export interface MuxFrame {
  readonly id: number;
  readonly type: number;
  readonly payload: Buffer;
}

/** A frame with room for `length` bytes of payload, to be filled from {@link MUX_HEADER_BYTES} on. */
export function muxFrame(id: number, type: number, length: number): Buffer {
  const frame = Buffer.allocUnsafe(MUX_HEADER_BYTES + length);
  frame.writeUInt32BE(id, 0);
  frame.writeUInt8(type, 4);
  frame.writeUIntBE(length, 5, 3);
  return frame;
}

export function creditFrame(id: number, bytes: number): Buffer {
  const frame = muxFrame(id, MuxType.CREDIT, 4);
  frame.writeUInt32BE(bytes, MUX_HEADER_BYTES);
  return frame;
}

export function resetFrame(id: number, code: number, text: string): Buffer {
  const words = Buffer.from(text).subarray(0, MAX_RESET_TEXT_BYTES);
  const frame = muxFrame(id, MuxType.RESET, 4 + words.length);
  frame.writeUInt32BE(code, MUX_HEADER_BYTES);
  words.copy(frame, MUX_HEADER_BYTES + 4);
  return frame;
}

const PAYLOAD_LENGTH: Readonly<Record<number, readonly [least: number, most: number]>> = {
  [MuxType.OPEN]: [0, 0],
  [MuxType.DATA]: [0, MAX_DATA_BYTES],
  [MuxType.CREDIT]: [4, 4],
  [MuxType.END]: [0, 0],
  [MuxType.RESET]: [4, MAX_DATA_BYTES],
};

/** Cuts a byte stream into multiplexer frames, refusing as soon as a header is wrong. */
export class MuxFrameReader {
  readonly #queue = new ByteQueue();
  #header: { id: number; type: number; length: number } | undefined;

  push(chunk: Buffer): void {
    this.#queue.push(chunk);
  }

  /** Whether bytes of an unfinished frame are held. */
  get midFrame(): boolean {
    return this.#header !== undefined || this.#queue.length > 0;
  }

  /**
   * The next whole frame, or undefined until more bytes come.
   * @throws TransportError `protocol` for an unknown type, stream 0, or a length the type does not allow.
   */
  next(): MuxFrame | undefined {
    if (!this.#header) {
      if (this.#queue.length < MUX_HEADER_BYTES) return undefined;
      const bytes = this.#queue.take(MUX_HEADER_BYTES);
      const id = bytes.readUInt32BE(0);
      const type = bytes.readUInt8(4);
      const length = bytes.readUIntBE(5, 3);
      const allowed = PAYLOAD_LENGTH[type];
      if (!allowed) throw new TransportError('protocol', `The peer sent a multiplexer frame of unknown type ${type}.`);
      if (id === 0 && type !== MuxType.RESET)
        throw new TransportError('protocol', 'The peer sent a multiplexer frame for stream 0.');
      if (length < allowed[0] || length > allowed[1])
        throw new TransportError(
          'protocol',
          `The peer sent a multiplexer frame of type ${type} with ${length} bytes on stream ${id}.`,
        );
      this.#header = { id, type, length };
    }
    const { id, type, length } = this.#header;
    if (this.#queue.length < length) return undefined;
    this.#header = undefined;
    return { id, type, payload: this.#queue.take(length) };
  }
}
