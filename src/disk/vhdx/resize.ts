import { randomUUID } from 'node:crypto';
import type { FileHandle } from 'node:fs/promises';
import { LcowError } from '../../errors/index.js';
import { asIoError } from '../../state/index.js';
import { alignUp, mapSpace } from './allocation.js';
import { crc32cWithoutField } from './crc32c.js';
import { openDiskFile } from '../structure/index.js';
import { writeFully, writeZeros } from './file-access.js';
import { ZERO_GUID } from './guid.js';
import { updateHeaders } from './headers.js';
import {
  BAT_ENTRY_BYTES,
  batGeometry,
  batIndex,
  LOG_SECTOR_BYTES,
  MAXIMUM_DISK_BYTES,
  MIB,
  PAYLOAD_BLOCK,
  REGION_TABLE_BYTES,
  REGION_TABLE_ENTRY,
  REGION_TABLE_HEADER,
  REGION_TABLE_OFFSETS,
  VIRTUAL_DISK_SIZE,
} from './layout.js';
import { encodeLogEntry } from './log.js';
import { readVhdx, regionOf, type VhdxFile } from './reader.js';
import { applyLog } from './repair.js';

/** What {@link resizeVhdx} did. */
export interface VhdxResize {
  readonly sizeBytesBefore: number;
  readonly sizeBytes: number;
  /** Whether the BAT had to move to the end of the file, to have room for more entries. */
  readonly movedBat: boolean;
}

/**
 * Makes the disk in a VHDX larger; what is new reads as zeros. The file system in it is not touched. All of it happens
 * or nothing: what only the new size makes visible is prepared first, then size and place of the BAT change in one log
 * entry. A fixed file gets all of its new blocks.
 * @param sizeBytes a multiple of the logical sector up to 64 TiB, not less than the present size.
 * @throws LcowError INVALID_ARGUMENT, also for a smaller size; NOT_FOUND, BAD_VHDX, NOT_SUPPORTED for differencing files;
 * DISK_FULL, IO_FAILED.
 */
export async function resizeVhdx(path: string, sizeBytes: number): Promise<VhdxResize> {
  const file = await openDiskFile(path, 'r+');
  try {
    return await resizeFile(file, path, sizeBytes);
  } catch (error) {
    throw asIoError(error, `The disk ${path} cannot be resized`);
  } finally {
    await file.close();
  }
}

/** {@link resizeVhdx} of an open file. */
export async function resizeFile(file: FileHandle, name: string, sizeBytes: number): Promise<VhdxResize> {
  let vhdx = await readVhdx(file, name);
  const { metadata } = vhdx;
  const sizeBytesBefore = metadata.virtualSizeBytes;
  if (
    !Number.isSafeInteger(sizeBytes) ||
    sizeBytes % metadata.logicalSectorBytes !== 0 ||
    sizeBytes > MAXIMUM_DISK_BYTES
  )
    throw new LcowError(
      'INVALID_ARGUMENT',
      `A VHDX cannot hold a disk of ${sizeBytes} bytes: it must be a multiple of ${metadata.logicalSectorBytes} up to ` +
        '64 TiB.',
    );
  if (sizeBytes < sizeBytesBefore)
    throw new LcowError('INVALID_ARGUMENT', `${name} cannot shrink from ${sizeBytesBefore} to ${sizeBytes} bytes.`);
  if (metadata.parent) throw new LcowError('NOT_SUPPORTED', `${name} cannot be resized: it is a differencing VHDX.`);
  if (sizeBytes === sizeBytesBefore) return { sizeBytesBefore, sizeBytes, movedBat: false };
  if (vhdx.log.kind !== 'empty') {
    await applyLog(file, vhdx);
    vhdx = await readVhdx(file, name);
  }
  if (regionOf(vhdx, 'log').length < MINIMUM_LOG_BYTES)
    throw new LcowError('NOT_SUPPORTED', `${name} cannot be resized: its log has no room for the change.`);
  return { sizeBytesBefore, sizeBytes, movedBat: await grow(file, vhdx, sizeBytes) };
}

/** An entry with both region tables, 2 × 16 sectors, and the two sectors the size may lie in, needs less. */
const MINIMUM_LOG_BYTES = MIB;

async function grow(file: FileHandle, vhdx: VhdxFile, sizeBytes: number): Promise<boolean> {
  const { metadata, blocks } = vhdx;
  const { blockSizeBytes, logicalSectorBytes } = metadata;
  const bat = regionOf(vhdx, 'BAT');
  const before = batGeometry(metadata.virtualSizeBytes, blockSizeBytes, logicalSectorBytes);
  const after = batGeometry(sizeBytes, blockSizeBytes, logicalSectorBytes);
  const usedBytes = before.entries * BAT_ENTRY_BYTES;
  const neededBytes = after.entries * BAT_ENTRY_BYTES;
  const movedBat = neededBytes > bat.length;

  // 2.2.2: before anything else changes.
  let current = await updateHeaders(
    file,
    { header: vhdx.header, slot: vhdx.headerSlot },
    { fileWriteGuid: randomUUID(), dataWriteGuid: randomUUID() },
  );

  // What the disk's new size will make visible, and nothing refers to yet.
  let end = Math.max(mapSpace(vhdx).end, alignUp(vhdx.fileBytes));
  const newBat = { start: bat.start, length: bat.length };
  if (movedBat) {
    newBat.start = end;
    newBat.length = alignUp(neededBytes);
    end += newBat.length;
  }
  const newBlocks = metadata.leaveBlocksAllocated ? after.payloadBlocks - before.payloadBlocks : 0;
  const blocksStart = end;
  end += newBlocks * blockSizeBytes;
  if (end > (await file.stat()).size) await file.truncate(end);
  if (movedBat) await copyStretch(file, bat.start, newBat.start, usedBytes);
  // Tables that were larger once have rubbish behind their last entry.
  else await writeZeros(file, bat.start + usedBytes, bat.start + neededBytes);
  for (let index = 0; index < newBlocks; index++) {
    const entry = Buffer.alloc(BAT_ENTRY_BYTES);
    entry.writeBigUInt64LE(BigInt(blocksStart + index * blockSizeBytes) | BigInt(PAYLOAD_BLOCK.fullyPresent));
    const at = batIndex(before.payloadBlocks + index, after.chunkRatio) * BAT_ENTRY_BYTES;
    await writeFully(file, entry, newBat.start + at);
  }
  const tail = metadata.virtualSizeBytes % blockSizeBytes;
  if (tail > 0 && blocks.numbers.at(-1) === before.payloadBlocks - 1) {
    const last = blocks.offsets.at(-1)!;
    await writeZeros(file, last + tail, last + blockSizeBytes);
  }
  await file.datasync();

  const size = VIRTUAL_DISK_SIZE.encode({ sizeBytes: BigInt(sizeBytes) });
  const sectors = await sectorsOf(file, [[metadata.virtualDiskSizeOffset, size]]);
  if (movedBat) {
    const table = await movedRegionTable(vhdx, newBat);
    for (const [offset, data] of await sectorsOf(
      file,
      REGION_TABLE_OFFSETS.map((start) => [start, table]),
    ))
      sectors.set(offset, data);
  }
  // The entry counts from the moment the header names its GUID, and not before.
  const logGuid = randomUUID();
  const fileBytes = (await file.stat()).size;
  const entry = encodeLogEntry(sectors, { logGuid, sequenceNumber: 1n, fileBytes });
  await writeFully(file, entry, regionOf(vhdx, 'log').start);
  await file.datasync();
  current = await updateHeaders(file, current, { logGuid });
  for (const [offset, data] of sectors) await writeFully(file, data, offset);
  await file.datasync();
  await updateHeaders(file, current, { logGuid: ZERO_GUID });
  return movedBat;
}

/** The region table with the BAT at its new place. */
async function movedRegionTable(vhdx: VhdxFile, bat: { start: number; length: number }): Promise<Buffer> {
  const copy = vhdx.copies.regionTables[0] ? 0 : 1;
  const table = await vhdx.log.view.read(REGION_TABLE_OFFSETS[copy], REGION_TABLE_BYTES);
  const at = regionOf(vhdx, 'BAT').declaredAt! - REGION_TABLE_OFFSETS[copy];
  const entry = { ...REGION_TABLE_ENTRY.decode(table, at), fileOffset: BigInt(bat.start), length: bat.length };
  REGION_TABLE_ENTRY.encode(entry).copy(table, at);
  const checksumAt = REGION_TABLE_HEADER.fields.checksum.offset;
  table.writeUInt32LE(crc32cWithoutField(table, checksumAt), checksumAt);
  return table;
}

/** The sectors of the log's size that some changes need, as they will be; sectors that stay as they are left out. */
async function sectorsOf(
  file: FileHandle,
  changes: readonly (readonly [offset: number, data: Buffer])[],
): Promise<Map<number, Buffer>> {
  const sectors = new Map<number, Buffer>();
  for (const [offset, data] of changes)
    for (let at = offset - (offset % LOG_SECTOR_BYTES); at < offset + data.length; at += LOG_SECTOR_BYTES) {
      const old = Buffer.alloc(LOG_SECTOR_BYTES);
      await file.read(old, 0, LOG_SECTOR_BYTES, at);
      const changed = Buffer.from(old);
      data.copy(changed, Math.max(offset - at, 0), Math.max(at - offset, 0));
      if (!changed.equals(old)) sectors.set(at, changed);
    }
  return sectors;
}

async function copyStretch(file: FileHandle, from: number, to: number, length: number): Promise<void> {
  const piece = Buffer.alloc(Math.min(MIB, length));
  for (let done = 0; done < length;) {
    const { bytesRead } = await file.read(piece, 0, Math.min(piece.length, length - done), from + done);
    if (bytesRead === 0) throw new LcowError('IO_FAILED', 'The disk ended while its table was being copied.');
    await writeFully(file, piece.subarray(0, bytesRead), to + done);
    done += bytesRead;
  }
}
