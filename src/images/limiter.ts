/** Lets at most so many operations run at once; the others wait their turn in order. */
export class Limiter {
  #free: number;
  readonly #waiting: (() => void)[] = [];

  constructor(limit: number) {
    this.#free = limit;
  }

  async run<T>(operation: () => Promise<T>): Promise<T> {
    if (this.#free > 0) this.#free--;
    else await new Promise<void>((resolve) => this.#waiting.push(resolve));
    try {
      return await operation();
    } finally {
      const next = this.#waiting.shift();
      if (next) next();
      else this.#free++;
    }
  }
}

/**
 * Runs all operations, giving each a signal that fires at the first failure, and settles only when none runs any more.
 * @throws The first failure.
 */
export async function allOrNone<T>(
  operations: readonly ((signal: AbortSignal) => Promise<T>)[],
  signal: AbortSignal | undefined,
): Promise<T[]> {
  const failed = new AbortController();
  const either = signal ? AbortSignal.any([signal, failed.signal]) : failed.signal;
  let first: { reason: unknown } | undefined;
  const settled = await Promise.allSettled(
    operations.map(async (operation) => {
      try {
        return await operation(either);
      } catch (reason) {
        first ??= { reason };
        failed.abort(reason);
        throw reason;
      }
    }),
  );
  if (first) throw first.reason;
  return settled.map((result) => (result as PromiseFulfilledResult<T>).value);
}
