/** GUIDs as VHDX stores them: the first three groups little-endian, the rest in printed order (MS-DTYP 2.3.4.2). */
import { createHash, randomUUID } from 'node:crypto';
import type { Field } from '../structure/index.js';

/** No GUID; in a header's LogGuid: the log is empty. */
export const ZERO_GUID = '00000000-0000-0000-0000-000000000000';

/** A field of 16 bytes, in code a lower-case string of the form 2dc27766-f623-4200-9d64-115e9bfd4a08. */
export function guid(offset: number): Field<string> {
  return {
    offset,
    size: 16,
    read(bytes, at) {
      const hex = (start: number, end: number): string => bytes.toString('hex', at + start, at + end);
      const first = bytes.readUInt32LE(at).toString(16).padStart(8, '0');
      const second = bytes
        .readUInt16LE(at + 4)
        .toString(16)
        .padStart(4, '0');
      const third = bytes
        .readUInt16LE(at + 6)
        .toString(16)
        .padStart(4, '0');
      return `${first}-${second}-${third}-${hex(8, 10)}-${hex(10, 16)}`;
    },
    write(bytes, at, _, value) {
      const digits = Buffer.from(value.replaceAll('-', ''), 'hex');
      if (digits.length !== 16) throw new RangeError(`"${value}" is not a GUID`);
      bytes.writeUInt32LE(digits.readUInt32BE(0), at);
      bytes.writeUInt16LE(digits.readUInt16BE(4), at + 4);
      bytes.writeUInt16LE(digits.readUInt16BE(6), at + 6);
      digits.copy(bytes, at + 8, 8);
    },
  };
}

/** A source of GUIDs: the same ones in the same order for one seed, random ones without. */
export function guidSource(seed: string | undefined): (purpose: string) => string {
  if (seed === undefined) return () => randomUUID();
  return (purpose) => {
    const digits = createHash('sha256').update(`${purpose}\0${seed}`).digest().subarray(0, 16);
    digits[6] = (digits[6]! & 0x0f) | 0x40; // version 4, variant 1: the form of a random one
    digits[8] = (digits[8]! & 0x3f) | 0x80;
    return digits.toString('hex').replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5');
  };
}
