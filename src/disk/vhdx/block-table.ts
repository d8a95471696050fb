import type { LcowError } from '../../errors/index.js';
import type { FileView } from '../structure/index.js';
import {
  BAT_ENTRY_BYTES,
  BAT_OFFSET_MASK,
  BAT_STATE_MASK,
  batGeometry,
  MIB,
  PAYLOAD_BLOCK,
  SECTOR_BITMAP_BLOCK,
  SECTOR_BITMAP_BYTES,
} from './layout.js';
import type { VhdxMetadata } from './metadata.js';
import { badVhdx, type Region } from './region.js';

/** Where the payload blocks of a VHDX are (2.5). Blocks that are not present read as zeros, or as the parent has it. */
export interface BlockTable {
  /** Payload blocks of the disk. */
  readonly total: number;
  /** Payload blocks that are present in the file. */
  readonly present: number;
  /** The numbers of the present blocks, ascending. */
  readonly numbers: readonly number[];
  /** The file offset of each block in `numbers`. */
  readonly offsets: readonly number[];
  /** Of a differencing file: the present blocks of which some sectors are the parent's. */
  readonly partial: ReadonlySet<number>;
  /** Of a differencing file: the blocks that are zeros, whatever the parent has. */
  readonly zero: ReadonlySet<number>;
  /** Of a differencing file: the file offset of each chunk's sector bitmap. */
  readonly bitmaps: ReadonlyMap<number, number>;
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
 * Reads the BAT. Present blocks must lie in the file, outside of everything in `occupied` and of each other.
 * @throws LcowError BAD_VHDX for the first bad block, unless there is `onBadBlock` to take it; such blocks are left out.
 */
export async function readBlockTable(
  file: FileView,
  source: string,
  bat: {
    region: Region;
    metadata: VhdxMetadata;
    occupied: readonly Region[];
    onBadBlock?: ((error: LcowError) => void) | undefined;
  },
): Promise<BlockTable> {
  const { region, metadata, occupied } = bat;
  const onBad = bat.onBadBlock ?? thrown;
  const { virtualSizeBytes, blockSizeBytes } = metadata;
  const hasParent = metadata.parent !== undefined;
  const { payloadBlocks, chunkRatio, entries } = batGeometry(
    virtualSizeBytes,
    blockSizeBytes,
    metadata.logicalSectorBytes,
    hasParent,
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
  const partial = new Set<number>();
  const zero = new Set<number>();
  const bitmaps = new Map<number, number>();
  /** What is wrong with the place of a block, in words. */
  const misplaced = (offset: number, length: number, lengthInFile = length): string | undefined => {
    if (offset + lengthInFile > file.sizeBytes) return `is ${offset}, behind the end of the file at ${file.sizeBytes}`;
    const hit = occupied.find((one) => offset < one.start + one.length && one.start < offset + length);
    return hit && `is ${offset}, inside of the ${hit.name} region`;
  };

  for (let at = 0; at < entries * BAT_ENTRY_BYTES; at += PIECE_BYTES) {
    const piece = await file.read(region.start + at, Math.min(PIECE_BYTES, entries * BAT_ENTRY_BYTES - at));
    for (let within = 0; within < piece.length; within += BAT_ENTRY_BYTES) {
      // Most entries are zero: not present.
      if (piece.readUInt32LE(within) === 0 && piece.readUInt32LE(within + 4) === 0) continue;
      const index = (at + within) / BAT_ENTRY_BYTES;
      const chunk = Math.floor(index / (chunkRatio + 1));
      const isBitmap = index % (chunkRatio + 1) === chunkRatio;
      // Sector bitmap entries mean nothing without a parent; older QEMU leaves rubbish there.
      if (isBitmap && !hasParent) continue;
      const number = index - chunk;
      // Behind the disk's last block, up to the last bitmap's entry.
      if (!isBitmap && number >= payloadBlocks) continue;
      const entry = piece.readBigUInt64LE(within);
      const state = Number(entry & BAT_STATE_MASK);
      const offset = Number(entry & BAT_OFFSET_MASK);
      const bad = (field: string, reason: string) =>
        onBad(
          badVhdx(
            source,
            isBitmap ? `BAT entry ${index} (sector bitmap ${chunk})` : `BAT entry ${index} (block ${number})`,
            field,
            region.start + at + within,
            reason,
          ),
        );
      if (isBitmap) {
        const wrong = misplaced(offset, SECTOR_BITMAP_BYTES);
        if (state === SECTOR_BITMAP_BLOCK.notPresent) continue;
        if (state !== SECTOR_BITMAP_BLOCK.present) bad('state', `is ${state}, not 0 or 6`);
        else if (wrong) bad('offset', wrong);
        else bitmaps.set(chunk, offset);
        continue;
      }
      if (NO_OFFSET_STATES.has(state)) {
        if (hasParent && state !== PAYLOAD_BLOCK.notPresent) zero.add(number);
        continue;
      }
      if (state !== PAYLOAD_BLOCK.fullyPresent && (state !== PAYLOAD_BLOCK.partiallyPresent || !hasParent)) {
        bad('state', `is ${state}, which no file ${hasParent ? 'has' : 'without a parent has'}`);
        continue;
      }
      // The last block of a fixed file may be cut short at the end of the disk.
      const wrong =
        misplaced(offset, blockSizeBytes, Math.min(blockSizeBytes, virtualSizeBytes - number * blockSizeBytes)) ??
        // Bounds what a file full of equal entries makes us keep.
        (numbers.length * blockSizeBytes > file.sizeBytes ? 'is one more block than the file can hold' : undefined);
      if (wrong) {
        bad('offset', wrong);
        continue;
      }
      if (state === PAYLOAD_BLOCK.partiallyPresent) partial.add(number);
      numbers.push(number);
      offsets.push(offset);
    }
  }
  for (const number of partial)
    if (!bitmaps.has(Math.floor(number / chunkRatio)))
      onBad(
        badVhdx(
          source,
          `BAT entry of block ${number}`,
          'state',
          region.start,
          'needs a sector bitmap that is not there',
        ),
      );
  checkOverlap({ source, region, numbers, offsets, bitmaps, blockSizeBytes, onBad });
  return { total: payloadBlocks, present: numbers.length, numbers, offsets, partial, zero, bitmaps };
}

function thrown(error: LcowError): never {
  throw error;
}

function checkOverlap(table: {
  source: string;
  region: Region;
  numbers: readonly number[];
  offsets: readonly number[];
  bitmaps: ReadonlyMap<number, number>;
  blockSizeBytes: number;
  onBad: (error: LcowError) => void;
}): void {
  const { source, region, numbers, offsets, bitmaps, blockSizeBytes, onBad } = table;
  const bitmapOffsets = new Set(bitmaps.values());
  const sorted = Float64Array.from([...offsets, ...bitmaps.values()]).sort();
  for (let index = 1; index < sorted.length; index++) {
    const before = sorted[index - 1]!;
    const length = bitmapOffsets.has(before) ? SECTOR_BITMAP_BYTES : blockSizeBytes;
    if (sorted[index]! - before >= length) continue;
    const block = numbers[offsets.lastIndexOf(sorted[index]!)];
    onBad(
      badVhdx(
        source,
        block === undefined ? 'BAT entry of a sector bitmap' : `BAT entry of block ${block}`,
        'offset',
        region.start,
        `is ${sorted[index]!}, inside of another block`,
      ),
    );
  }
}
