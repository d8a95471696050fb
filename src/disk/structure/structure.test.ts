import { describe, expect, test } from 'vitest';
import { bytes, structure, text, u16, u32, u64, u8 } from './index.js';

const FIELDS = { name: text(0, 4), small: u8(4), medium: u16(6), large: u32(8), huge: u64(12), raw: bytes(20, 2) };
const VALUES = {
  name: 'ab',
  small: 0xfe,
  medium: 0x0102,
  large: 0xf0000001,
  huge: 0xffffffffffffff01n,
  raw: Uint8Array.of(7, 8),
};

describe('A declared structure', () => {
  test.each([
    ['big', '61620000 fe00 0102 f0000001 ffffffffffffff01 0708 0000'],
    ['little', '61620000 fe00 0201 010000f0 01ffffffffffffff 0708 0000'],
  ] as const)('is written %s-endian as declared, and read back', (order, expected) => {
    const form = structure('example', 24, order, FIELDS);
    const encoded = form.encode(VALUES);
    expect(encoded.toString('hex')).toBe(expected.replaceAll(' ', ''));
    expect(form.decode(encoded)).toEqual(VALUES);
    expect(form.decode(Buffer.concat([Buffer.alloc(3), encoded]), 3)).toEqual(VALUES);
  });

  test('is not read where it does not fit', () => {
    const form = structure('example', 24, 'big', FIELDS);
    expect(() => form.decode(Buffer.alloc(23))).toThrow('does not fit');
    expect(() => form.decode(Buffer.alloc(24), 1)).toThrow('does not fit');
    expect(() => form.decode(Buffer.alloc(24), -1)).toThrow('does not fit');
  });

  test('takes no value of another size', () => {
    const form = structure('example', 24, 'big', FIELDS);
    expect(() => form.encode({ raw: Uint8Array.of(1) })).toThrow(RangeError);
    expect(() => form.encode({ name: 'abcde' })).toThrow(RangeError);
    expect(() => form.encode({ small: 256 })).toThrow(RangeError);
  });

  test('cannot have fields that overlap or stick out', () => {
    expect(() => structure('wrong', 8, 'big', { one: u32(0), two: u16(3) })).toThrow('two overlaps');
    expect(() => structure('wrong', 8, 'big', { one: u64(4) })).toThrow('one overlaps');
  });
});
