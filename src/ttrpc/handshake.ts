import { randomBytes } from 'node:crypto';
import type { Duplex } from 'node:stream';
import { abortable, timeoutFactor } from '../lifetime/index.js';
import { follow } from './follow.js';
import { TransportError } from './transport-error.js';

// docs/protocol.md, section 1.
const MESSAGE_BYTES = 24;
const KIND_BYTES = 8;
const MAGIC = 'LCOW';
// A guest that is up may still lose the first HELO with the bytes of the session before: it is not made to wait for long.
const FIRST_RESEND_MS = 4;

type Kind = 'HELO' | 'ECHO' | 'STRT' | 'REDY';

export interface HandshakeOptions {
  /** Gives up; the connection is left to the caller. */
  readonly signal?: AbortSignal | undefined;
  /** Host: most milliseconds between two HELO. Default 50. */
  readonly resendMs?: number;
  /** Host: milliseconds from STRT after which a new attempt begins. Default 1000 times the emulation factor. */
  readonly readyMs?: number;
}

function message(kind: Kind, nonce: Buffer): Buffer {
  return Buffer.concat([Buffer.from(MAGIC + kind, 'latin1'), nonce], MESSAGE_BYTES);
}

/**
 * Begins a session on a connection that may still carry bytes of an earlier one (docs/protocol.md, section 1).
 * The host tries until it succeeds, the connection ends or the signal fires: bound it with a deadline. The `guest` role
 * is for a guest in the same process, in tests.
 * @returns The connection, paused; its next byte is the session's first.
 * @throws TransportError `closed` when the connection ends; LcowError CANCELLED or the signal's own LcowError.
 */
export async function handshake(
  duplex: Duplex,
  role: 'host' | 'guest',
  options: HandshakeOptions = {},
): Promise<Duplex> {
  const side = role === 'host' ? new HostSide(duplex, options) : new GuestSide(duplex);
  try {
    await abortable(side.done, options.signal);
  } finally {
    side.stop();
  }
  return duplex;
}

/** Reads the connection and keeps the bytes not yet understood. */
abstract class Side {
  readonly done: Promise<void>;
  readonly #stopFollowing: () => void;
  #resolve!: () => void;
  #reject!: (error: Error) => void;
  #held: Buffer = Buffer.alloc(0);
  #stopped = false;

  constructor(protected readonly duplex: Duplex) {
    this.done = new Promise((resolve, reject) => {
      this.#resolve = resolve;
      this.#reject = reject;
    });
    // Whoever gave up does not wait for it any more.
    this.done.catch(() => {});
    this.#stopFollowing = follow(duplex, {
      chunk: (bytes) => {
        this.#held = this.#held.length === 0 ? bytes : Buffer.concat([this.#held, bytes]);
        // Whatever is no message is dropped by understand(), so what is held stays short of one message.
        while (!this.#stopped) {
          const rest = this.understand(this.#held);
          if (!rest) break;
          this.#held = rest;
        }
        if (!this.#stopped && this.#held.length >= MESSAGE_BYTES)
          this.#held = Buffer.from(this.#held.subarray(this.#held.length - MESSAGE_BYTES + 1));
      },
      over: (cause) =>
        this.#reject(new TransportError('closed', 'The connection ended before a session had begun.', cause)),
    });
  }

  /** Handles the first message in the bytes and returns what follows it; undefined when there is none. */
  protected abstract understand(bytes: Buffer): Buffer | undefined;

  /** The session begins with `rest`. */
  protected begin(rest: Buffer): void {
    this.stop();
    if (rest.length > 0) this.duplex.unshift(rest);
    this.#resolve();
  }

  stop(): void {
    if (this.#stopped) return;
    this.#stopped = true;
    this.#stopFollowing();
    // Paused, so that nothing is lost before the session's own reader is there.
    this.duplex.pause();
  }
}

class HostSide extends Side {
  #nonce = randomBytes(MESSAGE_BYTES - KIND_BYTES);
  #awaited: 'ECHO' | 'REDY' = 'ECHO';
  #timer: NodeJS.Timeout | undefined;
  #pauseMs = FIRST_RESEND_MS;
  readonly #resendMs: number;
  readonly #readyMs: number;

  constructor(duplex: Duplex, options: HandshakeOptions) {
    super(duplex);
    this.#resendMs = options.resendMs ?? 50;
    this.#readyMs = options.readyMs ?? 1000 * timeoutFactor();
    this.#hello();
  }

  #hello(): void {
    // While the guest does not take bytes (it is still booting), one HELO waiting is enough.
    if (this.duplex.writableLength === 0) this.duplex.write(message('HELO', this.#nonce));
    this.#timer = setTimeout(() => this.#hello(), Math.min(this.#pauseMs, this.#resendMs));
    this.#pauseMs *= 2;
  }

  #restart(): void {
    this.#nonce = randomBytes(MESSAGE_BYTES - KIND_BYTES);
    this.#awaited = 'ECHO';
    this.#pauseMs = FIRST_RESEND_MS;
    this.#hello();
  }

  protected override understand(bytes: Buffer): Buffer | undefined {
    const at = bytes.indexOf(message(this.#awaited, this.#nonce));
    if (at < 0) return undefined;
    const rest = bytes.subarray(at + MESSAGE_BYTES);
    clearTimeout(this.#timer);
    if (this.#awaited === 'REDY') {
      this.begin(rest);
      return undefined;
    }
    this.#awaited = 'REDY';
    this.duplex.write(message('STRT', this.#nonce));
    this.#timer = setTimeout(() => this.#restart(), this.#readyMs);
    return rest;
  }

  override stop(): void {
    clearTimeout(this.#timer);
    super.stop();
  }
}

class GuestSide extends Side {
  #nonce: Buffer | undefined;

  protected override understand(bytes: Buffer): Buffer | undefined {
    for (let at = bytes.indexOf(MAGIC); at >= 0; at = bytes.indexOf(MAGIC, at + 1)) {
      const found = bytes.subarray(at, at + MESSAGE_BYTES);
      if (found.length < MESSAGE_BYTES) return undefined;
      const kind = found.toString('latin1', MAGIC.length, KIND_BYTES);
      const nonce = found.subarray(KIND_BYTES);
      const rest = bytes.subarray(at + MESSAGE_BYTES);
      if (kind === 'HELO') {
        this.#nonce = Buffer.from(nonce);
        this.duplex.write(message('ECHO', nonce));
        return rest;
      }
      if (kind === 'STRT' && this.#nonce?.equals(nonce)) {
        this.duplex.write(message('REDY', nonce));
        this.begin(rest);
        return undefined;
      }
      if (kind === 'STRT') return rest;
    }
    return undefined;
  }
}
