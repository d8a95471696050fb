import type { BlockSource } from './block-source.js';

/** A multiple of every structure that is viewed, so that none lies across pages. */
const PAGE_BYTES = 256 * 1024;
const PAGES = 48;

/**
 * The pages of a disk that were read last, 12 MiB at most. What is there is had without a promise.
 * Views stay good: a page that is dropped is not used again.
 */
export class PageCache {
  /** In order of use, the oldest first. */
  readonly #pages = new Map<number, Buffer>();
  /** The page being read before it is asked for. */
  #ahead: { readonly number: number; readonly page: Promise<Buffer> } | undefined;
  #lastLoaded = -1;
  #lastNumber = -1;
  #lastPage: Buffer = Buffer.alloc(0);

  constructor(readonly source: BlockSource) {}

  /** The bytes, or undefined unless all of them are in one page that is here. */
  peek(offset: number, length: number): Buffer | undefined {
    const number = Math.floor(offset / PAGE_BYTES);
    if (number !== this.#lastNumber) {
      const page = this.#pages.get(number);
      if (!page) return undefined;
      this.#pages.delete(number);
      this.#pages.set(number, page);
      this.#lastNumber = number;
      this.#lastPage = page;
    }
    const start = offset - number * PAGE_BYTES;
    return start + length <= this.#lastPage.length ? this.#lastPage.subarray(start, start + length) : undefined;
  }

  /** The bytes, at once when they are here. The caller has seen to it that they lie inside of the disk. */
  read(offset: number, length: number): Buffer | Promise<Buffer> {
    return this.peek(offset, length) ?? this.#load(offset, length);
  }

  async #load(offset: number, length: number): Promise<Buffer> {
    const first = Math.floor(offset / PAGE_BYTES);
    const last = Math.floor((offset + length - 1) / PAGE_BYTES);
    if (first === last) {
      const page = await this.#page(first);
      return page.subarray(offset - first * PAGE_BYTES, offset - first * PAGE_BYTES + length);
    }
    const joined = Buffer.allocUnsafe(length);
    for (let number = first; number <= last; number += 1) {
      const start = number * PAGE_BYTES;
      (await this.#page(number)).copy(joined, Math.max(0, start - offset), Math.max(0, offset - start));
    }
    return joined;
  }

  async #page(number: number): Promise<Buffer> {
    const found = this.#pages.get(number);
    if (found) return found;
    const page = await (this.#ahead?.number === number ? this.#ahead.page : this.#read(number));
    // Whoever reads page after page has the next one read meanwhile.
    const next = number + 1;
    if (this.#lastLoaded === number - 1 && next * PAGE_BYTES < this.source.sizeBytes && !this.#pages.has(next)) {
      this.#ahead = { number: next, page: this.#read(next) };
      // Looked at when the page is asked for, or never: then its failure is nobody's.
      this.#ahead.page.catch(() => undefined);
    }
    this.#lastLoaded = number;
    for (const oldest of this.#pages.keys()) {
      if (this.#pages.size < PAGES) break;
      this.#pages.delete(oldest);
    }
    this.#pages.set(number, page);
    return page;
  }

  async #read(number: number): Promise<Buffer> {
    const start = number * PAGE_BYTES;
    const page = Buffer.allocUnsafeSlow(Math.min(PAGE_BYTES, this.source.sizeBytes - start));
    await this.source.readInto(page, start);
    return page;
  }
}
