// How far ids may run ahead of one that has not come: a peer opens streams from several threads.
const MAX_AHEAD = 1024;

/** The ids of one parity that a peer has used, in bounded memory although none may ever be used again. */
export class UsedIds {
  /** Every id below has been used. */
  #next: number;
  readonly #ahead = new Set<number>();

  constructor(first: number) {
    this.#next = first;
  }

  /** Marks an id as used. False when it was before, or when too many before it have been left out. */
  add(id: number): boolean {
    if (this.has(id)) return false;
    if (id !== this.#next) {
      if (this.#ahead.size >= MAX_AHEAD) return false;
      this.#ahead.add(id);
      return true;
    }
    do this.#next += 2;
    while (this.#ahead.delete(this.#next));
    return true;
  }

  has(id: number): boolean {
    return id < this.#next || this.#ahead.has(id);
  }
}
