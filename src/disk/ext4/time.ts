/**
 * Times of inodes ("Inode Timestamps"): 32 signed bits of seconds, and a second word whose two lowest bits extend them
 * upwards (so that they reach from 1901 to 2446) and whose upper 30 bits are the nanoseconds.
 */
const EARLIEST = -(2 ** 31);
const LATEST = 2 ** 34 - 2 ** 31 - 1;

/** The classic word. Times out of range become the nearest one, as the kernel does it. */
export function timeSeconds(seconds: number): number {
  return clamp(seconds) >>> 0;
}

/** The extra word. */
export function timeExtra(seconds: number, nanoseconds: number): number {
  const clamped = clamp(seconds);
  if (clamped !== seconds) return epoch(clamped);
  return (nanoseconds * 4 + epoch(clamped)) >>> 0;
}

function epoch(seconds: number): number {
  return ((seconds - (seconds | 0)) / 2 ** 32) & 3;
}

function clamp(seconds: number): number {
  return seconds < EARLIEST ? EARLIEST : seconds > LATEST ? LATEST : seconds;
}
