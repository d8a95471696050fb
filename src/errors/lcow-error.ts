import { CATALOGUE, type ErrorCode } from './catalogue.js';

export interface LcowErrorOptions {
  /** What failed underneath. */
  cause?: unknown;
  /** What the user can do about it; the catalogue's hint when not given. */
  hint?: string;
  /** Facts a program or a user needs: a path, a digest, the console's last lines. */
  details?: Readonly<Record<string, unknown>>;
}

/**
 * The error of this library. `code` is stable and listed in docs/errors.md; the message is one sentence that says
 * which operation failed, on what, and why.
 */
export class LcowError extends Error {
  readonly code: ErrorCode;
  readonly hint: string | undefined;
  readonly details: Readonly<Record<string, unknown>>;
  /** What failed while the operation was being undone, and may have been left behind. */
  readonly undoFailures: unknown[] = [];

  constructor(code: ErrorCode, message: string, options: LcowErrorOptions = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.name = 'LcowError';
    this.code = code;
    this.hint = options.hint ?? CATALOGUE[code].hint;
    this.details = options.details ?? {};
  }
}

/** Whether a thrown value is an {@link LcowError}, optionally with one of the given codes. */
export function isLcowError(value: unknown, ...codes: ErrorCode[]): value is LcowError {
  return value instanceof LcowError && (codes.length === 0 || codes.includes(value.code));
}

/** The message of anything thrown. */
export function errorMessage(value: unknown): string {
  return value instanceof Error ? value.message : String(value);
}
