import { randomUUID } from 'node:crypto';
import type { FileHandle } from 'node:fs/promises';
import { isLcowError, LcowError } from '../../errors/index.js';
import { asIoError } from '../../state/index.js';
import { isZero } from '../sparse/index.js';
import { Allocator } from './allocation.js';
import { openDiskFile } from '../structure/index.js';
import { writeFully, writeZeros } from './file-access.js';
import { updateHeaders } from './headers.js';
import { BAT_ENTRY_BYTES, batGeometry, batIndex, PAYLOAD_BLOCK } from './layout.js';
import { parentCandidates } from './parent-locator.js';
import { readVhdx, regionOf, type VhdxFile } from './reader.js';
import { applyLog } from './repair.js';

export interface OpenVhdxOptions {
  /** Opens for writing as well; a pending log is then replayed into the file first. */
  readonly writable?: boolean;
}

/** Longest chain of differencing files, the base included: bounds open files, and ends circles. */
export const MAXIMUM_CHAIN_LENGTH = 32;

/** Allocations that wait for {@link VhdxDisk.flush}, which then happens by itself. */
const MAXIMUM_PENDING = 1024;

/**
 * Opens the disk in a VHDX: dynamic, fixed or differencing, its parents found by their paths and proved by their
 * data-write GUIDs. Read-only opening changes nothing: a pending log is replayed in memory (2.3.3, note 5).
 *
 * The parents of a file from elsewhere are whatever paths it names: open such a file only where naming them is harmless.
 * @throws LcowError NOT_FOUND; BAD_VHDX naming structure, field and offset, or the parent that is missing or was changed;
 * NOT_SUPPORTED for writing to a differencing file; IO_FAILED.
 */
export async function openVhdx(path: string, options: OpenVhdxOptions = {}): Promise<VhdxDisk> {
  return openChain(path, options.writable ?? false, 1);
}

async function openChain(path: string, writable: boolean, depth: number): Promise<VhdxDisk> {
  const file = await openDiskFile(path, writable ? 'r+' : 'r');
  let parent: VhdxDisk | undefined;
  try {
    let vhdx = await readVhdx(file, path);
    if (writable && vhdx.metadata.parent)
      throw new LcowError('NOT_SUPPORTED', `${path} cannot be written: it is a differencing VHDX.`);
    if (writable && vhdx.log.kind !== 'empty') {
      await applyLog(file, vhdx);
      vhdx = await readVhdx(file, path);
    }
    if (vhdx.metadata.parent) parent = await openParent(path, vhdx, depth);
    return new VhdxDisk(file, path, vhdx, parent, writable);
  } catch (error) {
    await parent?.close();
    await file.close();
    throw asIoError(error, `The disk ${path} cannot be opened`);
  }
}

/** 2.6.2.6.3: the first path that leads to a file counts; that file must be the parent. */
async function openParent(path: string, child: VhdxFile, depth: number): Promise<VhdxDisk> {
  const locator = child.metadata.parent!;
  if (depth === MAXIMUM_CHAIN_LENGTH)
    throw new LcowError('BAD_VHDX', `${path} has more than ${MAXIMUM_CHAIN_LENGTH - 1} parents, or is one of its own.`);
  for (const candidate of parentCandidates(locator, path)) {
    let parent: VhdxDisk;
    try {
      parent = await openChain(candidate, false, depth + 1);
    } catch (error) {
      if (isLcowError(error, 'NOT_FOUND')) continue;
      throw error;
    }
    const refuse = async (reason: string): Promise<never> => {
      await parent.close();
      throw new LcowError('BAD_VHDX', `${candidate} cannot be the parent of ${path}: ${reason}.`, {
        details: { parent: candidate, linkage: locator.linkage },
      });
    };
    if (!locator.linkage.includes(parent.dataWriteGuid))
      await refuse('it was written to since, or is another disk, by its data-write GUID');
    if (parent.logicalSectorBytes !== child.metadata.logicalSectorBytes)
      await refuse(`its sectors have ${parent.logicalSectorBytes} bytes`);
    return parent;
  }
  throw new LcowError('BAD_VHDX', `The parent of ${path} was not found: none of its paths leads to a file here.`, {
    details: { paths: locator.paths },
    hint: 'Put the parent where the relative path points to.',
  });
}

/**
 * A VHDX that is open: a disk to read at any offset and, when opened so, to write. One writer at a time and no reader
 * beside it: whoever opens it sees to that.
 *
 * New blocks without the log. The specification sends all changes of the BAT through the log (2.3), which keeps changes
 * whole that are larger than a sector. Ours need not be: a BAT entry is 8 aligned bytes, always inside of one sector, and
 * no two entries depend on each other. What counts is the order. A block's content, and the length of the file, are made
 * stable first ({@link flush}); only then is the entry written that refers to it, and made stable. A crash before that
 * leaves the old entry, under which the block is as it was, and at worst an unused stretch of the file that the next
 * writer takes; a crash after it leaves a block that is whole. Blocks are never moved or freed, so that no old entry
 * can refer to what is in use for something else. The headers get their new GUIDs beforehand, as 2.2.2.1 has it.
 */
export class VhdxDisk implements AsyncDisposable {
  readonly sizeBytes: number;
  readonly blockSizeBytes: number;
  readonly logicalSectorBytes: number;
  readonly #chunkRatio: number;
  readonly #batStart: number;
  readonly #allocator: Allocator | undefined;
  /** Blocks that were not there at opening. */
  readonly #added = new Map<number, number>();
  /** Those of them whose BAT entry is not written. */
  #pending = new Map<number, number>();
  #headersChanged = false;
  #needsSync = false;
  #closed = false;
  /** The end of the last change: changes are made one after another. */
  #last: Promise<unknown> = Promise.resolve();

  /** Use {@link openVhdx}. */
  constructor(
    private readonly file: FileHandle,
    readonly name: string,
    private readonly vhdx: VhdxFile,
    /** Of a differencing file. */
    readonly parent: VhdxDisk | undefined,
    private readonly writable: boolean,
  ) {
    const { virtualSizeBytes, blockSizeBytes, logicalSectorBytes } = vhdx.metadata;
    this.sizeBytes = virtualSizeBytes;
    this.blockSizeBytes = blockSizeBytes;
    this.logicalSectorBytes = logicalSectorBytes;
    this.#chunkRatio = batGeometry(virtualSizeBytes, blockSizeBytes, logicalSectorBytes).chunkRatio;
    this.#batStart = regionOf(vhdx, 'BAT').start;
    this.#allocator = writable ? new Allocator(vhdx, blockSizeBytes) : undefined;
  }

  /** Changes whenever the content may have changed. */
  get dataWriteGuid(): string {
    return this.vhdx.header.dataWriteGuid;
  }

  /** Reads `length` bytes, which are what is allocated. @throws LcowError INVALID_ARGUMENT outside of the disk, IO_FAILED. */
  async read(offset: number, length: number): Promise<Buffer> {
    this.#checkRange('read', offset, length);
    const target = Buffer.allocUnsafe(length);
    await this.readInto(target, offset);
    return target;
  }

  /** Fills `target` with the bytes at `offset`. @throws LcowError INVALID_ARGUMENT outside of the disk, IO_FAILED. */
  async readInto(target: Uint8Array, offset: number): Promise<void> {
    this.#checkRange('read', offset, target.length);
    for (const { block, within, start, end } of this.#pieces(offset, target.length))
      await this.#readPiece(target.subarray(start, end), block, within);
  }

  async #readPiece(piece: Uint8Array, block: number, within: number): Promise<void> {
    const place = this.#placeOf(block);
    if (place === undefined) {
      if (this.parent && !this.vhdx.blocks.zero.has(block))
        await this.#readParent(piece, block * this.blockSizeBytes + within);
      else piece.fill(0);
      return;
    }
    if (!this.vhdx.blocks.partial.has(block)) return this.#readFile(piece, place + within);
    await this.#readPartial(piece, block, within, place);
  }

  /** 2.4: sector by sector from this file or from the parent, as the bitmap says. */
  async #readPartial(piece: Uint8Array, block: number, within: number, place: number): Promise<void> {
    const sector = this.logicalSectorBytes;
    const bitmap = this.vhdx.blocks.bitmaps.get(Math.floor(block / this.#chunkRatio))!;
    const firstBit = (block % this.#chunkRatio) * (this.blockSizeBytes / sector) + Math.floor(within / sector);
    const sectors = Math.ceil((within + piece.length) / sector) - Math.floor(within / sector);
    const firstByte = Math.floor(firstBit / 8);
    const bits = Buffer.allocUnsafe(Math.ceil((firstBit + sectors) / 8) - firstByte);
    await this.#readFile(bits, bitmap + firstByte);
    const isHere = (index: number): boolean => {
      const bit = firstBit + index - firstByte * 8;
      return ((bits[bit >>> 3]! >>> (bit & 7)) & 1) === 1;
    };
    for (let index = 0; index < sectors;) {
      let next = index + 1;
      while (next < sectors && isHere(next) === isHere(index)) next++;
      // In bytes of the piece, which may begin and end inside of a sector.
      const shift = within % sector;
      const start = Math.max(0, index * sector - shift);
      const end = Math.min(piece.length, next * sector - shift);
      const run = piece.subarray(start, end);
      if (isHere(index)) await this.#readFile(run, place + within + start);
      else await this.#readParent(run, block * this.blockSizeBytes + within + start);
      index = next;
    }
  }

  /** The parent may be a smaller disk. */
  async #readParent(piece: Uint8Array, offset: number): Promise<void> {
    const parent = this.parent!;
    const inParent = Math.min(Math.max(parent.sizeBytes - offset, 0), piece.length);
    if (inParent > 0) await parent.readInto(piece.subarray(0, inParent), offset);
    piece.fill(0, inParent);
  }

  async #readFile(target: Uint8Array, position: number): Promise<void> {
    const { overlay } = this.vhdx.log;
    if (overlay && !this.writable) {
      target.set(await overlay.read(position, target.length));
      return;
    }
    try {
      for (let filled = 0; filled < target.length;) {
        const { bytesRead } = await this.file.read(target, filled, target.length - filled, position + filled);
        if (bytesRead === 0) throw new LcowError('IO_FAILED', `${this.name} ended while it was being read.`);
        filled += bytesRead;
      }
    } catch (error) {
      throw asIoError(error, `The disk ${this.name} cannot be read`);
    }
  }

  /** The stretches of the disk that may hold something else than zeros, ascending, joined; `end` is exclusive. */
  *dataRuns(): Generator<{ start: number; end: number }, void, undefined> {
    const own = this.#ownRuns();
    if (!this.parent) {
      yield* own;
      return;
    }
    // Of both chains in order; what this file has as zeros is little and is read as such.
    yield* mergeRuns(own, this.parent.dataRuns(), this.sizeBytes);
  }

  *#ownRuns(): Generator<{ start: number; end: number }, void, undefined> {
    const { numbers } = this.vhdx.blocks;
    const all = this.#added.size === 0 ? numbers : [...numbers, ...this.#added.keys()].sort((one, two) => one - two);
    for (let index = 0; index < all.length;) {
      let next = index + 1;
      while (next < all.length && all[next]! === all[next - 1]! + 1) next++;
      yield {
        start: all[index]! * this.blockSizeBytes,
        end: Math.min((all[next - 1]! + 1) * this.blockSizeBytes, this.sizeBytes),
      };
      index = next;
    }
  }

  /**
   * Writes to the disk. Zeros for a block that is not there change nothing. Durable after {@link flush} or {@link close}.
   * @throws LcowError INVALID_ARGUMENT outside of the disk or when opened read-only; DISK_FULL, IO_FAILED.
   */
  async write(offset: number, data: Uint8Array): Promise<void> {
    this.#checkRange('write', offset, data.length);
    if (!this.writable) throw new LcowError('INVALID_ARGUMENT', `${this.name} was opened for reading only.`);
    await this.#inTurn(async () => {
      for (const { block, within, start, end } of this.#pieces(offset, data.length)) {
        const piece = data.subarray(start, end);
        let place = this.#placeOf(block);
        if (place === undefined && isZero(piece)) continue;
        await this.#changeHeaders();
        place ??= await this.#allocate(block, piece.length === this.blockSizeBytes);
        await writeFully(this.file, piece, place + within);
        this.#needsSync = true;
      }
      if (this.#pending.size >= MAXIMUM_PENDING) await this.#writeEntries();
    });
  }

  /** Makes all that was written durable. @throws LcowError DISK_FULL, IO_FAILED. */
  async flush(): Promise<void> {
    if (this.writable) await this.#inTurn(() => this.#writeEntries());
  }

  /** Flushes and closes the file and its parents. Closing again does nothing. */
  async close(): Promise<void> {
    if (this.#closed) return;
    try {
      await this.flush();
    } finally {
      this.#closed = true;
      try {
        await this.file.close();
      } finally {
        await this.parent?.close();
      }
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  /** 2.2.2: before the first change of what readers see. */
  async #changeHeaders(): Promise<void> {
    if (this.#headersChanged) return;
    await updateHeaders(
      this.file,
      { header: this.vhdx.header, slot: this.vhdx.headerSlot },
      { fileWriteGuid: randomUUID(), dataWriteGuid: randomUUID() },
    );
    this.#headersChanged = true;
  }

  async #allocate(block: number, isFilled: boolean): Promise<number> {
    const { offset, isNew } = this.#allocator!.next();
    if (isNew) await this.file.truncate(offset + this.blockSizeBytes);
    // An unused stretch of the file may hold anything.
    else if (!isFilled) await writeZeros(this.file, offset, offset + this.blockSizeBytes);
    this.#added.set(block, offset);
    this.#pending.set(block, offset);
    return offset;
  }

  /** The order that the class comment argues by: content, then entries. */
  async #writeEntries(): Promise<void> {
    if (!this.#needsSync) return;
    await this.file.datasync();
    if (this.#pending.size > 0) {
      for (const [block, offset] of this.#pending) {
        const entry = Buffer.alloc(BAT_ENTRY_BYTES);
        entry.writeBigUInt64LE(BigInt(offset) | BigInt(PAYLOAD_BLOCK.fullyPresent));
        await writeFully(this.file, entry, this.#batStart + batIndex(block, this.#chunkRatio) * BAT_ENTRY_BYTES);
      }
      await this.file.datasync();
      this.#pending = new Map();
    }
    this.#needsSync = false;
  }

  async #inTurn(change: () => Promise<void>): Promise<void> {
    if (this.#closed) throw new LcowError('CLOSED', `${this.name} was already closed.`);
    const turn = this.#last.then(change);
    this.#last = turn.catch(() => undefined);
    try {
      await turn;
    } catch (error) {
      throw asIoError(error, `The disk ${this.name} cannot be written`);
    }
  }

  /** The file offset of a block, if it is in the file. */
  #placeOf(block: number): number | undefined {
    const added = this.#added.get(block);
    if (added !== undefined) return added;
    const { numbers, offsets } = this.vhdx.blocks;
    let low = 0;
    let high = numbers.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (numbers[middle]! < block) low = middle + 1;
      else high = middle;
    }
    return numbers[low] === block ? offsets[low] : undefined;
  }

  /** Cuts a range at the borders of blocks; `start` and `end` count from the range's start. */
  *#pieces(
    offset: number,
    length: number,
  ): Generator<{ block: number; within: number; start: number; end: number }, void, undefined> {
    for (let start = 0; start < length;) {
      const block = Math.floor((offset + start) / this.blockSizeBytes);
      const within = (offset + start) % this.blockSizeBytes;
      const end = Math.min(length, start + this.blockSizeBytes - within);
      yield { block, within, start, end };
      start = end;
    }
  }

  #checkRange(what: string, offset: number, length: number): void {
    if (!Number.isSafeInteger(offset) || offset < 0 || length < 0 || offset + length > this.sizeBytes)
      throw new LcowError(
        'INVALID_ARGUMENT',
        `A ${what} of ${length} bytes at ${offset} is outside of the disk of ${this.sizeBytes} bytes in ${this.name}.`,
      );
  }
}

/** Joins two ascending lists of stretches into one, cut off at an end. */
function* mergeRuns(
  one: Iterator<{ start: number; end: number }, void>,
  other: Iterator<{ start: number; end: number }, void>,
  limit: number,
): Generator<{ start: number; end: number }, void, undefined> {
  let left = one.next();
  let right = other.next();
  let current: { start: number; end: number } | undefined;
  while (!left.done || !right.done) {
    let next: { start: number; end: number };
    if (right.done || (!left.done && left.value.start <= right.value.start)) {
      next = left.value!;
      left = one.next();
    } else {
      next = right.value;
      right = other.next();
    }
    if (next.start >= limit) continue;
    if (current && next.start <= current.end) current.end = Math.min(limit, Math.max(current.end, next.end));
    else {
      if (current) yield current;
      current = { start: next.start, end: Math.min(limit, next.end) };
    }
  }
  if (current) yield current;
}
