import { LcowError } from '../../errors/index.js';
import type { FileView, StructureValues } from '../structure/index.js';
import { crc32c, crc32cWithoutField } from './crc32c.js';
import { ZERO_GUID } from './guid.js';
import {
  type HEADER,
  LOG_DATA_DESCRIPTOR,
  LOG_DATA_SECTOR,
  LOG_ENTRY_HEADER,
  LOG_SECTOR_BYTES,
  LOG_ZERO_DESCRIPTOR,
  MIB,
  REGION_TABLE_OFFSETS,
} from './layout.js';
import { LogOverlay, type LogUpdate } from './log-overlay.js';
import { badVhdx } from './region.js';

/** The log is held in memory while it is searched. Writers make it 1 MiB; the format knows no limit. */
const MAXIMUM_LOG_BYTES = 64 * MIB;
/** Writers hardly use zero descriptors; bounds the work of merging them. */
const MAXIMUM_ZERO_DESCRIPTORS = 65536;

const HEADER_DESCRIPTOR_OFFSET = LOG_ENTRY_HEADER.size;
const DESCRIPTOR_BYTES = LOG_ZERO_DESCRIPTOR.size;

/** What was found in the log. */
export interface LogState {
  /**
   * - empty: the header has no log GUID.
   * - unused: it has one, but no whole entry carries it. A crash while the first entry was being written leaves this.
   * - pending: there are updates that must be made before the file is used.
   */
  readonly kind: 'empty' | 'unused' | 'pending';
  /** Entries of the active sequence. */
  readonly entries: number;
  /** The file as it will be once its log was replayed; the file itself unless something is pending. */
  readonly view: FileView;
  /** Absent unless something is pending. */
  readonly overlay?: LogOverlay;
}

interface Entry {
  readonly header: StructureValues<typeof LOG_ENTRY_HEADER.fields>;
  readonly sequenceNumber: bigint;
  /** Bytes from the start of the log to this entry. */
  readonly start: number;
}

/**
 * Finds the active sequence of the log (2.3.3) and lays its updates over the file, which is not touched.
 *
 * Where a log GUID is set but no whole entry carries it, the specification calls the file corrupt. We take the log as
 * empty, as QEMU does: entries are stable before any update of theirs is made, so that no update can have been made,
 * and a scratch disk whose VM was killed stays readable.
 * @param source what to call the file in errors.
 * @throws LcowError BAD_VHDX when the file is shorter than its log says, or an update lies where none can be.
 */
export async function readLog(
  file: FileView,
  header: StructureValues<typeof HEADER.fields>,
  source: string,
): Promise<LogState> {
  if (header.logGuid === ZERO_GUID || header.logLength === 0)
    return { kind: header.logGuid === ZERO_GUID ? 'empty' : 'unused', entries: 0, view: file };
  const logStart = Number(header.logOffset);
  if (header.logLength > MAXIMUM_LOG_BYTES)
    throw badVhdx(source, 'header', 'logLength', logStart, `is ${header.logLength}, more than 64 MiB, and not empty`);
  const bytes = await file.read(logStart, header.logLength);
  if (bytes.length < header.logLength)
    throw badVhdx(source, 'log region', 'length', logStart, 'ends behind the end of the file');
  const log = new LogRing(bytes, header.logGuid);
  const sequence = log.activeSequence();
  if (sequence.length === 0) return { kind: 'unused', entries: 0, view: file };

  const head = sequence.at(-1)!.header;
  if (BigInt(file.sizeBytes) < head.flushedFileOffset)
    throw new LcowError(
      'BAD_VHDX',
      `${source} is not a good VHDX: it was cut off, having ${file.sizeBytes} bytes where its log was written for ` +
        `${head.flushedFileOffset}.`,
      { details: { part: 'log entry header', field: 'flushedFileOffset', offset: logStart + sequence.at(-1)!.start } },
    );
  let sizeBytes = Math.max(file.sizeBytes, safeOffset(head.lastFileOffset, 'lastFileOffset', logStart, source));
  const updates: LogUpdate[] = [];
  let zeroDescriptors = 0;
  for (const entry of sequence)
    for (const update of log.updates(entry)) {
      const isData = update.data !== undefined;
      if (!isData && ++zeroDescriptors > MAXIMUM_ZERO_DESCRIPTORS)
        throw badVhdx(source, 'log', 'zero descriptors', logStart, 'are more than a log can need');
      const offset = safeOffset(update.fileOffset, 'fileOffset', logStart + entry.start, source);
      const length = isData
        ? LOG_SECTOR_BYTES
        : safeOffset(update.zeroLength, 'zeroLength', logStart + entry.start, source);
      const end = offset + length;
      // Identifier and headers are not updated through the log (2.2.2), nor is the log itself.
      if (offset < REGION_TABLE_OFFSETS[0] || (offset < logStart + header.logLength && end > logStart))
        throw badVhdx(source, 'log', 'fileOffset', logStart + entry.start, `is ${offset}, over the headers or the log`);
      sizeBytes = Math.max(sizeBytes, end);
      updates.push(isData ? { offset, data: update.data } : { offset, zeroLength: length });
    }
  const overlay = new LogOverlay(file, updates, sizeBytes);
  return { kind: 'pending', entries: sequence.length, view: overlay, overlay };
}

/** What a file may be long at most: the largest disk and its tables, and some. */
const MAXIMUM_OFFSET = 2n ** 48n;

function safeOffset(value: bigint, field: string, at: number, source: string): number {
  if (value > MAXIMUM_OFFSET) throw badVhdx(source, 'log', field, at, `is ${value}, more than any file has`);
  return Number(value);
}

type RawUpdate =
  | { readonly fileOffset: bigint; readonly data: Buffer; readonly zeroLength?: undefined }
  | { readonly fileOffset: bigint; readonly zeroLength: bigint; readonly data?: undefined };

/** The ring buffer of the log, in memory. */
class LogRing {
  readonly #sectors: number;
  /** Entries are looked at once, whether good or not: sequences of a hostile log overlap. */
  readonly #entries = new Map<number, Entry | undefined>();

  constructor(
    private readonly bytes: Buffer,
    private readonly logGuid: string,
  ) {
    this.#sectors = bytes.length / LOG_SECTOR_BYTES;
  }

  /** The entries of the newest whole sequence, tail first; none when there is no such. */
  activeSequence(): Entry[] {
    let active: Entry[] = [];
    for (let sector = 0; sector < this.#sectors;) {
      const sequence: Entry[] = [];
      const starts = new Map<number, number>();
      let at = sector;
      for (;;) {
        const entry = this.#entryAt(at % this.#sectors);
        if (!entry || starts.has(entry.start)) break;
        const before = sequence.at(-1);
        if (before && entry.sequenceNumber !== before.sequenceNumber + 1n) break;
        starts.set(entry.start, sequence.length);
        sequence.push(entry);
        at += entry.header.entryLength / LOG_SECTOR_BYTES;
      }
      const head = sequence.at(-1);
      const tail = head && starts.get(head.header.tail);
      if (head === undefined || tail === undefined) {
        sector += 1;
        continue;
      }
      if (active.length === 0 || head.sequenceNumber > active.at(-1)!.sequenceNumber) active = sequence.slice(tail);
      sector = at;
    }
    return active;
  }

  /** The descriptors of a good entry. */
  *updates(entry: Entry): Generator<RawUpdate, void, undefined> {
    const { descriptorCount } = entry.header;
    const first = entry.start / LOG_SECTOR_BYTES;
    let dataSector = first + descriptorSectors(descriptorCount);
    for (let index = 0; index < descriptorCount; index++) {
      const at = this.#descriptorOffset(first, index);
      if (this.bytes.toString('latin1', at, at + 4) === 'zero') {
        const { fileOffset, zeroLength } = LOG_ZERO_DESCRIPTOR.decode(this.bytes, at);
        yield { fileOffset, zeroLength };
        continue;
      }
      const { fileOffset, leadingBytes, trailingBytes } = LOG_DATA_DESCRIPTOR.decode(this.bytes, at);
      const data = Buffer.from(this.#sector(dataSector++));
      data.set(leadingBytes, 0);
      data.set(trailingBytes, LOG_SECTOR_BYTES - trailingBytes.length);
      yield { fileOffset, data };
    }
  }

  #sector(number: number): Buffer {
    const at = (number % this.#sectors) * LOG_SECTOR_BYTES;
    return this.bytes.subarray(at, at + LOG_SECTOR_BYTES);
  }

  /** Descriptors follow the header and fill whole sectors after its own. */
  #descriptorOffset(first: number, index: number): number {
    const within = HEADER_DESCRIPTOR_OFFSET + index * DESCRIPTOR_BYTES;
    const sector = first + Math.floor(within / LOG_SECTOR_BYTES);
    return (sector % this.#sectors) * LOG_SECTOR_BYTES + (within % LOG_SECTOR_BYTES);
  }

  #entryAt(sector: number): Entry | undefined {
    if (!this.#entries.has(sector)) this.#entries.set(sector, this.#parse(sector));
    return this.#entries.get(sector);
  }

  /**
   * 2.3.1 and 2.3.2: an entry is good when all of its fields are. The cheap checks come first, and by them no good
   * entry can begin inside of another: so the checksums of a hostile log cost no more than its length.
   */
  #parse(sector: number): Entry | undefined {
    const start = sector * LOG_SECTOR_BYTES;
    if (this.bytes.readUInt32LE(start) !== LOGE) return undefined;
    const header = LOG_ENTRY_HEADER.decode(this.bytes, start);
    const { entryLength, descriptorCount, sequenceNumber, tail } = header;
    if (header.logGuid !== this.logGuid || sequenceNumber === 0n) return undefined;
    if (entryLength % LOG_SECTOR_BYTES !== 0 || entryLength > this.bytes.length) return undefined;
    if (tail % LOG_SECTOR_BYTES !== 0 || tail >= this.bytes.length) return undefined;
    const sectors = entryLength / LOG_SECTOR_BYTES;
    const forDescriptors = descriptorSectors(descriptorCount);
    if (forDescriptors > sectors) return undefined;
    let forData = 0;
    for (let index = 0; index < descriptorCount; index++) {
      const kind = this.#checkDescriptor(this.#descriptorOffset(sector, index), sequenceNumber);
      if (kind === undefined) return undefined;
      if (kind === 'desc') forData += 1;
    }
    if (forDescriptors + forData !== sectors) return undefined;
    for (let index = 0; index < forData; index++) {
      const data = this.#sector(sector + forDescriptors + index);
      if (data.readUInt32LE(0) !== DATA) return undefined;
      const high = data.readUInt32LE(LOG_DATA_SECTOR.fields.sequenceHigh.offset);
      const low = data.readUInt32LE(LOG_DATA_SECTOR.fields.sequenceLow.offset);
      if (((BigInt(high) << 32n) | BigInt(low)) !== sequenceNumber) return undefined;
    }
    return this.#checksum(sector, sectors) === header.checksum ? { header, sequenceNumber, start } : undefined;
  }

  #checkDescriptor(at: number, sequenceNumber: bigint): 'zero' | 'desc' | undefined {
    const signature = this.bytes.toString('latin1', at, at + 4);
    if (signature === 'zero') {
      const zero = LOG_ZERO_DESCRIPTOR.decode(this.bytes, at);
      const isAligned = zero.zeroLength % SECTOR === 0n && zero.fileOffset % SECTOR === 0n;
      return isAligned && zero.sequenceNumber === sequenceNumber ? 'zero' : undefined;
    }
    if (signature !== 'desc') return undefined;
    const data = LOG_DATA_DESCRIPTOR.decode(this.bytes, at);
    return data.fileOffset % SECTOR === 0n && data.sequenceNumber === sequenceNumber ? 'desc' : undefined;
  }

  #checksum(sector: number, sectors: number): number {
    const first = Buffer.from(this.#sector(sector));
    first.fill(0, LOG_ENTRY_HEADER.fields.checksum.offset, LOG_ENTRY_HEADER.fields.checksum.offset + 4);
    let crc = crc32c(first);
    for (let index = 1; index < sectors; index++) crc = crc32c(this.#sector(sector + index), crc);
    return crc;
  }
}

const SECTOR = BigInt(LOG_SECTOR_BYTES);
const LOGE = Buffer.from('loge').readUInt32LE();
const DATA = Buffer.from('data').readUInt32LE();

/** Sectors that header and descriptors take. */
function descriptorSectors(descriptorCount: number): number {
  return Math.ceil((HEADER_DESCRIPTOR_OFFSET + descriptorCount * DESCRIPTOR_BYTES) / LOG_SECTOR_BYTES);
}

/**
 * A log entry that is a sequence of its own, to stand at the start of the log: its updates are made all or none.
 * @param updates sectors of 4096 bytes by file offset.
 */
export function encodeLogEntry(
  updates: ReadonlyMap<number, Buffer>,
  values: { logGuid: string; sequenceNumber: bigint; fileBytes: number },
): Buffer {
  const { logGuid, sequenceNumber, fileBytes } = values;
  const forDescriptors = descriptorSectors(updates.size);
  const entry = Buffer.alloc((forDescriptors + updates.size) * LOG_SECTOR_BYTES);
  LOG_ENTRY_HEADER.encode({
    signature: 'loge',
    entryLength: entry.length,
    tail: 0,
    sequenceNumber,
    descriptorCount: updates.size,
    logGuid,
    flushedFileOffset: BigInt(fileBytes),
    lastFileOffset: BigInt(fileBytes),
  }).copy(entry);
  let index = 0;
  for (const [offset, data] of updates) {
    LOG_DATA_DESCRIPTOR.encode({
      signature: 'desc',
      leadingBytes: data.subarray(0, 8),
      trailingBytes: data.subarray(LOG_SECTOR_BYTES - 4),
      fileOffset: BigInt(offset),
      sequenceNumber,
    }).copy(entry, HEADER_DESCRIPTOR_OFFSET + index * DESCRIPTOR_BYTES);
    LOG_DATA_SECTOR.encode({
      signature: 'data',
      sequenceHigh: Number(sequenceNumber >> 32n),
      data: data.subarray(8, LOG_SECTOR_BYTES - 4),
      sequenceLow: Number(sequenceNumber & 0xffffffffn),
    }).copy(entry, (forDescriptors + index) * LOG_SECTOR_BYTES);
    index += 1;
  }
  const checksumAt = LOG_ENTRY_HEADER.fields.checksum.offset;
  entry.writeUInt32LE(crc32cWithoutField(entry, checksumAt), checksumAt);
  return entry;
}
