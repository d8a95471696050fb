import { LcowError } from '../errors/index.js';

/** A stack of releases. Set-up pushes, failure or end releases all of them in reverse order, trying every one. */
export class Scope implements AsyncDisposable {
  #releases: (() => unknown)[] = [];

  /** Adds a release; it runs before those added earlier. */
  defer(release: () => unknown): void {
    this.#releases.push(release);
  }

  /** Adds a resource and returns it. */
  use<T extends AsyncDisposable | Disposable>(resource: T): T {
    this.defer(() => (Symbol.asyncDispose in resource ? resource[Symbol.asyncDispose]() : resource[Symbol.dispose]()));
    return resource;
  }

  /** Hands all releases over to a new scope: what set-up made is now owned by the caller. */
  move(): Scope {
    const moved = new Scope();
    moved.#releases = this.#releases;
    this.#releases = [];
    return moved;
  }

  /**
   * Runs the releases, last added first. Idempotent.
   * @throws The single failure, or an AggregateError of all of them.
   */
  async release(): Promise<void> {
    const releases = this.#releases.reverse();
    this.#releases = [];
    await releaseAll(releases);
  }

  /**
   * Undoes a set-up that failed and throws its failure. What fails meanwhile is added to the `undoFailures` of an
   * LcowError and never takes its place.
   */
  async undo(failure: unknown): Promise<never> {
    try {
      await this.release();
    } catch (undoFailure) {
      if (failure instanceof LcowError) failure.undoFailures.push(undoFailure);
    }
    throw failure;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.release();
  }
}

/** Runs every function in order, whatever the ones before did; throws the single failure or an AggregateError. */
export async function releaseAll(releases: Iterable<() => unknown>): Promise<void> {
  const failures: unknown[] = [];
  for (const release of releases) {
    try {
      await release();
    } catch (failure) {
      failures.push(failure);
    }
  }
  if (failures.length === 1) throw failures[0];
  if (failures.length > 1) throw new AggregateError(failures, `${failures.length} resources could not be released`);
}
