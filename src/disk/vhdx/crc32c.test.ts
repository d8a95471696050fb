import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { crc32c, crc32cWithoutField } from './crc32c.js';

/** Bit by bit, as the polynomial is written. */
function slowly(data: Uint8Array): number {
  let crc = 0xffffffff;
  for (const byte of data) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0x82f63b78 : crc >>> 1;
  }
  return ~crc >>> 0;
}

describe('CRC-32C', () => {
  test.each([
    ['', 0],
    ['123456789', 0xe3069283], // the check value of the CRC catalogues
  ])('of "%s" is %i', (text, expected) => {
    expect(crc32c(Buffer.from(text))).toBe(expected);
  });

  // RFC 3720 B.4
  test.each([
    ['32 zeros', Buffer.alloc(32), 0x8a9136aa],
    ['32 ones', Buffer.alloc(32, 0xff), 0x62a8ab43],
    ['32 bytes counting up', Buffer.from(Array.from({ length: 32 }, (_, index) => index)), 0x46dd794e],
  ])('of %s is that of RFC 3720', (_, data, expected) => {
    expect(crc32c(data)).toBe(expected);
  });

  test('is that of a bit by bit calculation, in one piece or two', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 100 }), fc.nat(100), (data, cut) => {
        expect(crc32c(data)).toBe(slowly(data));
        expect(crc32c(data.subarray(cut), crc32c(data.subarray(0, cut)))).toBe(slowly(data));
      }),
      { seed: 1 },
    );
  });

  test('leaves the checksum field itself out of account', () => {
    const block = Buffer.from('head????the rest of the block');
    const zeroed = Buffer.from(block).fill(0, 4, 8);
    expect(crc32cWithoutField(block, 4)).toBe(slowly(zeroed));
  });
});
