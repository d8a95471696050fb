import type { FileHandle } from 'node:fs/promises';
import { LcowError } from '../../errors/index.js';
import type { FileView, StructureValues } from '../structure/index.js';
import { crc32cWithoutField } from './crc32c.js';
import { writeFully } from './file-access.js';
import { ALIGNMENT_BYTES, HEADER, HEADER_OFFSETS } from './layout.js';
import { badVhdx } from './region.js';

export type HeaderValues = StructureValues<typeof HEADER.fields>;

/** The header that counts. */
export interface CurrentHeader {
  readonly header: HeaderValues;
  /** Which of the two copies it is. */
  readonly slot: 0 | 1;
  readonly good: readonly [boolean, boolean];
}

/** 2.2.2: the current header is the valid one with the higher sequence number. */
export async function readHeaders(file: FileView, source: string): Promise<CurrentHeader> {
  const first = await readHeader(file, source, HEADER_OFFSETS[0]);
  const second = await readHeader(file, source, HEADER_OFFSETS[1]);
  const good = [!(first instanceof LcowError), !(second instanceof LcowError)] as const;
  if (first instanceof LcowError) {
    if (second instanceof LcowError) throw first;
    return { header: second, slot: 1, good };
  }
  if (second instanceof LcowError) return { header: first, slot: 0, good };
  // disk2vhd writes two equal headers; different ones of one age leave no current header.
  if (first.sequenceNumber === second.sequenceNumber && !HEADER.encode(first).equals(HEADER.encode(second)))
    throw badVhdx(
      source,
      HEADER.name,
      'sequenceNumber',
      HEADER_OFFSETS[1] + HEADER.fields.sequenceNumber.offset,
      'is that of the other header, which differs',
    );
  return first.sequenceNumber >= second.sequenceNumber
    ? { header: first, slot: 0, good }
    : { header: second, slot: 1, good };
}

async function readHeader(file: FileView, source: string, offset: number): Promise<HeaderValues | LcowError> {
  const block = await file.read(offset, HEADER.size);
  const bad = (field: keyof typeof HEADER.fields, reason: string): LcowError =>
    badVhdx(source, HEADER.name, field, offset + HEADER.fields[field].offset, reason);
  const values = HEADER.decode(block);
  if (values.signature !== 'head') return bad('signature', 'is not "head"');
  if (values.checksum !== crc32cWithoutField(block, HEADER.fields.checksum.offset))
    return bad('checksum', 'is not that of the bytes');
  if (values.version !== 1) return bad('version', `is ${values.version}, not 1`);
  if (values.logVersion !== 0) return bad('logVersion', `is ${values.logVersion}, not 0`);
  if (values.logLength % ALIGNMENT_BYTES !== 0) return bad('logLength', `is ${values.logLength}, not whole mebibytes`);
  if (values.logOffset % BigInt(ALIGNMENT_BYTES) !== 0n || values.logOffset > BigInt(Number.MAX_SAFE_INTEGER))
    return bad('logOffset', `is ${values.logOffset}, not at a mebibyte of the file`);
  return values;
}

/**
 * Changes fields of the header (2.2.2.1): writes the copy that is not current, which thereby becomes current, and then
 * the other one, each made stable before the next. A crash leaves one of them whole.
 * @returns the header as it now is.
 */
export async function updateHeaders(
  file: FileHandle,
  current: Pick<CurrentHeader, 'header' | 'slot'>,
  changes: Partial<Pick<HeaderValues, 'fileWriteGuid' | 'dataWriteGuid' | 'logGuid'>>,
): Promise<CurrentHeader> {
  let header = current.header;
  let slot = current.slot;
  for (let round = 0; round < 2; round++) {
    header = { ...header, ...changes, sequenceNumber: header.sequenceNumber + 1n };
    slot = slot === 0 ? 1 : 0;
    const block = HEADER.encode(header);
    const checksumAt = HEADER.fields.checksum.offset;
    header.checksum = crc32cWithoutField(block, checksumAt);
    block.writeUInt32LE(header.checksum, checksumAt);
    await writeFully(file, block, HEADER_OFFSETS[slot]);
    await file.datasync();
  }
  return { header, slot, good: [true, true] };
}
