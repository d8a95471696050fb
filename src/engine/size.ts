import { LcowError } from '../errors/index.js';

const UNITS: Readonly<Record<string, number>> = { b: 1, k: 2 ** 10, m: 2 ** 20, g: 2 ** 30, t: 2 ** 40 };

/**
 * Bytes of a size as docker's -m takes it: "64m", "1.5g", "1048576", "512MiB".
 * @throws LcowError INVALID_ARGUMENT.
 */
export function parseSize(text: string): number {
  const match = /^(\d+(?:\.\d+)?)\s*([bkmgt]?)(?:i?b)?$/i.exec(text.trim());
  const bytes = match ? Math.floor(Number(match[1]) * UNITS[(match[2] || 'b').toLowerCase()]!) : NaN;
  if (!Number.isSafeInteger(bytes)) throw new LcowError('INVALID_ARGUMENT', `Invalid size: '${text}'.`);
  return bytes;
}

/**
 * CPUs as docker's --cpus takes them, in units of 1e-9 CPUs.
 * @throws LcowError INVALID_ARGUMENT.
 */
export function parseCpus(text: string): number {
  const nano = /^\d+(?:\.\d{1,9})?$/.test(text) ? Math.round(Number(text) * 1e9) : NaN;
  if (!Number.isSafeInteger(nano) || nano < 1e7)
    throw new LcowError('INVALID_ARGUMENT', `Invalid number of CPUs: '${text}' (at least 0.01).`);
  return nano;
}
