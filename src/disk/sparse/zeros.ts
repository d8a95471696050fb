const ZEROS = Buffer.alloc(64 * 1024);

/** Whether all bytes are zero. Compares with memcmp, far faster than a loop. */
export function isZero(data: Uint8Array): boolean {
  for (let at = 0; at < data.length; at += ZEROS.length) {
    const piece = data.subarray(at, at + ZEROS.length);
    // Most data that is not zero shows at once.
    if (piece[0] !== 0 || ZEROS.compare(piece, 0, piece.length, 0, piece.length) !== 0) return false;
  }
  return true;
}

/**
 * The runs of `data` that are not zero, as [start, end) pairs on multiples of `grain`; the last end may be the length.
 */
export function* nonZeroRuns(data: Uint8Array, grain: number): Generator<[start: number, end: number]> {
  let start = -1;
  for (let at = 0; at < data.length; at += grain) {
    const zero = isZero(data.subarray(at, at + grain));
    if (!zero && start < 0) start = at;
    else if (zero && start >= 0) {
      yield [start, at];
      start = -1;
    }
  }
  if (start >= 0) yield [start, data.length];
}
