import { LcowError } from '../errors/index.js';

/** What a folder is renamed to while it is being deleted, so that a killed removal is finished later (seed). */
const TOMBSTONE_SUFFIX = '-removing';

// One path component that is no hidden file: names that begin with a dot are temporaries.
const LAYER_ID = /^[A-Za-z0-9][A-Za-z0-9_.-]{0,199}$/;

/** @throws LcowError INVALID_ARGUMENT when the id cannot be the name of a layer folder. */
export function validateLayerId(id: string): void {
  if (!LAYER_ID.test(id) || id.endsWith(TOMBSTONE_SUFFIX))
    throw new LcowError(
      'INVALID_ARGUMENT',
      `${JSON.stringify(id)} is no layer id: 1 to 200 letters, digits, "_", "-" and ".", beginning with a letter or digit, not ending in "${TOMBSTONE_SUFFIX}".`,
    );
}

/** The folder name of a layer that is being removed. */
export function tombstoneName(id: string): string {
  return `${id}${TOMBSTONE_SUFFIX}`;
}

/** Whether a folder name is that of a layer being removed. */
export function isTombstoneName(name: string): boolean {
  return name.endsWith(TOMBSTONE_SUFFIX) && LAYER_ID.test(name.slice(0, -TOMBSTONE_SUFFIX.length));
}
