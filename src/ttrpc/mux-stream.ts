import { Duplex } from 'node:stream';
import { ByteQueue } from './byte-queue.js';
import { INITIAL_CREDIT, MAX_DATA_BYTES, MUX_HEADER_BYTES, muxFrame, MuxType, ResetCode } from './mux-frame.js';
import { printable, TransportError } from './transport-error.js';

// Credit is given in lumps of this size, so that small reads do not each cost a frame.
const CREDIT_LUMP_BYTES = 32_768;
const HIGH_WATER_MARK_BYTES = 65_536;

/** The peer reset the stream. `resetCode` is one of {@link ResetCode}; the text is the peer's. */
export class StreamResetError extends Error {
  readonly resetCode: number;

  constructor(streamId: number, resetCode: number, text: string) {
    super(`The peer reset stream ${streamId} (code ${resetCode})${text ? `: ${text}` : ''}.`);
    this.name = 'StreamResetError';
    this.resetCode = resetCode;
  }
}

/** What a stream asks of its session. */
export interface StreamSession {
  /** The stream has a frame to send: {@link StreamEnd.nextFrame} will be called in its turn. */
  ready(stream: StreamEnd): void;
  sendCredit(stream: StreamEnd, bytes: number): void;
  /** The stream ends before its time; the peer is told. */
  reset(stream: StreamEnd, code: number, text: string): void;
}

/** A frame to write, and what to call once it has been written to the connection. */
export interface OutgoingFrame {
  readonly bytes: Buffer;
  readonly written: (() => void) | undefined;
}

/** What the session does with a stream. */
export interface StreamEnd {
  readonly stream: MuxStream;
  /** Both sides have sent END. */
  readonly finished: boolean;
  readonly peerEnded: boolean;
  /** The peer knows the stream: frames may be sent. */
  open(): void;
  /** @throws TransportError `protocol` for more bytes than there was credit, or bytes after END. */
  data(payload: Buffer): void;
  end(): void;
  credit(bytes: number): void;
  nextFrame(): OutgoingFrame | undefined;
  /** The peer reset the stream or the session is over: nothing more is sent; what has arrived can still be read. */
  abandon(error: Error): void;
}

/**
 * One byte stream of a {@link Multiplexer}: a Duplex whose halves end separately.
 * `end()` sends END once everything written has gone out; `destroy()` sends RESET, cancelled without an error, else I/O
 * error. Writes wait for the peer's credit; the peer gets credit for bytes that the reader has taken, not for those that
 * arrived. After a RESET by the peer, or the end of the session, bytes that had arrived are still delivered before the
 * stream fails, unless a write is under way: that fails at once. A failure that nobody listens for does not crash the
 * process.
 */
export class MuxStream extends Duplex {
  readonly id: number;
  readonly #session: StreamSession;
  readonly #end: StreamEnd;
  readonly #incoming = new ByteQueue();
  #opened: boolean;
  #wanting = false;
  #window = INITIAL_CREDIT;
  #pushed = 0;
  #taken = 0;
  #credited = 0;
  #peerEnded = false;
  #abandoned: Error | undefined;
  #sendCredit = INITIAL_CREDIT;
  #outgoing: { bytes: Buffer; offset: number; callback: (error?: Error | null) => void } | undefined;
  #final: ((error?: Error | null) => void) | undefined;
  #ended = false;

  /** Made by a {@link Multiplexer} only; `expose` hands it the session's side of the stream. */
  constructor(id: number, opened: boolean, session: StreamSession, expose: (end: StreamEnd) => void) {
    super({ allowHalfOpen: true, highWaterMark: HIGH_WATER_MARK_BYTES, decodeStrings: true });
    this.id = id;
    this.#opened = opened;
    this.#session = session;
    this.#end = this.#makeEnd();
    expose(this.#end);
    this.on('error', () => {});
  }

  /** Bytes the reader has taken so far: what the peer may forget, and the offset from which it would send again. */
  get bytesConsumed(): number {
    return this.#taken;
  }

  // Every way of reading but one goes through read(); the exception is counted in #push.
  override read(size?: number): unknown {
    const chunk: unknown = super.read(size);
    this.#count();
    return chunk;
  }

  override _read(): void {
    const piece = this.#incoming.takePiece(MAX_DATA_BYTES);
    if (piece) {
      this.#wanting = false;
      this.#push(piece);
      return;
    }
    this.#wanting = true;
    if (this.#peerEnded) this.push(null);
    else if (this.#abandoned) this.destroy(this.#abandoned);
  }

  #push(piece: Buffer): void {
    this.#pushed += piece.length;
    this.push(piece);
    this.#count();
  }

  /** Counts what has left Node's buffer, and gives credit for it. */
  #count(): void {
    // A decoder (setEncoding) makes the buffer's length one of characters: then only an empty buffer is exact.
    if (this.readableEncoding !== null && this.readableLength > 0) return;
    const taken = this.#pushed - this.readableLength;
    if (taken <= this.#taken) return;
    this.#taken = taken;
    const due = taken - this.#credited;
    const allTaken = this.#peerEnded && this.#incoming.length === 0 && this.readableLength === 0;
    if (this.#abandoned || this.#end.finished || (due < CREDIT_LUMP_BYTES && !allTaken)) return;
    this.#credited = taken;
    this.#window += due;
    this.#session.sendCredit(this.#end, due);
  }

  override _write(chunk: Buffer, _encoding: BufferEncoding, callback: (error?: Error | null) => void): void {
    if (this.#abandoned) callback(this.#abandoned);
    else if (chunk.length === 0) callback();
    else {
      this.#outgoing = { bytes: chunk, offset: 0, callback };
      this.#offer();
    }
  }

  // Many small writes that waited for credit go out as few frames.
  override _writev(chunks: { chunk: Buffer }[], callback: (error?: Error | null) => void): void {
    this._write(Buffer.concat(chunks.map(({ chunk }) => chunk)), 'binary', callback);
  }

  override _final(callback: (error?: Error | null) => void): void {
    if (this.#abandoned) {
      callback();
      return;
    }
    this.#final = callback;
    this.#offer();
  }

  override _destroy(error: Error | null, callback: (error: Error | null) => void): void {
    const over = this.#abandoned !== undefined || this.#end.finished;
    if (!over) {
      this.#abandoned = error ?? new TransportError('closed', `Stream ${this.id} was destroyed.`);
      // An AbortError is how Node's own consumers say that they want no more.
      const cancelled = error === null || error.name === 'AbortError';
      const code = cancelled ? ResetCode.CANCELLED : ResetCode.IO_ERROR;
      this.#session.reset(this.#end, code, cancelled ? '' : printable(error.message, 512));
    }
    this.#incoming.clear();
    const pending = [this.#outgoing?.callback, this.#final];
    this.#outgoing = undefined;
    this.#final = undefined;
    callback(error);
    for (const waiting of pending) waiting?.(error ?? this.#abandoned);
  }

  #offer(): void {
    if (this.#opened && (this.#outgoing ? this.#sendCredit > 0 : this.#final !== undefined))
      this.#session.ready(this.#end);
  }

  #makeEnd(): StreamEnd {
    // Closures over private state: the session gets in here, users of the stream do not.
    const isFinished = (): boolean => this.#ended && this.#peerEnded;
    const peerEnded = (): boolean => this.#peerEnded;
    return {
      stream: this,
      get finished() {
        return isFinished();
      },
      get peerEnded() {
        return peerEnded();
      },
      open: () => {
        this.#opened = true;
        this.#offer();
      },
      data: (payload) => this.#receiveData(payload),
      end: () => this.#receiveEnd(),
      credit: (bytes) => this.#receiveCredit(bytes),
      nextFrame: () => this.#nextFrame(),
      abandon: (error) => this.#abandon(error),
    };
  }

  #receiveData(payload: Buffer): void {
    if (this.#peerEnded) throw this.#violation('sent bytes after END');
    if (payload.length > this.#window) throw this.#violation('sent more bytes than it had credit for');
    this.#window -= payload.length;
    if (this.destroyed || payload.length === 0) return;
    if (this.#wanting && this.#incoming.length === 0) {
      this.#wanting = false;
      this.#push(payload);
    } else this.#incoming.push(payload);
  }

  #receiveEnd(): void {
    if (this.#peerEnded) throw this.#violation('sent END twice');
    this.#peerEnded = true;
    if (this.destroyed) return;
    if (this.#wanting && this.#incoming.length === 0) this.push(null);
    this.#creditRest();
  }

  /** Bytes taken before END came, too few for a lump: nothing would bring their credit later. */
  #creditRest(): void {
    const due = this.#taken - this.#credited;
    if (due === 0 || this.#end.finished || this.#incoming.length > 0 || this.readableLength > 0) return;
    this.#credited = this.#taken;
    this.#session.sendCredit(this.#end, due);
  }

  #receiveCredit(bytes: number): void {
    if (this.#sendCredit + bytes > INITIAL_CREDIT) throw this.#violation('gave credit for bytes it was never sent');
    this.#sendCredit += bytes;
    this.#offer();
  }

  #nextFrame(): OutgoingFrame | undefined {
    const outgoing = this.#outgoing;
    if (outgoing) {
      const { bytes, offset, callback } = outgoing;
      const count = Math.min(bytes.length - offset, this.#sendCredit, MAX_DATA_BYTES);
      if (count === 0) return undefined;
      const frame = muxFrame(this.id, MuxType.DATA, count);
      bytes.copy(frame, MUX_HEADER_BYTES, offset, offset + count);
      this.#sendCredit -= count;
      outgoing.offset += count;
      if (outgoing.offset < bytes.length) {
        this.#offer();
        return { bytes: frame, written: undefined };
      }
      this.#outgoing = undefined;
      return { bytes: frame, written: callback };
    }
    const final = this.#final;
    if (!final) return undefined;
    this.#final = undefined;
    this.#ended = true;
    return { bytes: muxFrame(this.id, MuxType.END, 0), written: final };
  }

  #abandon(error: Error): void {
    if (this.#abandoned || this.destroyed) return;
    this.#abandoned = error;
    const unread = this.#incoming.length > 0 || this.readableLength > 0;
    const writing = this.#outgoing !== undefined || this.#final !== undefined;
    if (writing || !(this.#peerEnded || unread)) this.destroy(error);
  }

  #violation(what: string): TransportError {
    return new TransportError('protocol', `The peer ${what} on stream ${this.id}.`);
  }
}
