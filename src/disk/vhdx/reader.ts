import type { FileHandle } from 'node:fs/promises';
import { LcowError } from '../../errors/index.js';
import { viewFile, type FileView } from '../structure/index.js';
import { readBlockTable, type BlockTable } from './block-table.js';
import { crc32cWithoutField } from './crc32c.js';
import { readHeaders, type HeaderValues } from './headers.js';
import {
  ALIGNMENT_BYTES,
  FILE_IDENTIFIER,
  HEADER_OFFSETS,
  HEADER_SECTION_BYTES,
  MAXIMUM_TABLE_ENTRIES,
  REGION_TABLE_BYTES,
  REGION_TABLE_ENTRY,
  REGION_TABLE_HEADER,
  REGION_TABLE_OFFSETS,
  REGIONS,
} from './layout.js';
import { readLog, type LogState } from './log.js';
import { readMetadata, type VhdxMetadata } from './metadata.js';
import { badVhdx, type Region } from './region.js';

/** A VHDX whose structures were found good; see {@link readVhdx}. */
export interface VhdxFile {
  /** What the writer called itself. Not trustworthy: any text up to 256 characters. */
  readonly creator: string;
  /** The current header (2.2.2). */
  readonly header: HeaderValues;
  /** Which copy of the header is the current one. */
  readonly headerSlot: 0 | 1;
  /** Which copies of header and region table are good: one damaged copy of each does not hurt. */
  readonly copies: {
    readonly headers: readonly [boolean, boolean];
    readonly regionTables: readonly [boolean, boolean];
  };
  /**
   * Whether the log holds what is not yet in the file: its writer died. Everything here is what will be once it was
   * replayed.
   */
  readonly logPending: boolean;
  readonly log: LogState;
  /** Header section, log and the regions of the region table. */
  readonly regions: readonly Region[];
  readonly metadata: VhdxMetadata;
  readonly blocks: BlockTable;
  /** Size of the file, once the log was replayed. */
  readonly fileBytes: number;
}

/** The region of a name; {@link readVhdx} has seen to it that log, metadata and BAT are there. */
export function regionOf(file: Pick<VhdxFile, 'regions'>, name: 'log' | 'metadata' | 'BAT'): Region {
  return file.regions.find((region) => region.name === name)!;
}

/**
 * Reads the structures of a VHDX and checks all of them: signatures, checksums, alignment, that regions and blocks lie
 * inside of the file and do not overlap. A pending log counts as replayed; the file is not touched. At most 16 bytes
 * are kept for each block that is present.
 * @param source what to call the file in errors.
 * @param onBadBlock takes what is wrong in the BAT, in place of the first such error being thrown.
 * @throws LcowError BAD_VHDX naming structure, field and offset.
 */
export async function readVhdx(
  file: FileHandle,
  source: string,
  onBadBlock?: (error: LcowError) => void,
): Promise<VhdxFile> {
  const onDisk = await viewFile(file);
  if (onDisk.sizeBytes < HEADER_SECTION_BYTES)
    throw new LcowError(
      'BAD_VHDX',
      `${source} is not a VHDX: it has ${onDisk.sizeBytes} bytes, and the header section alone has ` +
        `${HEADER_SECTION_BYTES}.`,
      { details: { fileBytes: onDisk.sizeBytes } },
    );
  const identifier = FILE_IDENTIFIER.decode(await onDisk.read(0, FILE_IDENTIFIER.size));
  if (identifier.signature !== 'vhdxfile')
    throw badVhdx(source, FILE_IDENTIFIER.name, 'signature', 0, 'is not "vhdxfile"');
  const creator = Buffer.from(identifier.creator).toString('utf16le').replace(/\0.*$/su, '');

  const { header, slot, good: headers } = await readHeaders(onDisk, source);
  const fixedPlaces: Region[] = [
    { name: 'header section', start: 0, length: HEADER_SECTION_BYTES },
    { name: 'log', start: Number(header.logOffset), length: header.logLength },
  ];
  checkPlacement(source, fixedPlaces, onDisk.sizeBytes);
  const log = await readLog(onDisk, header, source);
  const { view } = log;

  const { regions: declared, good: regionTables } = await readRegions(view, source);
  const metadataRegion = declared.find(({ name }) => name === 'metadata');
  const batRegion = declared.find(({ name }) => name === 'BAT');
  if (!metadataRegion || !batRegion)
    throw badVhdx(
      source,
      'region table',
      'entries',
      REGION_TABLE_OFFSETS[0],
      `name no ${metadataRegion ? 'BAT' : 'metadata'} region`,
    );
  const regions = [...fixedPlaces, ...declared];
  checkPlacement(source, regions, view.sizeBytes);

  const metadata = await readMetadata(view, source, metadataRegion);
  const blocks = await readBlockTable(view, source, { region: batRegion, metadata, occupied: regions, onBadBlock });
  return {
    creator,
    header,
    headerSlot: slot,
    copies: { headers, regionTables },
    logPending: log.kind === 'pending',
    log,
    regions,
    metadata,
    blocks,
    fileBytes: view.sizeBytes,
  };
}

/** 2.2.3: both tables are the same, unless a crash hit one of them. */
async function readRegions(
  file: FileView,
  source: string,
): Promise<{ regions: Region[]; good: readonly [boolean, boolean] }> {
  const first = await readRegionTable(file, source, REGION_TABLE_OFFSETS[0]);
  const second = await readRegionTable(file, source, REGION_TABLE_OFFSETS[1]);
  const good = [!(first instanceof LcowError), !(second instanceof LcowError)] as const;
  if (!(first instanceof LcowError)) return { regions: first, good };
  if (!(second instanceof LcowError)) return { regions: second, good };
  throw first;
}

async function readRegionTable(file: FileView, source: string, offset: number): Promise<Region[] | LcowError> {
  const table = await file.read(offset, REGION_TABLE_BYTES);
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
