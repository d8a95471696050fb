import type { Duplex } from 'node:stream';
import { LcowError } from '../errors/index.js';
import { closeGently, follow } from './follow.js';
import { creditFrame, muxFrame, MuxFrameReader, MuxType, ResetCode, resetFrame, type MuxFrame } from './mux-frame.js';
import { MuxStream, StreamResetError, type OutgoingFrame, type StreamEnd, type StreamSession } from './mux-stream.js';
import { printable, TransportError } from './transport-error.js';
import { UsedIds } from './used-ids.js';

/** Streams open at once in one session, pending ones included (docs/protocol.md, section 3). */
export const MAX_STREAMS = 1024;
/** Streams opened by the peer that nobody has claimed yet. */
export const MAX_PENDING_STREAMS = 256;
const LAST_ID = 0xffff_ffff;
// Control frames waiting to be written. A peer that provokes answers and does not read them is not heard further.
const MAX_CONTROL_FRAMES = 4096;

export interface MultiplexerOptions {
  /** The host opens odd streams, the guest even ones. */
  readonly side: 'host' | 'guest';
  /** Makes the error that streams fail with from what happened; by default it is passed on. */
  readonly mapError?: (error: TransportError | StreamResetError) => Error;
}

/**
 * Many byte streams over one connection, with credit for each (docs/protocol.md, section 3). Frames of the streams take
 * turns, so a busy stream delays another by one frame. A peer that breaks the protocol ends the session.
 */
export class Multiplexer {
  /** Resolves when the session is over: with the failure, or undefined after {@link Multiplexer.close}. Never rejects. */
  readonly closed: Promise<TransportError | undefined>;
  readonly #duplex: Duplex;
  readonly #mapError: (error: TransportError | StreamResetError) => Error;
  readonly #reader = new MuxFrameReader();
  readonly #streams = new Map<number, StreamEnd>();
  /** Opened by the peer, not claimed. */
  readonly #pending = new Set<number>();
  /** Claimed before the peer's OPEN; undefined when given up since. */
  readonly #expected = new Map<number, StreamEnd | undefined>();
  readonly #firstOwnId: number;
  readonly #peerIds: UsedIds;
  readonly #session: StreamSession;
  readonly #stopFollowing: () => void;
  #nextOwnId: number;
  #control: Buffer[] = [];
  readonly #credit = new Map<number, number>();
  readonly #ready = new Set<StreamEnd>();
  #pumping = false;
  #over: TransportError | undefined;
  #resolveClosed!: (error: TransportError | undefined) => void;

  /** Takes the connection over, and destroys it at the end. */
  constructor(duplex: Duplex, options: MultiplexerOptions) {
    this.#duplex = duplex;
    this.#mapError = options.mapError ?? ((error) => error);
    this.#firstOwnId = options.side === 'host' ? 1 : 2;
    this.#nextOwnId = this.#firstOwnId;
    this.#peerIds = new UsedIds(options.side === 'host' ? 2 : 1);
    this.closed = new Promise((resolve) => (this.#resolveClosed = resolve));
    this.#session = {
      ready: (end) => {
        this.#ready.add(end);
        this.#pump();
      },
      sendCredit: (end, bytes) => {
        const { id } = end.stream;
        this.#credit.set(id, (this.#credit.get(id) ?? 0) + bytes);
        this.#pump();
      },
      reset: (end, code, text) => this.#reset(end, code, text),
    };
    duplex.on('drain', () => {
      this.#pump();
      if (this.#control.length === 0) duplex.resume();
    });
    this.#stopFollowing = follow(duplex, {
      chunk: (bytes) => this.#receive(bytes),
      over: (error) => {
        const cut = this.#reader.midFrame ? ' in the middle of a frame' : '';
        const message = `The multiplexer's connection ended${cut}${error ? `: ${error.message}` : ''}.`;
        this.#finish(new TransportError('closed', message, error));
      },
    });
  }

  /** Streams open now, pending ones included. */
  get streamCount(): number {
    return this.#streams.size;
  }

  /**
   * Opens a stream; the peer claims it by its id.
   * @throws TransportError when the session is over; LcowError INVALID_STATE when 1024 streams are open.
   */
  open(): MuxStream {
    if (this.#over) throw this.#over;
    const id = this.#nextOwnId;
    if (this.#streams.size >= MAX_STREAMS || id > LAST_ID)
      throw new LcowError(
        'INVALID_STATE',
        `No stream can be opened: ${this.#streams.size} are open, ${id} is the next id.`,
      );
    this.#nextOwnId += 2;
    const end = this.#make(id, true);
    this.#streams.set(id, end);
    this.#sendControl(muxFrame(id, MuxType.OPEN, 0));
    return end.stream;
  }

  /**
   * Takes a stream that the peer has opened. When its OPEN has not arrived yet, the stream is there all the same and
   * comes to life with it: a call that names the stream may arrive first on another connection.
   * @throws TransportError when the session is over; LcowError NOT_FOUND for an id of this side or of a stream that is
   *   gone, IN_USE when it was claimed before, INVALID_STATE when 256 claimed streams are still waited for.
   */
  claim(id: number): MuxStream {
    if (this.#over) throw this.#over;
    if (this.#pending.delete(id)) return this.#streams.get(id)!.stream;
    if (this.#streams.has(id) || this.#expected.has(id))
      throw new LcowError('IN_USE', `Stream ${id} was claimed before.`);
    if (!Number.isInteger(id) || id < 1 || id > LAST_ID || id % 2 === this.#firstOwnId % 2 || this.#peerIds.has(id))
      throw new LcowError('NOT_FOUND', `The peer has no stream ${id}.`);
    if (this.#expected.size >= MAX_PENDING_STREAMS)
      throw new LcowError('INVALID_STATE', `Stream ${id} cannot be waited for: ${MAX_PENDING_STREAMS} others are.`);
    const end = this.#make(id, false);
    this.#expected.set(id, end);
    return end.stream;
  }

  /**
   * Ends the session: streams fail, and the connection is closed once the peer has read the bytes it already has, or
   * after a second. Idempotent. What was written to streams before and has credit still goes out.
   * @param error What streams fail with, instead of a plain "closed on this side".
   */
  close(error?: Error): void {
    this.#pump(true);
    this.#finish(new TransportError('closed', 'The multiplexer was closed on this side.'), true, error);
  }

  #make(id: number, opened: boolean): StreamEnd {
    let end!: StreamEnd;
    new MuxStream(id, opened, this.#session, (made) => (end = made));
    return end;
  }

  #reset(end: StreamEnd, code: number, text: string): void {
    const { id } = end.stream;
    if (this.#expected.has(id)) this.#expected.set(id, undefined);
    else if (this.#forget(end)) this.#sendControl(resetFrame(id, code, text));
  }

  /** Drops what the session holds of a stream; false when it held nothing. */
  #forget(end: StreamEnd): boolean {
    const { id } = end.stream;
    this.#ready.delete(end);
    this.#credit.delete(id);
    this.#pending.delete(id);
    return this.#streams.delete(id);
  }

  #sendControl(frame: Buffer): void {
    this.#control.push(frame);
    this.#pump();
  }

  /** Writes while the connection takes bytes; `all` at the end, also what it has to keep for now. */
  #pump(all = false): void {
    // Nested only at the end, when a callback closes the session: the frame under way has been written by then.
    if (this.#pumping && !all) return;
    this.#pumping = true;
    try {
      while (!this.#over && (all || !this.#duplex.writableNeedDrain)) {
        const frame = this.#nextFrame();
        if (!frame) break;
        this.#duplex.write(frame.bytes);
        frame.written?.();
      }
    } finally {
      this.#pumping = false;
    }
    if (this.#control.length > MAX_CONTROL_FRAMES) this.#duplex.pause();
  }

  #nextFrame(): OutgoingFrame | undefined {
    const control = this.#control.shift();
    if (control) return { bytes: control, written: undefined };
    for (const [id, bytes] of this.#credit) {
      this.#credit.delete(id);
      return { bytes: creditFrame(id, bytes), written: undefined };
    }
    // A set keeps the order of insertion: whoever has sent is put at the end by asking again.
    for (const end of this.#ready) {
      this.#ready.delete(end);
      const frame = end.nextFrame();
      if (end.finished) this.#forget(end);
      if (frame) return frame;
    }
    return undefined;
  }

  #receive(bytes: Buffer): void {
    this.#reader.push(bytes);
    try {
      while (!this.#over) {
        const frame = this.#reader.next();
        if (!frame) break;
        this.#accept(frame);
      }
    } catch (error) {
      if (!(error instanceof TransportError)) throw error;
      this.#finish(error);
    }
  }

  #accept(frame: MuxFrame): void {
    const { id, type, payload } = frame;
    if (type === MuxType.OPEN) {
      this.#acceptOpen(id);
      return;
    }
    // Nobody's stream: a guest cannot close its end of a port, so it says in this way that it has given up.
    if (id === 0) throw new TransportError('protocol', `The peer gave the session up: ${resetText(payload)}.`);
    const end = this.#streams.get(id);
    if (!end) {
      // Frames for a stream that is gone were under way when it went.
      if (type === MuxType.RESET || this.#wasOpened(id)) return;
      throw new TransportError(
        'protocol',
        `The peer sent a frame of type ${type} for stream ${id}, which was never opened.`,
      );
    }
    if (type === MuxType.DATA) end.data(payload);
    else if (type === MuxType.CREDIT) end.credit(payload.readUInt32BE(0));
    else if (type === MuxType.END) {
      end.end();
      if (end.finished) this.#forget(end);
    } else {
      this.#forget(end);
      end.abandon(this.#mapError(new StreamResetError(id, payload.readUInt32BE(0), resetText(payload))));
    }
  }

  #acceptOpen(id: number): void {
    if (id % 2 === this.#firstOwnId % 2)
      throw new TransportError('protocol', `The peer opened stream ${id}, whose number is of this side.`);
    if (!this.#peerIds.add(id))
      throw new TransportError(
        'protocol',
        `The peer opened stream ${id}, which was used before or is far out of order.`,
      );
    if (this.#expected.has(id)) {
      const expected = this.#expected.get(id);
      this.#expected.delete(id);
      if (!expected) this.#sendControl(resetFrame(id, ResetCode.CANCELLED, ''));
      else if (this.#streams.size >= MAX_STREAMS) {
        this.#refuseOpen(id);
        expected.abandon(this.#mapError(new StreamResetError(id, ResetCode.IO_ERROR, 'too many streams')));
      } else {
        this.#streams.set(id, expected);
        expected.open();
      }
    } else if (this.#streams.size >= MAX_STREAMS || this.#pending.size >= MAX_PENDING_STREAMS) this.#refuseOpen(id);
    else {
      this.#streams.set(id, this.#make(id, true));
      this.#pending.add(id);
    }
  }

  #refuseOpen(id: number): void {
    this.#sendControl(resetFrame(id, ResetCode.IO_ERROR, 'too many streams'));
  }

  #wasOpened(id: number): boolean {
    return id % 2 === this.#firstOwnId % 2 ? id < this.#nextOwnId : this.#peerIds.has(id);
  }

  #finish(error: TransportError, closedHere = false, given?: Error): void {
    if (this.#over) return;
    this.#over = error;
    // After the session counts as over: whoever maps may close it in turn.
    const streamError = given ?? this.#mapError(error);
    const ends = [...this.#streams.values(), ...this.#expected.values()];
    this.#streams.clear();
    this.#expected.clear();
    this.#pending.clear();
    this.#ready.clear();
    this.#credit.clear();
    this.#control = [];
    this.#stopFollowing();
    if (closedHere) closeGently(this.#duplex);
    else this.#duplex.destroy();
    for (const end of ends) end?.abandon(streamError);
    this.#resolveClosed(closedHere ? undefined : error);
  }
}

function resetText(payload: Buffer): string {
  return printable(payload.toString('utf8', 4));
}
