/**
 * On-disk structures declared once as data. A declaration lists each field with its byte offset as the specification
 * prints it; reading and writing are both derived from it, so that they cannot disagree.
 */
export { openDiskFile } from './open-disk-file.js';
export { readAt } from './read-at.js';
export { isTooMany, type DiskFinding } from './findings.js';
export { viewFile, type FileView } from './file-view.js';

/** Reads and writes one field. Offsets are in bytes from the start of the structure. */
export interface Field<T> {
  readonly offset: number;
  readonly size: number;
  read(bytes: Buffer, at: number, order: ByteOrder): T;
  write(bytes: Buffer, at: number, order: ByteOrder, value: T): void;
}

export type ByteOrder = 'big' | 'little';

/** The values of a structure, by field name. */
export type StructureValues<F> = { -readonly [K in keyof F]: F[K] extends Field<infer T> ? T : never };

export function u8(offset: number): Field<number> {
  return {
    offset,
    size: 1,
    read: (b, at) => b.readUInt8(at),
    write: (b, at, _, value) => void b.writeUInt8(value, at),
  };
}

export function u16(offset: number): Field<number> {
  return {
    offset,
    size: 2,
    read: (b, at, order) => (order === 'big' ? b.readUInt16BE(at) : b.readUInt16LE(at)),
    write: (b, at, order, value) => (order === 'big' ? b.writeUInt16BE(value, at) : b.writeUInt16LE(value, at)),
  };
}

export function u32(offset: number): Field<number> {
  return {
    offset,
    size: 4,
    read: (b, at, order) => (order === 'big' ? b.readUInt32BE(at) : b.readUInt32LE(at)),
    write: (b, at, order, value) => (order === 'big' ? b.writeUInt32BE(value, at) : b.writeUInt32LE(value, at)),
  };
}

/** A 64-bit field; a bigint, because a damaged file may hold any value. */
export function u64(offset: number): Field<bigint> {
  return {
    offset,
    size: 8,
    read: (b, at, order) => (order === 'big' ? b.readBigUInt64BE(at) : b.readBigUInt64LE(at)),
    write: (b, at, order, value) => (order === 'big' ? b.writeBigUInt64BE(value, at) : b.writeBigUInt64LE(value, at)),
  };
}

/** Raw bytes, always `size` of them. */
export function bytes(offset: number, size: number): Field<Uint8Array> {
  return {
    offset,
    size,
    read: (b, at) => Uint8Array.from(b.subarray(at, at + size)),
    write: (b, at, _, value) => {
      if (value.length !== size) throw new RangeError(`A field of ${size} bytes was given ${value.length}`);
      b.set(value, at);
    },
  };
}

/** Text of one byte a character, filled up with NUL bytes, which reading takes off again. */
export function text(offset: number, size: number): Field<string> {
  return {
    offset,
    size,
    read: (b, at) => b.toString('latin1', at, at + size).replace(/\0+$/, ''),
    write: (b, at, _, value) => {
      if (value.length > size) throw new RangeError(`A text of ${size} bytes was given ${value.length}`);
      b.fill(0, at, at + size).write(value, at, 'latin1');
    },
  };
}

/** A declared structure. */
export interface Structure<F> {
  /** Its name in the specification, for messages. */
  readonly name: string;
  readonly size: number;
  readonly fields: F;
  /** Reads all fields at an offset. @throws RangeError when the structure does not fit. */
  decode(source: Uint8Array, at?: number): StructureValues<F>;
  /** A new zero-filled buffer of `size` bytes with the given fields. */
  encode(values: Partial<StructureValues<F>>): Buffer;
}

/** Declares a structure. @throws Error when fields overlap or stand outside of it: a mistake in the declaration. */
export function structure<F extends Record<string, Field<never> | Field<unknown>>>(
  name: string,
  size: number,
  order: ByteOrder,
  fields: F,
): Structure<F> {
  let end = 0;
  for (const [key, field] of Object.entries(fields)) {
    if (field.offset < end || field.offset + field.size > size)
      throw new Error(`Structure ${name}: field ${key} overlaps its neighbour or the end`);
    end = field.offset + field.size;
  }
  const entries = Object.entries(fields) as [keyof F & string, Field<unknown>][];
  return {
    name,
    size,
    fields,
    decode(source, at = 0) {
      if (at < 0 || at + size > source.length) throw new RangeError(`Structure ${name} does not fit at ${at}`);
      const view = Buffer.from(source.buffer, source.byteOffset, source.byteLength);
      const values: Record<string, unknown> = {};
      for (const [key, field] of entries) values[key] = field.read(view, at + field.offset, order);
      return values as StructureValues<F>;
    },
    encode(values) {
      const target = Buffer.alloc(size);
      for (const [key, field] of entries) {
        const value = values[key];
        if (value !== undefined) field.write(target, field.offset, order, value);
      }
      return target;
    },
  };
}
