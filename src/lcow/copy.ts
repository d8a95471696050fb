import type { Readable, Writable } from 'node:stream';
import { LcowError } from '../errors/index.js';

/** Options of {@link copyBytes}. */
export interface CopyOptions {
  /** Stop after this many bytes and leave the rest in the source; 0 or undefined: to the end. */
  limitBytes?: number | undefined;
  signal?: AbortSignal | undefined;
  /** Called for each chunk given to the sink, with its size. */
  onBytes?: ((bytes: number) => void) | undefined;
}

/** A copy that failed, and on which side: a sink that is gone means something else than a source that broke. */
export class CopyError extends Error {
  readonly side: 'source' | 'sink';
  constructor(side: 'source' | 'sink', cause: unknown) {
    super(cause instanceof Error ? cause.message : String(cause), { cause });
    this.name = 'CopyError';
    this.side = side;
  }
}

/**
 * Copies bytes with back-pressure and ends or destroys neither stream, so that the caller decides what the end of one
 * means for the other. Holds no more than what the two streams buffer. The source is left paused.
 * @returns The number of bytes given to the sink.
 * @throws CopyError naming the side that failed or closed early; the signal's reason as LcowError CANCELLED.
 */
export function copyBytes(source: Readable, sink: Writable, options: CopyOptions = {}): Promise<number> {
  const { limitBytes, signal, onBytes } = options;
  let copied = 0;
  return new Promise((resolve, reject) => {
    const stop = (settle: () => void): void => {
      source.off('data', onData).off('end', onEnd).off('close', onSourceClose).off('error', onSourceError);
      sink.off('drain', onDrain).off('close', onSinkClose).off('finish', onSinkClose).off('error', onSinkError);
      signal?.removeEventListener('abort', onAbort);
      // Paused, a stream of this process such as its stdin no longer keeps it alive.
      source.pause();
      settle();
    };
    const fail = (side: 'source' | 'sink', cause: unknown): void => {
      stop(() => {
        reject(new CopyError(side, cause));
      });
    };
    const succeed = (): void => {
      stop(() => {
        resolve(copied);
      });
    };

    const onData = (data: Buffer | string): void => {
      let chunk = typeof data === 'string' ? Buffer.from(data) : data;
      if (limitBytes && copied + chunk.length > limitBytes) {
        const taken = limitBytes - copied;
        // After pause, or the stream would hand the rest out again at once.
        source.pause();
        source.unshift(chunk.subarray(taken));
        chunk = chunk.subarray(0, taken);
      }
      copied += chunk.length;
      const room = sink.write(chunk);
      onBytes?.(chunk.length);
      if (limitBytes && copied >= limitBytes) succeed();
      else if (!room) source.pause();
    };
    const onEnd = (): void => {
      succeed();
    };
    const onDrain = (): void => {
      source.resume();
    };
    const onSourceClose = (): void => {
      fail('source', closedEarly());
    };
    const onSourceError = (error: unknown): void => {
      fail('source', error);
    };
    const onSinkClose = (): void => {
      fail('sink', closedEarly());
    };
    const onSinkError = (error: unknown): void => {
      fail('sink', error);
    };
    const onAbort = (): void => {
      const reason: unknown = signal?.reason;
      stop(() => {
        reject(
          reason instanceof LcowError
            ? reason
            : new LcowError('CANCELLED', 'The copy was cancelled.', { cause: reason }),
        );
      });
    };

    if (signal?.aborted) onAbort();
    else if (sink.destroyed || sink.writableEnded) fail('sink', sink.errored ?? closedEarly());
    else if (source.readableEnded) succeed();
    else if (source.destroyed) fail('source', source.errored ?? closedEarly());
    else {
      source.on('end', onEnd).on('close', onSourceClose).on('error', onSourceError);
      sink.on('drain', onDrain).on('close', onSinkClose).on('finish', onSinkClose).on('error', onSinkError);
      signal?.addEventListener('abort', onAbort);
      source.on('data', onData);
      if (!sink.writableNeedDrain) source.resume();
      else source.pause();
    }
  });
}

function closedEarly(): Error {
  // The code that Node's own stream functions give.
  return Object.assign(new Error('the stream was closed early'), { code: 'ERR_STREAM_PREMATURE_CLOSE' });
}
