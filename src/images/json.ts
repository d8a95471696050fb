import { LcowError } from '../errors/index.js';

const UTF8 = new TextDecoder('utf-8', { fatal: true });

/** @throws LcowError BAD_MANIFEST when the bytes are no JSON object in UTF-8. */
export function parseJson(bytes: Uint8Array, what: string): Record<string, unknown> {
  const value = parse(bytes, what);
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw new LcowError('BAD_MANIFEST', `${what} is not a JSON object.`);
  return value as Record<string, unknown>;
}

/** @throws LcowError BAD_MANIFEST when the bytes are no JSON array in UTF-8. */
export function parseJsonArray(bytes: Uint8Array, what: string): unknown[] {
  const value = parse(bytes, what);
  if (!Array.isArray(value)) throw new LcowError('BAD_MANIFEST', `${what} is not a JSON array.`);
  return value;
}

function parse(bytes: Uint8Array, what: string): unknown {
  try {
    return JSON.parse(UTF8.decode(bytes));
  } catch (cause) {
    throw new LcowError('BAD_MANIFEST', `${what} is not valid JSON.`, { cause });
  }
}
