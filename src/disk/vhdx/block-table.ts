import type { FileHandle } from 'node:fs/promises';
import { readAt } from '../structure/index.js';
import { BAT_ENTRY_BYTES, BAT_OFFSET_MASK, BAT_STATE_MASK, batGeometry, MIB, PAYLOAD_BLOCK } from './layout.js';
import type { VhdxMetadata } from './metadata.js';
import { badVhdx, type Region } from './region.js';

/** Where the payload blocks of a VHDX are (2.5). Blocks that are not present read as zeros. */
export interface BlockTable {
  /** Payload blocks of the disk. */
  readonly total: number;
  /** Payload blocks that are present in the file. */
  readonly present: number;
  /** The numbers of the present blocks, ascending. */
  readonly numbers: readonly number[];
  /** The file offset of each block in `numbers`. */
  readonly offsets: readonly number[];
}

/** A BAT is read in pieces of this size: it has up to 512 MiB. */
const PIECE_BYTES = MIB;

const NO_OFFSET_STATES: ReadonlySet<number> = new Set([
  PAYLOAD_BLOCK.notPresent,
  PAYLOAD_BLOCK.undefined,
  PAYLOAD_BLOCK.zero,
  PAYLOAD_BLOCK.unmapped,
  PAYLOAD_BLOCK.unmapped095,
]);

/**
 * Reads the BAT. Unless the log makes it doubtful, present blocks must lie in the file, outside of everything in
 * `occupied` and of each other.
 * @throws LcowError BAD_VHDX
 */
export async function readBlockTable(
  file: FileHandle,
  source: string,
  bat: { region: Region; metadata: VhdxMetadata; occupied: readonly Region[]; fileBytes: number; trusted: boolean },
): Promise<BlockTable> {
  const { region, metadata, occupied, fileBytes, trusted } = bat;
  const { virtualSizeBytes, blockSizeBytes } = metadata;
  const { payloadBlocks, chunkRatio, entries } = batGeometry(
    virtualSizeBytes,
    blockSizeBytes,
    metadata.logicalSectorBytes,
  );
  if (entries * BAT_ENTRY_BYTES > region.length)
    throw badVhdx(
      source,
      'BAT region',
      'length',
      region.declaredAt ?? region.start,
      `is ${region.length}, too small for the ${entries} entries of a disk of ${virtualSizeBytes} bytes`,
    );
  const numbers: number[] = [];
  const offsets: number[] = [];
  for (let at = 0; at < entries * BAT_ENTRY_BYTES; at += PIECE_BYTES) {
    const piece = await readAt(file, region.start + at, Math.min(PIECE_BYTES, entries * BAT_ENTRY_BYTES - at));
    for (let within = 0; within < piece.length; within += BAT_ENTRY_BYTES) {
      // Most entries are zero: not present.
      if (piece.readUInt32LE(within) === 0 && piece.readUInt32LE(within + 4) === 0) continue;
      const index = (at + within) / BAT_ENTRY_BYTES;
      // Sector bitmap entries mean nothing without a parent; older QEMU leaves rubbish there.
      if (index % (chunkRatio + 1) === chunkRatio) continue;
      const entry = piece.readBigUInt64LE(within);
      const state = Number(entry & BAT_STATE_MASK);
      if (NO_OFFSET_STATES.has(state)) continue;
      const number = index - Math.floor(index / (chunkRatio + 1));
      const bad = (field: string, reason: string) =>
        badVhdx(source, `BAT entry ${index} (block ${number})`, field, region.start + at + within, reason);
      if (state !== PAYLOAD_BLOCK.fullyPresent) throw bad('state', `is ${state}, which no file without a parent has`);
      const offset = Number(entry & BAT_OFFSET_MASK);
      if (trusted) {
        // The last block of a fixed file may be cut short at the end of the disk.
        const end = offset + Math.min(blockSizeBytes, virtualSizeBytes - number * blockSizeBytes);
        if (end > fileBytes) throw bad('offset', `is ${offset}, behind the end of the file at ${fileBytes}`);
        const hit = occupied.find(({ start, length }) => offset < start + length && start < offset + blockSizeBytes);
        if (hit) throw bad('offset', `is ${offset}, inside of the ${hit.name} region`);
      }
      // Bounds what a file full of equal entries makes us keep.
      if (numbers.length * blockSizeBytes > fileBytes) throw bad('offset', 'is one more block than the file can hold');
      numbers.push(number);
      offsets.push(offset);
    }
  }
  if (trusted) checkOverlap(source, region, numbers, offsets, blockSizeBytes);
  return { total: payloadBlocks, present: numbers.length, numbers, offsets };
}

function checkOverlap(
  source: string,
  region: Region,
  numbers: readonly number[],
  offsets: readonly number[],
  blockSizeBytes: number,
): void {
  const sorted = Float64Array.from(offsets).sort();
  for (let index = 1; index < sorted.length; index++) {
    if (sorted[index]! - sorted[index - 1]! >= blockSizeBytes) continue;
    const block = numbers[offsets.lastIndexOf(sorted[index]!)]!;
    throw badVhdx(
      source,
      `BAT entry of block ${block}`,
      'offset',
      region.start,
      `is ${sorted[index]!}, inside of another block`,
    );
  }
}
