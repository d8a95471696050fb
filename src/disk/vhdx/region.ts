import { LcowError } from '../../errors/index.js';

/** A stretch of the file that something occupies. */
export interface Region {
  readonly name: string;
  readonly start: number;
  readonly length: number;
  /** Where in the file it is declared. */
  readonly declaredAt?: number;
}

/** The error for one field of a VHDX structure. */
export function badVhdx(source: string, part: string, field: string, offset: number, reason: string): LcowError {
  return new LcowError(
    'BAD_VHDX',
    `${source} is not a good VHDX: ${field} of the ${part} at byte ${offset} ${reason}.`,
    {
      details: { part, field, offset },
    },
  );
}
