/** Numbers in tar headers: octal text, GNU base 256, and the decimal times of pax. All return undefined when malformed. */

const SPACE = 0x20;
const ZERO = 0x30;

/**
 * A numeric header field: octal digits between blanks and NULs (empty means 0), or two's complement base 256 when the
 * first bit is set.
 */
export function parseNumber(block: Uint8Array, at: number, bytes: number): number | undefined {
  const first = block[at]!;
  if (first & 0x80) return parseBase256(block, at, bytes);
  const end = at + bytes;
  let i = at;
  while (i < end && block[i] === SPACE) i += 1;
  let value = 0;
  for (; i < end; i += 1) {
    const digit = block[i]! - ZERO;
    if (digit < 0 || digit > 7) break;
    value = value * 8 + digit;
  }
  for (; i < end; i += 1) {
    const rest = block[i];
    if (rest === 0) return value;
    if (rest !== SPACE) return undefined;
  }
  return value;
}

/** GNU: the first bit marks the encoding, the second is the sign. */
function parseBase256(block: Uint8Array, at: number, bytes: number): number | undefined {
  const negative = (block[at]! & 0x40) !== 0;
  let value = negative ? (block[at]! & 0x7f) - 0x80 : block[at]! & 0x7f;
  for (let i = at + 1; i < at + bytes; i += 1) {
    value = value * 256 + block[i]!;
    if (!Number.isSafeInteger(value)) return undefined;
  }
  return value;
}

/** A decimal number without sign, as pax has for sizes and ids. */
export function parseDecimal(text: string): number | undefined {
  if (!/^[0-9]{1,16}$/.test(text)) return undefined;
  const value = Number(text);
  return Number.isSafeInteger(value) ? value : undefined;
}

/** A pax time: decimal seconds with an optional fraction, of which nine digits count. */
export function parsePaxTime(text: string): { seconds: number; nanoseconds: number } | undefined {
  const match = /^(-?)([0-9]{1,15})(?:\.([0-9]*))?$/.exec(text);
  if (!match) return undefined;
  const seconds = Number(match[2]);
  const nanoseconds = Number((match[3] ?? '').slice(0, 9).padEnd(9, '0'));
  if (match[1] === '') return { seconds, nanoseconds };
  // The fraction counts up from the whole second below: -1.25 is -2 s + 0.75 s.
  return nanoseconds === 0
    ? { seconds: seconds === 0 ? 0 : -seconds, nanoseconds: 0 }
    : { seconds: -seconds - 1, nanoseconds: 1_000_000_000 - nanoseconds };
}

/**
 * Whether the checksum field holds the sum of all bytes, its own counted as blanks. Old archives summed signed bytes:
 * they pass too.
 */
export function checksumMatches(block: Uint8Array, at: number, stored: number): boolean {
  let sum = 0;
  for (let i = at; i < at + 512; i += 1) sum += block[i]!;
  let field = 0;
  for (let i = at + 148; i < at + 156; i += 1) field += block[i]!;
  sum += 8 * SPACE - field;
  if (sum === stored) return true;
  let high = 0;
  for (let i = at; i < at + 512; i += 1) if (block[i]! > 127 && (i < at + 148 || i >= at + 156)) high += 256;
  return sum - high === stored;
}
