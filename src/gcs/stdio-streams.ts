import type { MessageInitShape } from '@bufbuild/protobuf';
import { LcowError } from '../errors/index.js';
import type { Multiplexer, MuxStream } from '../ttrpc/index.js';
import type { Stdio } from './cow.js';
import type { StdioSchema } from './guest_pb.js';

/** Which standard streams a process gets. */
export interface StdioWish {
  readonly stdin?: boolean | undefined;
  readonly stdout?: boolean | undefined;
  readonly stderr?: boolean | undefined;
}

/** Bytes of each output that were taken before: where the guest goes on. */
export interface StdioOffsets {
  readonly stdoutBytes: number;
  readonly stderrBytes: number;
}

/** The streams of one process, open before the guest is asked to use them. */
export class StdioStreams {
  readonly #stdin: MuxStream | undefined;
  readonly #stdout: MuxStream | undefined;
  readonly #stderr: MuxStream | undefined;
  readonly #before: StdioOffsets;
  readonly stdio: Stdio;

  /**
   * @throws LcowError INVALID_ARGUMENT for a stderr beside a terminal; INVALID_STATE when too many streams are open;
   *   TransportError when the session is over.
   */
  constructor(mux: Multiplexer, wish: StdioWish, terminal: boolean, before?: StdioOffsets) {
    if (terminal && wish.stderr)
      throw new LcowError('INVALID_ARGUMENT', 'A process with a terminal has no stderr of its own.');
    this.#before = before ?? { stdoutBytes: 0, stderrBytes: 0 };
    try {
      this.#stdin = wish.stdin ? openInput(mux) : undefined;
      this.#stdout = wish.stdout ? openOutput(mux) : undefined;
      this.#stderr = wish.stderr ? openOutput(mux) : undefined;
    } catch (error) {
      this.destroy();
      throw error;
    }
    this.stdio = {
      ...(this.#stdin && { stdin: this.#stdin }),
      ...(this.#stdout && { stdout: this.#stdout }),
      ...(this.#stderr && { stderr: this.#stderr }),
    };
  }

  /** The streams as a request names them. */
  get message(): MessageInitShape<typeof StdioSchema> {
    return {
      stdinStream: this.#stdin?.id ?? 0,
      stdoutStream: this.#stdout?.id ?? 0,
      stderrStream: this.#stderr?.id ?? 0,
    };
  }

  /** Bytes of each output taken since the process began. */
  get consumed(): StdioOffsets {
    return {
      stdoutBytes: this.#before.stdoutBytes + (this.#stdout?.bytesConsumed ?? 0),
      stderrBytes: this.#before.stderrBytes + (this.#stderr?.bytesConsumed ?? 0),
    };
  }

  /** Resets what has not ended. */
  destroy(): void {
    for (const stream of [this.#stdin, this.#stdout, this.#stderr]) stream?.destroy();
  }
}

function openInput(mux: Multiplexer): MuxStream {
  const stream = mux.open();
  // Nothing comes this way but the guest's END.
  stream.resume();
  return stream;
}

function openOutput(mux: Multiplexer): MuxStream {
  const stream = mux.open();
  // Our END after the reader has taken everything tells the guest that it may forget what it kept.
  stream.once('end', () => stream.end());
  return stream;
}
