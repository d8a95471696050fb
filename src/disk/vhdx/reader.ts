import type { FileHandle } from 'node:fs/promises';
import { LcowError } from '../../errors/index.js';
import { readAt, type StructureValues } from '../structure/index.js';
import { crc32cWithoutField } from './crc32c.js';
import { ZERO_GUID } from './guid.js';
import {
  ALIGNMENT_BYTES,
  FILE_IDENTIFIER,
  HEADER,
  HEADER_OFFSETS,
  HEADER_SECTION_BYTES,
  MAXIMUM_TABLE_ENTRIES,
  REGION_TABLE_BYTES,
  REGION_TABLE_ENTRY,
  REGION_TABLE_HEADER,
  REGION_TABLE_OFFSETS,
  REGIONS,
} from './layout.js';
import { readBlockTable, type BlockTable } from './block-table.js';
import { readMetadata, type VhdxMetadata } from './metadata.js';
import { badVhdx, type Region } from './region.js';

/** A VHDX whose structures were found good; see {@link readVhdx}. */
export interface VhdxFile {
  /** What the writer called itself. Not trustworthy: any text up to 256 characters. */
  readonly creator: string;
  /** The current header (2.2.2). */
  readonly header: StructureValues<typeof HEADER.fields>;
  /** Which copies of header and region table are good: one damaged copy of each does not hurt. */
  readonly copies: {
    readonly headers: readonly [boolean, boolean];
    readonly regionTables: readonly [boolean, boolean];
  };
  /**
   * Whether the log holds what is not yet in the file: its writer died. Until it is replayed, which QEMU does when it
   * opens the file for writing, the BAT may be out of date, and its blocks are not checked against each other.
   */
  readonly logPending: boolean;
  readonly metadata: VhdxMetadata;
  readonly blocks: BlockTable;
  readonly fileBytes: number;
}

/**
 * Reads the structures of a VHDX and checks all of them: signatures, checksums, alignment, that regions and blocks lie
 * inside of the file and do not overlap. At most 8 bytes are kept for each block that is present.
 * @param source what to call the file in errors.
 * @throws LcowError BAD_VHDX naming structure, field and offset; also for differencing files.
 */
export async function readVhdx(file: FileHandle, source: string): Promise<VhdxFile> {
  const fileBytes = (await file.stat()).size;
  if (fileBytes < HEADER_SECTION_BYTES)
    throw new LcowError(
      'BAD_VHDX',
      `${source} is not a VHDX: it has ${fileBytes} bytes, and the header section alone has ${HEADER_SECTION_BYTES}.`,
      { details: { fileBytes } },
    );
  const identifier = FILE_IDENTIFIER.decode(await readAt(file, 0, FILE_IDENTIFIER.size));
  if (identifier.signature !== 'vhdxfile')
    throw badVhdx(source, FILE_IDENTIFIER.name, 'signature', 0, 'is not "vhdxfile"');
  const creator = Buffer.from(identifier.creator).toString('utf16le').replace(/\0.*$/su, '');

  const { header, good: headers } = await readHeaders(file, source);
  const log: Region = { name: 'log', start: Number(header.logOffset), length: header.logLength };
  const { regions, good: regionTables } = await readRegions(file, source);
  const metadataRegion = regions.find(({ name }) => name === 'metadata');
  const batRegion = regions.find(({ name }) => name === 'BAT');
  if (!metadataRegion || !batRegion)
    throw badVhdx(
      source,
      'region table',
      'entries',
      REGION_TABLE_OFFSETS[0],
      `name no ${metadataRegion ? 'BAT' : 'metadata'} region`,
    );
  const occupied: Region[] = [{ name: 'header section', start: 0, length: HEADER_SECTION_BYTES }, log, ...regions];
  checkPlacement(source, occupied, fileBytes);

  const metadata = await readMetadata(file, source, metadataRegion);
  const logPending = header.logGuid !== ZERO_GUID;
  const blocks = await readBlockTable(file, source, {
    region: batRegion,
    metadata,
    occupied,
    fileBytes,
    trusted: !logPending,
  });
  return { creator, header, copies: { headers, regionTables }, logPending, metadata, blocks, fileBytes };
}

type HeaderValues = StructureValues<typeof HEADER.fields>;

/** 2.2.2: the current header is the valid one with the higher sequence number. */
async function readHeaders(
  file: FileHandle,
  source: string,
): Promise<{ header: HeaderValues; good: readonly [boolean, boolean] }> {
  const first = await readHeader(file, source, HEADER_OFFSETS[0]);
  const second = await readHeader(file, source, HEADER_OFFSETS[1]);
  const good = [!(first instanceof LcowError), !(second instanceof LcowError)] as const;
  if (first instanceof LcowError) {
    if (second instanceof LcowError) throw first;
    return { header: second, good };
  }
  if (second instanceof LcowError) return { header: first, good };
  // disk2vhd writes two equal headers; different ones of one age leave no current header.
  if (first.sequenceNumber === second.sequenceNumber && !HEADER.encode(first).equals(HEADER.encode(second)))
    throw badVhdx(
      source,
      HEADER.name,
      'sequenceNumber',
      HEADER_OFFSETS[1] + HEADER.fields.sequenceNumber.offset,
      'is that of the other header, which differs',
    );
  return { header: first.sequenceNumber >= second.sequenceNumber ? first : second, good };
}

async function readHeader(file: FileHandle, source: string, offset: number): Promise<HeaderValues | LcowError> {
  const block = await readAt(file, offset, HEADER.size);
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

/** 2.2.3: both tables are the same, unless a crash hit one of them. */
async function readRegions(
  file: FileHandle,
  source: string,
): Promise<{ regions: Region[]; good: readonly [boolean, boolean] }> {
  const first = await readRegionTable(file, source, REGION_TABLE_OFFSETS[0]);
  const second = await readRegionTable(file, source, REGION_TABLE_OFFSETS[1]);
  const good = [!(first instanceof LcowError), !(second instanceof LcowError)] as const;
  if (!(first instanceof LcowError)) return { regions: first, good };
  if (!(second instanceof LcowError)) return { regions: second, good };
  throw first;
}

async function readRegionTable(file: FileHandle, source: string, offset: number): Promise<Region[] | LcowError> {
  const table = await readAt(file, offset, REGION_TABLE_BYTES);
  const head = REGION_TABLE_HEADER.decode(table);
  const bad = (field: keyof typeof REGION_TABLE_HEADER.fields, reason: string): LcowError =>
    badVhdx(source, REGION_TABLE_HEADER.name, field, offset + REGION_TABLE_HEADER.fields[field].offset, reason);
  if (head.signature !== 'regi') return bad('signature', 'is not "regi"');
  if (head.checksum !== crc32cWithoutField(table, REGION_TABLE_HEADER.fields.checksum.offset))
    return bad('checksum', 'is not that of the bytes');
  if (head.entryCount > MAXIMUM_TABLE_ENTRIES)
    return bad('entryCount', `is ${head.entryCount}, more than ${MAXIMUM_TABLE_ENTRIES}`);
  const regions: Region[] = [];
  const seen = new Set<string>();
  for (let index = 0; index < head.entryCount; index++) {
    const at = REGION_TABLE_HEADER.size + index * REGION_TABLE_ENTRY.size;
    const entry = REGION_TABLE_ENTRY.decode(table, at);
    const badEntry = (field: keyof typeof REGION_TABLE_ENTRY.fields, reason: string): LcowError =>
      badVhdx(
        source,
        `${REGION_TABLE_ENTRY.name} ${index}`,
        field,
        offset + at + REGION_TABLE_ENTRY.fields[field].offset,
        reason,
      );
    if (seen.has(entry.guid)) return badEntry('guid', 'is there twice');
    seen.add(entry.guid);
    const name = entry.guid === REGIONS.bat ? 'BAT' : entry.guid === REGIONS.metadata ? 'metadata' : entry.guid;
    if (name === entry.guid && entry.required & 1) return badEntry('guid', `${entry.guid} is required and unknown`);
    if (entry.fileOffset % BigInt(ALIGNMENT_BYTES) !== 0n || entry.fileOffset > BigInt(Number.MAX_SAFE_INTEGER))
      return badEntry('fileOffset', `is ${entry.fileOffset}, not at a mebibyte of the file`);
    if (entry.length === 0 || entry.length % ALIGNMENT_BYTES !== 0)
      return badEntry('length', `is ${entry.length}, not whole mebibytes`);
    regions.push({ name, start: Number(entry.fileOffset), length: entry.length, declaredAt: offset + at });
  }
  return regions;
}

/** 2.1: nothing overlaps and all of it is in the file. */
function checkPlacement(source: string, regions: readonly Region[], fileBytes: number): void {
  const sorted = [...regions].sort((one, other) => one.start - other.start);
  let end = 0;
  let before = '';
  for (const { name, start, length, declaredAt } of sorted) {
    const at = declaredAt ?? HEADER_OFFSETS[0];
    if (length === 0) continue;
    if (start < end)
      throw badVhdx(source, `${name} region`, 'offset', at, `is ${start}, inside of the ${before} region`);
    end = start + length;
    before = name;
    if (end > fileBytes)
      throw badVhdx(
        source,
        `${name} region`,
        'length',
        at,
        `ends at ${end}, behind the end of the file at ${fileBytes}`,
      );
  }
}
