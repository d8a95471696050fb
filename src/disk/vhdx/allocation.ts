import { ALIGNMENT_BYTES, SECTOR_BITMAP_BYTES } from './layout.js';
import type { VhdxFile } from './reader.js';

/** A stretch of the file that nothing refers to; `end` is exclusive. */
export interface FreeSpan {
  readonly start: number;
  readonly end: number;
}

/** What of a file is in use. */
export interface SpaceMap {
  /** Ascending: the stretches between structures and blocks. */
  readonly free: readonly FreeSpan[];
  /** Where the last structure or block ends, at a whole mebibyte. The file may be longer, or cut off in its last block. */
  readonly end: number;
}

/** Finds out what of the file is in use, by regions, log and BAT. */
export function mapSpace(file: VhdxFile): SpaceMap {
  const { blocks, metadata, regions } = file;
  const starts = Float64Array.from([
    ...regions.filter(({ length }) => length > 0).map(({ start }) => start),
    ...blocks.offsets,
    ...blocks.bitmaps.values(),
  ]).sort();
  const lengths = new Map<number, number>(regions.map(({ start, length }) => [start, length]));
  for (const offset of blocks.bitmaps.values()) lengths.set(offset, SECTOR_BITMAP_BYTES);
  const free: FreeSpan[] = [];
  let end = 0;
  for (const start of starts) {
    if (start > end) free.push({ start: end, end: start });
    end = Math.max(end, start + (lengths.get(start) ?? metadata.blockSizeBytes));
  }
  return { free, end: alignUp(end) };
}

/** Gives out places for blocks: unused ones inside of the file first, then behind its end. */
export class Allocator {
  /** Free places, to be used from the end. */
  readonly #free: number[] = [];
  #end: number;

  constructor(
    file: VhdxFile,
    private readonly blockSizeBytes: number,
  ) {
    const { free, end } = mapSpace(file);
    this.#end = Math.max(end, alignUp(file.fileBytes));
    for (const span of free)
      for (let at = alignUp(span.start); at + blockSizeBytes <= span.end; at += blockSizeBytes) {
        // Enough for now; the others are found at the next opening.
        if (this.#free.length === MAXIMUM_FREE) return;
        this.#free.push(at);
      }
  }

  /** A place for a block. `isNew` when it is behind the end of the file, which must be extended: it then reads as zeros. */
  next(): { offset: number; isNew: boolean } {
    const offset = this.#free.shift();
    if (offset !== undefined) return { offset, isNew: false };
    const end = this.#end;
    this.#end += this.blockSizeBytes;
    return { offset: end, isNew: true };
  }
}

/** Bounds what is kept of a file that is nearly all gap. */
const MAXIMUM_FREE = 4096;

export function alignUp(offset: number): number {
  return Math.ceil(offset / ALIGNMENT_BYTES) * ALIGNMENT_BYTES;
}
