import { LcowError } from '../../errors/index.js';
import { HEADER, SPARSE_EXTENSION, SPARSE_NUMBER_BYTES, TAR_BLOCK_BYTES } from './format.js';
import { parseDecimal, parseNumber } from './numbers.js';

/**
 * Sparse files as GNU tar stores them: a map of the ranges that hold data, and those ranges one behind the other.
 * Formats: "old GNU" (typeflag S) and pax 0.0, 0.1 and 1.0 (GNU tar manual, "Storing Sparse Files").
 */
export interface SparseMap {
  /** Offset and length of each range of data, alternating, ascending, not overlapping. */
  readonly ranges: number[];
  /** Size of the file with its holes. */
  readonly realSize: number;
}

/** Reads the pairs of one old-GNU block. Returns whether an extension block follows. */
export function readSparsePairs(
  block: Uint8Array,
  base: number,
  layout: typeof HEADER | typeof SPARSE_EXTENSION,
  into: number[],
  where: string,
): boolean {
  for (let pair = 0; pair < layout.sparseMap.pairs; pair += 1) {
    const at = base + layout.sparseMap.at + pair * 2 * SPARSE_NUMBER_BYTES;
    // An unused pair is NULs.
    if (block[at] === 0) break;
    const offset = parseNumber(block, at, SPARSE_NUMBER_BYTES);
    const length = parseNumber(block, at + SPARSE_NUMBER_BYTES, SPARSE_NUMBER_BYTES);
    if (offset === undefined || length === undefined)
      throw new LcowError('BAD_TAR', `A sparse map is malformed ${where}.`);
    into.push(offset, length);
  }
  return block[base + layout.sparseIsExtended.at] !== 0;
}

/** What the GNU.sparse.* records of pax formats 0.0 to 1.0 say. In 1.0 the ranges are in the data, see {@link SparseMapReader}. */
export interface PaxSparse {
  readonly name: string | undefined;
  readonly realSize: number;
  /** undefined: format 1.0. */
  readonly ranges: number[] | undefined;
}

/** Interprets GNU.sparse.* records. @throws LcowError BAD_TAR. */
export function readPaxSparse(records: readonly (readonly [string, string])[], where: string): PaxSparse {
  let name: string | undefined;
  let realSize: number | undefined;
  let major = 0;
  const ranges: number[] = [];
  const number = (text: string): number => {
    const value = parseDecimal(text);
    if (value === undefined) throw new LcowError('BAD_TAR', `A sparse map is malformed ${where}.`);
    return value;
  };
  for (const [key, value] of records) {
    if (key === 'name') name = value;
    else if (key === 'size' || key === 'realsize') realSize = number(value);
    else if (key === 'major') major = number(value);
    else if (key === 'offset' || key === 'numbytes') ranges.push(number(value));
    else if (key === 'map' && value !== '') ranges.push(...value.split(',').map(number));
  }
  if (realSize === undefined || major > 1)
    throw new LcowError('BAD_TAR', `A sparse file is of an unknown format ${where}.`);
  return { name, realSize, ranges: major === 1 ? undefined : ranges };
}

/** Checks a map against the sizes. @throws LcowError BAD_TAR. */
export function checkedSparseMap(ranges: number[], realSize: number, storedBytes: number, where: string): SparseMap {
  let end = 0;
  let sum = 0;
  if (ranges.length % 2 !== 0) throw new LcowError('BAD_TAR', `A sparse map is malformed ${where}.`);
  for (let i = 0; i < ranges.length; i += 2) {
    const offset = ranges[i]!;
    const length = ranges[i + 1]!;
    if (offset < end || length < 0 || offset + length > realSize)
      throw new LcowError('BAD_TAR', `A sparse map does not fit its file ${where}.`);
    end = offset + length;
    sum += length;
  }
  if (sum !== storedBytes) throw new LcowError('BAD_TAR', `A sparse map does not match its data ${where}.`);
  return { ranges, realSize };
}

/**
 * The map at the start of a pax 1.0 sparse file: decimal numbers, one a line - the count of ranges, then offset and
 * length of each - padded to a block.
 */
export class SparseMapReader {
  readonly ranges: number[] = [];
  bytesRead = 0;
  #expected: number | undefined;
  #digits = '';

  constructor(private readonly where: string) {}

  /** Takes one block; returns whether the map is complete. */
  push(block: Buffer): boolean {
    this.bytesRead += TAR_BLOCK_BYTES;
    const lines = (this.#digits + block.toString('latin1')).split('\n');
    const rest = lines.pop()!;
    for (const line of lines) {
      const value = parseDecimal(line);
      if (value === undefined || (this.#expected === undefined && value > 1_000_000)) throw this.#malformed();
      if (this.#expected === undefined) this.#expected = value * 2;
      else this.ranges.push(value);
      if (this.ranges.length === this.#expected) return true;
    }
    if (rest.length > 20) throw this.#malformed();
    this.#digits = rest;
    return false;
  }

  #malformed(): LcowError {
    return new LcowError('BAD_TAR', `A sparse map is malformed ${this.where}.`);
  }
}
