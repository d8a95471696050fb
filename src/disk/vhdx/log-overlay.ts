import type { FileView } from '../structure/index.js';
import { LOG_SECTOR_BYTES } from './layout.js';

/** One update of a log: a sector of data, or zeros. Offsets and lengths are multiples of 4096. */
export type LogUpdate =
  { readonly offset: number; readonly data: Buffer } | { readonly offset: number; readonly zeroLength: number };

/** A stretch of zeros, `end` exclusive. */
interface Span {
  start: number;
  end: number;
}

/**
 * A file with the updates of its log laid over it: what the file will be once the log was replayed. Later updates win.
 * What is kept is bounded by the log: a sector for each data descriptor, and zeros as merged stretches.
 */
export class LogOverlay implements FileView {
  /** The sectors with data, by number in the file. */
  readonly #sectors = new Map<number, Buffer>();
  /** Ascending, apart from each other. */
  readonly #zeros: Span[] = [];

  /**
   * @param updates in the order they are to be made.
   * @param sizeBytes of the file when all is done; no update reaches beyond.
   */
  constructor(
    private readonly base: FileView,
    updates: readonly LogUpdate[],
    readonly sizeBytes: number,
  ) {
    // From the last to the first: what has an answer already is not asked again.
    for (let index = updates.length - 1; index >= 0; index--) {
      const update = updates[index]!;
      if ('data' in update) {
        const sector = update.offset / LOG_SECTOR_BYTES;
        if (!this.#sectors.has(sector) && !this.#isZero(update.offset)) this.#sectors.set(sector, update.data);
      } else if (update.zeroLength > 0) {
        this.#addZeros(update.offset, update.offset + update.zeroLength);
      }
    }
  }

  async read(offset: number, length: number): Promise<Buffer> {
    const end = Math.min(offset + length, this.sizeBytes);
    if (end <= offset) return Buffer.alloc(0);
    const below = await this.base.read(offset, end - offset);
    const result = below.length === end - offset ? below : Buffer.concat([below], end - offset);
    for (let index = this.#firstEndingAfter(offset); index < this.#zeros.length; index++) {
      const span = this.#zeros[index]!;
      if (span.start >= end) break;
      result.fill(0, Math.max(span.start, offset) - offset, Math.min(span.end, end) - offset);
    }
    if (this.#sectors.size > 0)
      for (let sector = Math.floor(offset / LOG_SECTOR_BYTES); sector * LOG_SECTOR_BYTES < end; sector++) {
        const at = sector * LOG_SECTOR_BYTES;
        this.#sectors.get(sector)?.copy(result, Math.max(at - offset, 0), Math.max(offset - at, 0), end - at);
      }
    return result;
  }

  /** What is to be written into the file, zeros first and data then; zeros behind its end are left out. */
  *writes(): Generator<LogUpdate, void, undefined> {
    for (const { start, end } of this.#zeros) {
      const inFile = Math.min(end, this.base.sizeBytes);
      if (inFile > start) yield { offset: start, zeroLength: inFile - start };
    }
    for (const [sector, data] of this.#sectors) yield { offset: sector * LOG_SECTOR_BYTES, data };
  }

  #isZero(offset: number): boolean {
    const span = this.#zeros[this.#firstEndingAfter(offset)];
    return span !== undefined && span.start <= offset;
  }

  /** The number of the first stretch that ends behind an offset. */
  #firstEndingAfter(offset: number): number {
    let low = 0;
    let high = this.#zeros.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.#zeros[middle]!.end > offset) high = middle;
      else low = middle + 1;
    }
    return low;
  }

  #addZeros(start: number, end: number): void {
    // Sectors that are there already come from later updates and stay: reading lays them over the zeros.
    const first = this.#firstEndingAfter(start - 1);
    let last = first;
    const merged: Span = { start, end };
    for (; last < this.#zeros.length && this.#zeros[last]!.start <= end; last++) {
      merged.start = Math.min(merged.start, this.#zeros[last]!.start);
      merged.end = Math.max(merged.end, this.#zeros[last]!.end);
    }
    this.#zeros.splice(first, last - first, merged);
  }
}
