/** The writable layer of a container: a blank ext4 in a dynamic VHDX (hcsshim internal/lcow CreateScratch). */
import { LcowError } from '../../errors/index.js';
import { throwIfAborted } from '../../lifetime/index.js';
import { createAtomic } from '../../state/index.js';
import { formatBlankExt4 } from '../ext4/index.js';
import { refuseExisting } from '../sparse/index.js';
import { guidSource, VhdxWriter } from '../vhdx/index.js';

/** hcsshim DefaultScratchSizeGB */
export const DEFAULT_SCRATCH_BYTES = 20 * 2 ** 30;

/** hcsshim's private companion of it: 1 MB. */
export const DEFAULT_SCRATCH_BLOCK_BYTES = 2 ** 20;

const SIZE_GRAIN_BYTES = 4096;

export interface CreateScratchOptions {
  /** Size of the disk, a multiple of 4096; 20 GiB unless given. */
  readonly sizeBytes?: number;
  /** Payload block of the VHDX: a power of two from 1 MiB (the default) to 256 MiB. Larger ones make larger files. */
  readonly blockSizeBytes?: number;
  readonly signal?: AbortSignal | undefined;
  /** Makes the same options give the same bytes: all identifiers follow from this text. Random without. */
  readonly seed?: string;
}

/**
 * Makes a scratch disk: a blank ext4 without journal, in a sparse dynamic VHDX. hcsshim boots a utility VM to run mkfs in
 * it; here the file system is written directly, in milliseconds.
 *
 * The file appears whole or not at all; `path` must not exist. Two calls for one path at the same moment may both
 * succeed, the later one standing: callers that can meet hold a lock on the name.
 * @throws LcowError INVALID_ARGUMENT, ALREADY_EXISTS, DISK_FULL, IO_FAILED, CANCELLED
 */
export async function createScratch(path: string, options: CreateScratchOptions = {}): Promise<{ fileBytes: number }> {
  const { sizeBytes = DEFAULT_SCRATCH_BYTES, blockSizeBytes = DEFAULT_SCRATCH_BLOCK_BYTES, signal, seed } = options;
  throwIfAborted(signal);
  if (!Number.isSafeInteger(sizeBytes) || sizeBytes <= 0 || sizeBytes % SIZE_GRAIN_BYTES !== 0)
    throw new LcowError(
      'INVALID_ARGUMENT',
      `A scratch disk cannot have ${sizeBytes} bytes: the size must be a positive multiple of ${SIZE_GRAIN_BYTES}.`,
    );
  await refuseExisting(path);
  return createAtomic(path, async (file) => {
    const writer = new VhdxWriter(file.fd, {
      virtualSizeBytes: sizeBytes,
      blockSizeBytes,
      ...(seed === undefined ? {} : { seed }),
    });
    const uuid = Buffer.from(guidSource(seed)('file system').replaceAll('-', ''), 'hex');
    formatBlankExt4(writer, sizeBytes, { uuid });
    const { fileBytes } = writer.finish();
    throwIfAborted(signal);
    await refuseExisting(path);
    return { fileBytes };
  });
}
