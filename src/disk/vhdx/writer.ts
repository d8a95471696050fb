import { ftruncateSync, writeSync } from 'node:fs';
import { LcowError } from '../../errors/index.js';
import { isZero } from '../sparse/index.js';
import { crc32cWithoutField } from './crc32c.js';
import { guidSource, ZERO_GUID } from './guid.js';
import {
  ALIGNMENT_BYTES,
  BAT_ENTRY_BYTES,
  batGeometry,
  batIndex,
  FILE_IDENTIFIER,
  FILE_PARAMETERS,
  HEADER,
  HEADER_OFFSETS,
  HEADER_SECTION_BYTES,
  MAXIMUM_BLOCK_BYTES,
  MAXIMUM_DISK_BYTES,
  METADATA_ITEMS,
  METADATA_TABLE_BYTES,
  METADATA_TABLE_ENTRY,
  METADATA_TABLE_HEADER,
  MIB,
  MINIMUM_BLOCK_BYTES,
  PAYLOAD_BLOCK,
  REGION_TABLE_BYTES,
  REGION_TABLE_ENTRY,
  REGION_TABLE_HEADER,
  REGION_TABLE_OFFSETS,
  REGIONS,
  SECTOR_SIZE,
  VIRTUAL_DISK_ID,
  VIRTUAL_DISK_SIZE,
} from './layout.js';

export interface VhdxWriterOptions {
  /** Size of the disk: a multiple of 512 up to 64 TiB. */
  readonly virtualSizeBytes: number;
  /** Bytes of a payload block: a power of two from 1 to 256 MiB; 1 MiB, which gives the smallest file. */
  readonly blockSizeBytes?: number;
  /** Makes all GUIDs depend on this text alone, so that equal disks are equal files. Random without. */
  readonly seed?: string;
}

export interface VhdxWriterResult {
  /** Apparent size of the file. */
  readonly fileBytes: number;
  /** Payload blocks that are present. */
  readonly blocks: number;
}

const LOG_OFFSET = HEADER_SECTION_BYTES;
const LOG_BYTES = MIB;
const METADATA_OFFSET = LOG_OFFSET + LOG_BYTES;
const METADATA_BYTES = MIB;
const BAT_OFFSET = METADATA_OFFSET + METADATA_BYTES;
const BAT_PAGE_BYTES = 4096;
const LOGICAL_SECTOR_BYTES = 512;
const PHYSICAL_SECTOR_BYTES = 4096;

/**
 * Writes a dynamic VHDX. The disk is written in any order, a block comes into being with its first byte that is not
 * zero, and what was not written stays a hole of the file. Header, log, metadata and a BAT of up to 1 MiB take 4 MiB of
 * the file's length, less than any other writer we know; nearly all of it is a hole.
 *
 * The file identifier is written last: a file whose writer died is no VHDX. Calls are synchronous, since they only
 * fill the page cache; syncing is left to the owner of the file.
 */
export class VhdxWriter {
  readonly #file: number;
  readonly #virtualSizeBytes: number;
  readonly #blockSizeBytes: number;
  readonly #chunkRatio: number;
  readonly #batBytes: number;
  readonly #guidOf: (purpose: string) => string;
  /** Payload block to its place in the order of allocation. */
  readonly #blocks = new Map<number, number>();
  #finished = false;

  /**
   * @param file descriptor of an empty file, open for writing; it stays the caller's.
   * @throws LcowError INVALID_ARGUMENT
   */
  constructor(file: number, options: VhdxWriterOptions) {
    const { virtualSizeBytes, blockSizeBytes = MIB } = options;
    if (
      !Number.isSafeInteger(virtualSizeBytes) ||
      virtualSizeBytes <= 0 ||
      virtualSizeBytes > MAXIMUM_DISK_BYTES ||
      virtualSizeBytes % LOGICAL_SECTOR_BYTES !== 0
    )
      throw new LcowError(
        'INVALID_ARGUMENT',
        `A VHDX cannot hold a disk of ${virtualSizeBytes} bytes: it must be a multiple of 512 up to 64 TiB.`,
      );
    if (
      blockSizeBytes < MINIMUM_BLOCK_BYTES ||
      blockSizeBytes > MAXIMUM_BLOCK_BYTES ||
      !Number.isInteger(Math.log2(blockSizeBytes))
    )
      throw new LcowError(
        'INVALID_ARGUMENT',
        `A VHDX cannot have blocks of ${blockSizeBytes} bytes: the size must be a power of two from 1 to 256 MiB.`,
      );
    const { chunkRatio, entries } = batGeometry(virtualSizeBytes, blockSizeBytes, LOGICAL_SECTOR_BYTES);
    this.#file = file;
    this.#virtualSizeBytes = virtualSizeBytes;
    this.#blockSizeBytes = blockSizeBytes;
    this.#chunkRatio = chunkRatio;
    this.#batBytes = Math.ceil((entries * BAT_ENTRY_BYTES) / ALIGNMENT_BYTES) * ALIGNMENT_BYTES;
    this.#guidOf = guidSource(options.seed);
  }

  /**
   * Writes to the disk. Zeros for a block that is not there yet change nothing and take no space.
   * @throws LcowError INVALID_ARGUMENT outside of the disk; the errno error of the file.
   */
  write(offset: number, data: Uint8Array): void {
    if (this.#finished) throw new LcowError('CLOSED', 'The VHDX was already finished.');
    if (!Number.isSafeInteger(offset) || offset < 0 || offset + data.length > this.#virtualSizeBytes)
      throw new LcowError(
        'INVALID_ARGUMENT',
        `A write of ${data.length} bytes at ${offset} is outside of a disk of ${this.#virtualSizeBytes} bytes.`,
      );
    for (let done = 0; done < data.length;) {
      const block = Math.floor((offset + done) / this.#blockSizeBytes);
      const within = (offset + done) % this.#blockSizeBytes;
      const piece = data.subarray(done, done + this.#blockSizeBytes - within);
      if (this.#blocks.has(block) || !isZero(piece)) writeFully(this.#file, piece, this.#place(block) + within);
      done += piece.length;
    }
  }

  /** The file offset of a block, which is made if it is new. */
  #place(block: number): number {
    let order = this.#blocks.get(block);
    if (order === undefined) {
      order = this.#blocks.size;
      this.#blocks.set(block, order);
    }
    return BAT_OFFSET + this.#batBytes + order * this.#blockSizeBytes;
  }

  /** Writes metadata, BAT, headers and last the identifier. The writer is of no use afterwards. */
  finish(): VhdxWriterResult {
    if (this.#finished) throw new LcowError('CLOSED', 'The VHDX was already finished.');
    this.#finished = true;
    const fileBytes = BAT_OFFSET + this.#batBytes + this.#blocks.size * this.#blockSizeBytes;
    ftruncateSync(this.#file, fileBytes);
    this.#writeBat();
    writeFully(this.#file, this.#metadata(), METADATA_OFFSET);
    writeFully(this.#file, regionTable(this.#batBytes), REGION_TABLE_OFFSETS[0]);
    writeFully(this.#file, regionTable(this.#batBytes), REGION_TABLE_OFFSETS[1]);
    const fileWriteGuid = this.#guidOf('file write');
    const dataWriteGuid = this.#guidOf('data write');
    HEADER_OFFSETS.forEach((offset, index) => {
      // The second has the higher sequence number and is the current one.
      writeFully(this.#file, header(BigInt(index + 1), fileWriteGuid, dataWriteGuid), offset);
    });
    const creator = Buffer.alloc(FILE_IDENTIFIER.fields.creator.size);
    creator.write('lcow', 'utf16le');
    writeFully(this.#file, FILE_IDENTIFIER.encode({ signature: 'vhdxfile', creator }), 0);
    return { fileBytes, blocks: this.#blocks.size };
  }

  /** Only the pages of the BAT with present blocks are written: the others are zero, which says "not present". */
  #writeBat(): void {
    const pages = new Map<number, Buffer>();
    for (const block of this.#blocks.keys()) {
      const at = batIndex(block, this.#chunkRatio) * BAT_ENTRY_BYTES;
      const pageStart = at - (at % BAT_PAGE_BYTES);
      let page = pages.get(pageStart);
      if (!page) pages.set(pageStart, (page = Buffer.alloc(BAT_PAGE_BYTES)));
      // The offset is a multiple of 1 MiB, so its low 20 bits are free for the state.
      page.writeBigUInt64LE(BigInt(this.#place(block)) | BigInt(PAYLOAD_BLOCK.fullyPresent), at - pageStart);
    }
    for (const [pageStart, page] of pages) writeFully(this.#file, page, BAT_OFFSET + pageStart);
  }

  #metadata(): Buffer {
    const items = [
      [METADATA_ITEMS.fileParameters, FILE_PARAMETERS.encode({ blockSize: this.#blockSizeBytes, flags: 0 })],
      [METADATA_ITEMS.virtualDiskSize, VIRTUAL_DISK_SIZE.encode({ sizeBytes: BigInt(this.#virtualSizeBytes) })],
      [METADATA_ITEMS.virtualDiskId, VIRTUAL_DISK_ID.encode({ guid: this.#guidOf('virtual disk') })],
      [METADATA_ITEMS.logicalSectorSize, SECTOR_SIZE.encode({ sizeBytes: LOGICAL_SECTOR_BYTES })],
      [METADATA_ITEMS.physicalSectorSize, SECTOR_SIZE.encode({ sizeBytes: PHYSICAL_SECTOR_BYTES })],
    ] as const;
    const table = [METADATA_TABLE_HEADER.encode({ signature: 'metadata', entryCount: items.length })];
    let offset = METADATA_TABLE_BYTES;
    for (const [item, value] of items) {
      table.push(METADATA_TABLE_ENTRY.encode({ itemId: item.guid, offset, length: value.length, flags: item.flags }));
      offset += value.length;
    }
    const region = Buffer.alloc(offset);
    Buffer.concat(table).copy(region);
    Buffer.concat(items.map(([, value]) => value)).copy(region, METADATA_TABLE_BYTES);
    return region;
  }
}

function header(sequenceNumber: bigint, fileWriteGuid: string, dataWriteGuid: string): Buffer {
  return withChecksum(
    HEADER.encode({
      signature: 'head',
      sequenceNumber,
      fileWriteGuid,
      dataWriteGuid,
      logGuid: ZERO_GUID,
      logVersion: 0,
      version: 1,
      logLength: LOG_BYTES,
      logOffset: BigInt(LOG_OFFSET),
    }),
    HEADER.fields.checksum.offset,
  );
}

function regionTable(batBytes: number): Buffer {
  const table = Buffer.alloc(REGION_TABLE_BYTES);
  Buffer.concat([
    REGION_TABLE_HEADER.encode({ signature: 'regi', entryCount: 2 }),
    REGION_TABLE_ENTRY.encode({ guid: REGIONS.bat, fileOffset: BigInt(BAT_OFFSET), length: batBytes, required: 1 }),
    REGION_TABLE_ENTRY.encode({
      guid: REGIONS.metadata,
      fileOffset: BigInt(METADATA_OFFSET),
      length: METADATA_BYTES,
      required: 1,
    }),
  ]).copy(table);
  return withChecksum(table, REGION_TABLE_HEADER.fields.checksum.offset);
}

function withChecksum(block: Buffer, checksumOffset: number): Buffer {
  block.writeUInt32LE(crc32cWithoutField(block, checksumOffset), checksumOffset);
  return block;
}

function writeFully(file: number, data: Uint8Array, position: number): void {
  for (let done = 0; done < data.length;) done += writeSync(file, data, done, data.length - done, position + done);
}
