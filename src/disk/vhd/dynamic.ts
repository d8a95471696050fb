/** The dynamic disk header of the VHD 1.0 specification, for reading: we never write dynamic VHDs. */
import type { FileHandle } from 'node:fs/promises';
import { readAt, structure, text, u32, u64 } from '../structure/index.js';
import { badVhdField, vhdChecksum, type VhdFooter } from './footer.js';

/** "Dynamic Disk Header Format", without the parent's fields, which only differencing disks use. Big-endian. */
export const DYNAMIC_HEADER = structure('dynamic disk header', 1024, 'big', {
  cookie: text(0, 8),
  dataOffset: u64(8),
  tableOffset: u64(16),
  headerVersion: u32(24),
  maxTableEntries: u32(28),
  blockSize: u32(32),
  checksum: u32(36),
});

/** The block allocation of a dynamic VHD. */
export interface DynamicVhd {
  readonly blockSizeBytes: number;
  readonly totalBlocks: number;
  readonly presentBlocks: number;
  /** The numbers of the present blocks, ascending. */
  readonly numbers: readonly number[];
  /** The file offset of the data of each block in `numbers`, behind its bitmap. */
  readonly offsets: readonly number[];
}

const SECTOR_BYTES = 512;
const BAT_ENTRY_BYTES = 4;
const NOT_PRESENT = 0xffffffff;
/** Bounds the BAT: the usual sizes are 512 KiB and 2 MiB. */
const MINIMUM_BLOCK_BYTES = 64 * 1024;
const PIECE_BYTES = 2 ** 20;

/**
 * Reads header and block allocation table of a dynamic VHD and checks that all blocks lie in the file.
 * @throws LcowError BAD_VHD naming field and offset.
 */
export async function readDynamicVhd(file: FileHandle, footer: VhdFooter, source: string): Promise<DynamicVhd> {
  const fileBytes = (await file.stat()).size;
  if (footer.dataOffset + BigInt(DYNAMIC_HEADER.size) > BigInt(fileBytes))
    throw badVhdField(source, 'hard disk footer', 'dataOffset', 16, `is ${footer.dataOffset}, outside of the file`);
  const start = Number(footer.dataOffset);
  const block = await readAt(file, start, DYNAMIC_HEADER.size);
  const header = DYNAMIC_HEADER.decode(block);
  const bad = (field: keyof typeof DYNAMIC_HEADER.fields, reason: string) =>
    badVhdField(source, DYNAMIC_HEADER.name, field, start + DYNAMIC_HEADER.fields[field].offset, reason);
  if (header.cookie !== 'cxsparse') throw bad('cookie', 'is not "cxsparse"');
  if (header.checksum !== vhdChecksum(block, DYNAMIC_HEADER.fields.checksum.offset))
    throw bad('checksum', 'is not that of the bytes');
  if (header.headerVersion >>> 16 !== 1) throw bad('headerVersion', `is ${header.headerVersion}`);
  const { blockSize } = header;
  if (blockSize < MINIMUM_BLOCK_BYTES || (blockSize & (blockSize - 1)) !== 0)
    throw bad('blockSize', `is ${blockSize}, not a power of two from 64 KiB`);
  const totalBlocks = Math.ceil(footer.virtualSizeBytes / blockSize);
  if (header.maxTableEntries < totalBlocks)
    throw bad('maxTableEntries', `is ${header.maxTableEntries}, too small for ${totalBlocks} blocks`);
  const tableBytes = totalBlocks * BAT_ENTRY_BYTES;
  if (header.tableOffset + BigInt(tableBytes) > BigInt(fileBytes))
    throw bad('tableOffset', `is ${header.tableOffset}, which puts the table outside of the file`);

  // In front of its data each block has a bitmap of its sectors, padded to whole sectors.
  const bitmapBytes = Math.ceil(blockSize / SECTOR_BYTES / 8 / SECTOR_BYTES) * SECTOR_BYTES;
  const tableStart = Number(header.tableOffset);
  const numbers: number[] = [];
  const offsets: number[] = [];
  for (let at = 0; at < tableBytes; at += PIECE_BYTES) {
    const piece = await readAt(file, tableStart + at, Math.min(PIECE_BYTES, tableBytes - at));
    for (let within = 0; within < piece.length; within += BAT_ENTRY_BYTES) {
      const sector = piece.readUInt32BE(within);
      if (sector === NOT_PRESENT) continue;
      if (sector * SECTOR_BYTES + bitmapBytes + blockSize > fileBytes)
        throw badVhdField(
          source,
          'block allocation table',
          `entry ${(at + within) / BAT_ENTRY_BYTES}`,
          tableStart + at + within,
          `is ${sector}, behind the end of the file`,
        );
      // Bounds what a table full of equal entries makes us keep.
      if (numbers.length * blockSize > fileBytes)
        throw badVhdField(
          source,
          'block allocation table',
          'entries',
          tableStart,
          'name more blocks than the file can hold',
        );
      numbers.push((at + within) / BAT_ENTRY_BYTES);
      offsets.push(sector * SECTOR_BYTES + bitmapBytes);
    }
  }
  return { blockSizeBytes: blockSize, totalBlocks, presentBlocks: numbers.length, numbers, offsets };
}
