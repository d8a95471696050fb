import { stat } from 'node:fs/promises';
import { copySparse, createScratch as createScratchDisk } from '../disk/index.js';
import { isLcowError, LcowError } from '../errors/index.js';
import { asIoError } from '../state/index.js';
import type { UtilityVM } from '../uvm/index.js';

/** Size of a container's scratch disk unless asked otherwise, in GB of 2^30 bytes (seed: DefaultScratchSizeGB). */
export const DefaultScratchSizeGB = 20;

const GB = 2 ** 30;

/** Options of {@link createScratch}. */
export interface CreateScratchOptions {
  signal?: AbortSignal;
}

/**
 * Makes an empty scratch disk: ext4 without a journal in a dynamic VHDX (seed: CreateScratch).
 *
 * With a `cacheFile` and the default size, the disk is a copy of the cache file, which is made first when it is missing.
 * Other sizes never read or write the cache. Callers that may fill one cache at the same time hold a lock, as in the
 * seed; without one the work is done twice, and both results are good.
 *
 * Deliberate differences from hcsshim v0.8.0: the file system is written on the host, so the utility VM may be undefined; a size
 * below 20 GB is honoured, not raised (as hcsshim v0.8.7); destination and cache appear whole or not at all.
 *
 * @param _uvm Not needed; accepted for the seed's signature.
 * @param destFile Path of the disk; must not exist.
 * @param sizeGB Virtual size, a whole number of at least 1.
 * @throws LcowError INVALID_ARGUMENT, ALREADY_EXISTS, DISK_FULL, IO_FAILED, CANCELLED.
 */
export async function createScratch(
  _uvm: UtilityVM | undefined,
  destFile: string,
  sizeGB: number = DefaultScratchSizeGB,
  cacheFile?: string,
  options: CreateScratchOptions = {},
): Promise<void> {
  if (!Number.isSafeInteger(sizeGB) || sizeGB < 1)
    throw new LcowError('INVALID_ARGUMENT', `A scratch disk of ${sizeGB} GB cannot be made: whole GB from 1 up.`);
  if (await exists(destFile)) throw new LcowError('ALREADY_EXISTS', `The scratch disk ${destFile} exists already.`);

  const cached = sizeGB === DefaultScratchSizeGB ? cacheFile : undefined;
  if (cached === undefined) {
    await createScratchDisk(destFile, { sizeBytes: sizeGB * GB, ...options });
    return;
  }
  // Cache first, then a copy of it: a failure between the two leaves a good cache and no half-made disk.
  if (!(await exists(cached)))
    await createScratchDisk(cached, { sizeBytes: sizeGB * GB, ...options }).catch((error: unknown) => {
      // Another caller was faster, and its cache is as good.
      if (!isLcowError(error, 'ALREADY_EXISTS')) throw error;
    });
  await copySparse(cached, destFile, options);
}

async function exists(path: string): Promise<boolean> {
  try {
    await stat(path);
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return false;
    throw asIoError(error, `${path} cannot be looked at`);
  }
}
