import { setTimeout as sleep } from 'node:timers/promises';
import { LcowError } from '../errors/index.js';
import { TIMEOUTS, timeoutMs, type TimeoutName } from './timeouts.js';

/** Node's longest timer; a longer one would fire at once. */
export const MAX_TIMER_MS = 2 ** 31 - 1;

/** @throws LcowError CANCELLED when the signal has fired. */
export function throwIfAborted(signal: AbortSignal | undefined): void {
  if (signal?.aborted) throw cancelled(signal);
}

function cancelled(signal: AbortSignal): LcowError {
  if (signal.reason instanceof LcowError) return signal.reason;
  return new LcowError('CANCELLED', 'The operation was cancelled.', { cause: signal.reason });
}

/** Settles as the promise does, or rejects with CANCELLED as soon as the signal fires. The promise itself goes on. */
export async function abortable<T>(promise: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  if (!signal) return promise;
  throwIfAborted(signal);
  let onAbort!: () => void;
  const aborted = new Promise<never>((_, reject) => {
    onAbort = () => {
      reject(cancelled(signal));
    };
    signal.addEventListener('abort', onAbort, { once: true });
  });
  try {
    return await Promise.race([promise, aborted]);
  } finally {
    signal.removeEventListener('abort', onAbort);
  }
}

/**
 * Runs an operation under a named time-out and the caller's signal. The operation gets a signal that fires on either.
 * @throws LcowError TIMED_OUT naming the operation and the variable that overrides the limit; CANCELLED.
 */
export async function withDeadline<T>(
  name: TimeoutName,
  operation: string,
  signal: AbortSignal | undefined,
  run: (signal: AbortSignal) => Promise<T>,
): Promise<T> {
  throwIfAborted(signal);
  const ms = timeoutMs(name);
  const deadline = new AbortController();
  const timer = setTimeout(() => {
    deadline.abort(
      new LcowError('TIMED_OUT', `${operation} did not finish within ${ms / 1000} s.`, {
        hint: `Set ${TIMEOUTS[name].env} to a larger number of seconds.`,
      }),
    );
  }, ms);
  const both = signal ? AbortSignal.any([signal, deadline.signal]) : deadline.signal;
  try {
    return await abortable(run(both), both);
  } finally {
    clearTimeout(timer);
  }
}

/**
 * Waits for a promise to settle, either way, but no longer than so many milliseconds.
 * @returns whether it has settled. The promise itself goes on.
 */
export async function settledWithin(promise: Promise<unknown>, ms: number): Promise<boolean> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<boolean>((resolve) => (timer = setTimeout(resolve, Math.min(ms, MAX_TIMER_MS), false)));
  const settled = promise.then(
    () => true,
    () => true,
  );
  try {
    return await Promise.race([settled, late]);
  } finally {
    clearTimeout(timer);
  }
}

/** Waits; rejects with CANCELLED when the signal fires. For polling where the other side offers no event. */
export async function delay(ms: number, signal?: AbortSignal): Promise<void> {
  try {
    await sleep(ms, undefined, signal ? { signal } : {});
  } catch (error) {
    throwIfAborted(signal);
    throw error;
  }
}
