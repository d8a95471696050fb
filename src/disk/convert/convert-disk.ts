import type { FileHandle } from 'node:fs/promises';
import { LcowError } from '../../errors/index.js';
import { throwIfAborted } from '../../lifetime/index.js';
import { asIoError, createAtomic } from '../../state/index.js';
import { openDisk, type BlockSource, type DiskFormat } from '../source/index.js';
import { nonZeroRuns, refuseExisting } from '../sparse/index.js';
import { encodeFixedVhdFooter } from '../vhd/index.js';
import { guidSource, VhdxWriter } from '../vhdx/index.js';

export interface ConvertDiskOptions {
  /** What to make: a raw image, a fixed VHD or a dynamic VHDX. All of them have holes where the disk has zeros. */
  readonly to: DiskFormat;
  /** What the source is; told by its content when absent. */
  readonly from?: DiskFormat | undefined;
  /** Payload block of a VHDX: a power of two from 1 MiB (the default) to 256 MiB. */
  readonly blockSizeBytes?: number | undefined;
  /** Makes the identifiers of the target follow from this text; random without. */
  readonly seed?: string | undefined;
  readonly signal?: AbortSignal | undefined;
  /** Called with the bytes of the disk done so far, holes included. */
  readonly onProgress?: ((bytesDone: number) => void) | undefined;
}

export interface ConvertDiskResult {
  readonly from: DiskFormat;
  /** Size of the disk: that of the source, filled up with zeros to whole sectors of 512 bytes in a VHD or VHDX. */
  readonly virtualSizeBytes: number;
  /** Bytes that are not in holes. */
  readonly writtenBytes: number;
}

const CHUNK_BYTES = 2 ** 20;
/** The block of nearly all file systems: a smaller hole is none. */
const GRAIN_BYTES = 4096;
const SECTOR_BYTES = 512;

/**
 * Converts a disk between raw image, VHD and VHDX, a mebibyte at a time. The target appears whole or not at all and must
 * not exist.
 * @throws LcowError NOT_FOUND, ALREADY_EXISTS, BAD_VHD, BAD_VHDX; INVALID_ARGUMENT for a disk that is empty or larger than
 * the target's format holds; DISK_FULL, IO_FAILED, CANCELLED.
 */
export async function convertDisk(
  source: string,
  target: string,
  options: ConvertDiskOptions,
): Promise<ConvertDiskResult> {
  throwIfAborted(options.signal);
  await using disk = await openDisk(source, { format: options.from });
  await refuseExisting(target);
  const { sizeBytes } = disk.source;
  const virtualSizeBytes = options.to === 'raw' ? sizeBytes : Math.ceil(sizeBytes / SECTOR_BYTES) * SECTOR_BYTES;
  if (sizeBytes === 0 && options.to !== 'raw')
    throw new LcowError('INVALID_ARGUMENT', `${source} cannot be converted: it is empty.`);
  const writtenBytes = await createAtomic(target, async (file) => {
    const sink = openSink(file, virtualSizeBytes, options);
    let written: number;
    try {
      written = await copy(disk.source, sink, options);
      await sink.finish();
    } catch (error) {
      throw asIoError(error, `${target} cannot be written`);
    }
    throwIfAborted(options.signal);
    await refuseExisting(target);
    return written;
  });
  return { from: disk.format, virtualSizeBytes, writtenBytes };
}

/** Where a disk is written to: only what is not zeros, in any order. */
interface DiskSink {
  write(data: Uint8Array, offset: number): Promise<void> | void;
  finish(): Promise<void> | void;
}

function openSink(file: FileHandle, sizeBytes: number, options: ConvertDiskOptions): DiskSink {
  const { to, blockSizeBytes, seed } = options;
  if (to === 'vhdx') {
    const writer = new VhdxWriter(file.fd, {
      virtualSizeBytes: sizeBytes,
      ...(blockSizeBytes === undefined ? {} : { blockSizeBytes }),
      ...(seed === undefined ? {} : { seed }),
    });
    return { write: (data, offset) => writer.write(offset, data), finish: () => void writer.finish() };
  }
  const uuid = Buffer.from(guidSource(seed)('disk').replaceAll('-', ''), 'hex');
  // Made beforehand: it refuses sizes that a VHD cannot have.
  const footer = to === 'vhd' ? encodeFixedVhdFooter(sizeBytes, uuid) : new Uint8Array(0);
  return {
    write: (data, offset) => writeFully(file, data, offset),
    async finish() {
      await file.truncate(sizeBytes + footer.length);
      await writeFully(file, footer, sizeBytes);
    },
  };
}

async function copy(source: BlockSource, sink: DiskSink, options: ConvertDiskOptions): Promise<number> {
  const chunk = Buffer.allocUnsafe(CHUNK_BYTES);
  let writtenBytes = 0;
  for (const run of source.dataRuns?.() ?? [{ start: 0, end: source.sizeBytes }])
    for (let at = run.start; at < run.end;) {
      throwIfAborted(options.signal);
      const end = Math.min(run.end, at - (at % CHUNK_BYTES) + CHUNK_BYTES);
      const piece = chunk.subarray(0, end - at);
      await source.readInto(piece, at);
      for (const [from, to] of nonZeroRuns(piece, GRAIN_BYTES)) {
        await sink.write(piece.subarray(from, to), at + from);
        writtenBytes += to - from;
      }
      at = end;
      options.onProgress?.(at);
    }
  return writtenBytes;
}

async function writeFully(file: FileHandle, data: Uint8Array, position: number): Promise<void> {
  for (let done = 0; done < data.length;)
    done += (await file.write(data, done, data.length - done, position + done)).bytesWritten;
}
