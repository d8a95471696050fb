import { LcowError } from '../errors/index.js';
import { DefaultScratchSizeGB } from '../lcow/index.js';

/** The storage option that sets the size of a writable layer, in GB of 2^30 bytes. */
export const SANDBOX_SIZE_OPTION = 'lcow.sandboxsize';

/**
 * Reads a sandbox size: a whole number of GB, at least 20, as the seed demands.
 * @throws LcowError INVALID_ARGUMENT
 */
export function parseSandboxSize(value: string): number {
  const sizeGB = /^\d{1,9}$/.test(value) ? Number(value) : NaN;
  if (!(sizeGB >= DefaultScratchSizeGB))
    throw new LcowError(
      'INVALID_ARGUMENT',
      `${SANDBOX_SIZE_OPTION}=${value} is not valid: a whole number of GB of at least ${DefaultScratchSizeGB}.`,
    );
  return sizeGB;
}

/**
 * Reads the driver's options, "key=value", keys in any case. One list serves several readers, so items that are not
 * the driver's are left alone (seed).
 * @returns The size of a writable layer that does not name its own.
 * @throws LcowError INVALID_ARGUMENT for a bad value.
 */
export function parseDriverOptions(options: readonly string[]): { sandboxSizeGB: number } {
  let sandboxSizeGB = DefaultScratchSizeGB;
  for (const option of options) {
    const equals = option.indexOf('=');
    if (equals < 0 || option.slice(0, equals).toLowerCase() !== SANDBOX_SIZE_OPTION) continue;
    sandboxSizeGB = parseSandboxSize(option.slice(equals + 1));
  }
  return { sandboxSizeGB };
}

/**
 * Reads the storage options of one writable layer. Unlike the seed, which ignores keys it does not know, this refuses
 * them: a size asked for under a wrong name would be silently not honoured.
 * @throws LcowError INVALID_ARGUMENT
 */
export function parseStorageOpt(storageOpt: Readonly<Record<string, string>>): { sandboxSizeGB?: number } {
  const parsed: { sandboxSizeGB?: number } = {};
  for (const [key, value] of Object.entries(storageOpt)) {
    if (key.toLowerCase() !== SANDBOX_SIZE_OPTION)
      throw new LcowError(
        'INVALID_ARGUMENT',
        `Storage option ${key} is not known: the only one is ${SANDBOX_SIZE_OPTION}.`,
      );
    parsed.sandboxSizeGB = parseSandboxSize(value);
  }
  return parsed;
}
