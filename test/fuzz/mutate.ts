import type { Random } from './random.js';

/** Values at which parsers break: borders of types, of signs and of sectors. */
const VALUES = [0n, 1n, 2n, 7n, 8n, 0x7fn, 0x80n, 0xffn, 511n, 512n, 4095n, 4096n, 0x7fffn, 0x8000n, 0xffffn].concat(
  [20n, 31n, 32n, 40n, 48n, 52n, 53n, 62n, 63n].flatMap((bits) => [2n ** bits - 1n, 2n ** bits, 2n ** bits + 4096n]),
  [2n ** 64n - 1n, 2n ** 64n - 512n],
);

/** Where a file has content, by its 64-byte lines: most of a disk is zeros, and mutating them finds nothing. */
export function interestingLines(bytes: Buffer): number[] {
  const lines: number[] = [];
  const zeros = Buffer.alloc(64);
  for (let at = 0; at < bytes.length; at += 64)
    if (!bytes.subarray(at, at + 64).equals(zeros.subarray(0, bytes.length - at))) lines.push(at);
  return lines;
}

/** Damages a copy of `seed` in one to five places. */
export function mutate(seed: Buffer, lines: readonly number[], random: Random): Buffer {
  let bytes = Buffer.from(seed);
  for (let count = 1 + random.below(5); count > 0; count--) {
    const at = Math.min(
      bytes.length - 1,
      random.once(8) ? random.below(bytes.length) : random.pick(lines) + random.below(80),
    );
    if (at < 0) return bytes;
    const length = Math.min(bytes.length - at, 1 + random.below(random.once(4) ? 4096 : 32));
    switch (random.below(8)) {
      case 0:
        bytes[at]! ^= 1 << random.below(8);
        break;
      case 1:
        bytes[at] = random.below(256);
        break;
      case 2:
      case 3:
      case 4: {
        const size = random.pick([1, 2, 4, 8]);
        const value = BigInt.asUintN(size * 8, random.pick(VALUES) + BigInt(random.below(3)) - 1n);
        const digits = Buffer.from(value.toString(16).padStart(size * 2, '0'), 'hex');
        if (random.once(2)) digits.reverse();
        // Fields are aligned to their size.
        digits.copy(bytes, at - (at % size));
        break;
      }
      case 5:
        bytes.copyWithin(at, random.pick(lines), Math.min(bytes.length, random.pick(lines) + length));
        break;
      case 6:
        bytes.fill(random.once(2) ? 0 : 0xff, at, at + length);
        break;
      case 7:
        if (random.once(6)) bytes = bytes.subarray(0, at);
        break;
    }
  }
  return bytes;
}
