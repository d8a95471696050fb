/** Sets bits `from` to `to` (exclusive) of a bitmap, lowest bit of each byte first. */
export function setBits(bitmap: Uint8Array, from: number, to: number): void {
  if (from >= to) return;
  const firstByte = from >>> 3;
  const lastByte = (to - 1) >>> 3;
  const first = (0xff << (from & 7)) & 0xff;
  const last = 0xff >>> (7 - ((to - 1) & 7));
  if (firstByte === lastByte) {
    bitmap[firstByte]! |= first & last;
    return;
  }
  bitmap[firstByte]! |= first;
  bitmap.fill(0xff, firstByte + 1, lastByte);
  bitmap[lastByte]! |= last;
}

/** Clears bits `from` to `to` (exclusive). */
export function clearBits(bitmap: Uint8Array, from: number, to: number): void {
  if (from >= to) return;
  const firstByte = from >>> 3;
  const lastByte = (to - 1) >>> 3;
  const first = (0xff << (from & 7)) & 0xff;
  const last = 0xff >>> (7 - ((to - 1) & 7));
  if (firstByte === lastByte) {
    bitmap[firstByte]! &= ~(first & last);
    return;
  }
  bitmap[firstByte]! &= ~first;
  bitmap.fill(0, firstByte + 1, lastByte);
  bitmap[lastByte]! &= ~last;
}
