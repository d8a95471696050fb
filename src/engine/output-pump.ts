import { once } from 'node:events';
import type { Readable, Writable } from 'node:stream';
import { LcowError } from '../errors/index.js';
import type { LogSource, LogWriter } from './log-file.js';

/** Where an output of a container goes. */
export interface OutputTargets {
  readonly log: Pick<LogWriter, 'write'>;
  readonly attached?: Writable | undefined;
  /** Called once when `attached` fails: a pipe whose reader has gone. Nothing more is copied then. */
  readonly onBroken: () => void;
}

/**
 * Copies an output of a container to its log and, when one is attached, to a writer, no faster than the slower of the
 * two.
 */
export class OutputPump {
  /** Settles when everything has been copied, or nothing more can be. */
  readonly done: Promise<void>;
  readonly #source: Readable;
  #limitMs: number | undefined;
  #waiting = false;
  #timer: NodeJS.Timeout | undefined;

  constructor(source: Readable, name: LogSource, targets: OutputTargets) {
    this.#source = source;
    this.done = this.#copy(name, targets);
    // Whoever wants to know asks for it after the container's exit.
    this.done.catch(() => undefined);
  }

  /**
   * Tells that the container has exited: from now on the guest has so long for each further piece of output, and for its
   * end. However long a slow writer takes does not count.
   */
  async finish(limitMs: number): Promise<void> {
    this.#limitMs = limitMs;
    if (this.#waiting) this.#limit();
    await this.done;
  }

  async #copy(name: LogSource, { log, attached, onBroken }: OutputTargets): Promise<void> {
    const writer = { broken: false };
    const onError = (): void => {
      if (writer.broken) return;
      writer.broken = true;
      this.#source.destroy();
      onBroken();
    };
    attached?.on('error', onError);
    try {
      const chunks = (this.#source as AsyncIterable<Uint8Array>)[Symbol.asyncIterator]();
      for (;;) {
        this.#limit();
        const next = await chunks.next();
        this.#waiting = false;
        clearTimeout(this.#timer);
        if (next.done) return;
        if (attached?.destroyed) onError();
        const flushed = attached && !attached.write(next.value) ? drained(attached) : undefined;
        await log.write(name, next.value);
        await flushed;
      }
    } catch (error) {
      if (!writer.broken) throw error;
    } finally {
      this.#waiting = false;
      clearTimeout(this.#timer);
      attached?.off('error', onError);
    }
  }

  #limit(): void {
    this.#waiting = true;
    const limitMs = this.#limitMs;
    if (limitMs === undefined) return;
    this.#timer = setTimeout(() => {
      const message = `The guest did not end the output of the container within ${limitMs / 1000} s of its exit.`;
      this.#source.destroy(new LcowError('TIMED_OUT', message));
    }, limitMs);
  }
}

/** Waits for room in a writer, or for its end: a closed one will not drain. */
async function drained(writer: Writable): Promise<void> {
  if (writer.destroyed) return;
  const abort = new AbortController();
  const options = { signal: abort.signal };
  // Both are race losers on purpose: the failure reaches the pump by the writer's own 'error' listener.
  await Promise.race([once(writer, 'drain', options).catch(ignore), once(writer, 'close', options).catch(ignore)]);
  abort.abort();
}

function ignore(): undefined {
  return undefined;
}
