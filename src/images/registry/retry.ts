import { delay } from '../../lifetime/index.js';

/** How often and how patiently a request is repeated. */
export interface RetryPolicy {
  /** Attempts in all. */
  readonly attempts: number;
  /** Pause before the second attempt, in milliseconds; it doubles every time. */
  readonly baseDelayMs: number;
  /** Longest pause, in milliseconds. A registry that asks for a longer one is not waited for. */
  readonly maxDelayMs: number;
}

export const DEFAULT_RETRIES: RetryPolicy = { attempts: 5, baseDelayMs: 500, maxDelayMs: 60_000 };

/** Whether a status says that the same request may succeed later. */
export function isTransientStatus(status: number): boolean {
  return status === 429 || status === 408 || (status >= 500 && status !== 501 && status !== 505);
}

/**
 * Pauses before the next attempt.
 * @param attempt Attempts made so far, from 1.
 * @param retryAfterMs What the registry asked for.
 * @returns false when there is to be no further attempt.
 */
export async function pauseForRetry(
  policy: RetryPolicy,
  attempt: number,
  retryAfterMs: number | undefined,
  signal?: AbortSignal,
): Promise<boolean> {
  if (attempt >= policy.attempts || (retryAfterMs ?? 0) > policy.maxDelayMs) return false;
  const backoff = Math.min(policy.baseDelayMs * 2 ** (attempt - 1), policy.maxDelayMs);
  // Half of it by chance, so that many clients do not come back together.
  await delay(retryAfterMs ?? backoff * (0.5 + Math.random() / 2), signal);
  return true;
}

/** Retry-After in milliseconds: seconds or a date (RFC 9110, 10.2.3). */
export function parseRetryAfter(value: string | undefined, now: number = Date.now()): number | undefined {
  if (value === undefined) return undefined;
  if (/^\d{1,9}$/.test(value.trim())) return Number(value) * 1000;
  const date = Date.parse(value);
  return Number.isNaN(date) ? undefined : Math.max(0, date - now);
}
