import { once } from 'node:events';
import type { Readable, Writable } from 'node:stream';
import type { LogSource, LogWriter } from './log-file.js';

/**
 * Copies an output of a container to its log and, when one is attached, to a writer, no faster than the slower of the
 * two.
 * @param onBroken called once when the writer fails: a pipe whose reader has gone. Nothing more is copied then.
 */
export async function pumpOutput(
  source: Readable,
  name: LogSource,
  log: LogWriter,
  attached: Writable | undefined,
  onBroken: () => void,
): Promise<void> {
  const writer = { failed: false };
  const onError = (): void => {
    if (writer.failed) return;
    writer.failed = true;
    source.destroy();
    onBroken();
  };
  attached?.on('error', onError);
  try {
    for await (const chunk of source as AsyncIterable<Uint8Array>) {
      const flushed = attached && !attached.write(chunk) ? drained(attached) : undefined;
      await log.write(name, chunk);
      await flushed;
    }
  } catch (error) {
    if (!writer.failed) throw error;
  } finally {
    attached?.off('error', onError);
  }
}

/** Waits for room in a writer, or for its end: a closed one will not drain. */
async function drained(writer: Writable): Promise<void> {
  if (writer.destroyed) return;
  const abort = new AbortController();
  const options = { signal: abort.signal };
  // Both are race losers on purpose: the failure reaches the pump by the writer's own 'error' listener.
  const ignore = (): undefined => undefined;
  await Promise.race([once(writer, 'drain', options).catch(ignore), once(writer, 'close', options).catch(ignore)]);
  abort.abort();
}
