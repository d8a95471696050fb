import type { FileHandle } from 'node:fs/promises';

/** Thrown by the operation in which the power fails. */
export class PowerCut extends Error {}

/**
 * A file whose machine loses power at its n-th write or truncation. What was written since the last sync is then lost or
 * not, write by write, as `isLost` decides: disks keep no order among writes.
 */
export function crashingFile(file: FileHandle, failAt: number, isLost: (write: number) => boolean): FileHandle {
  let operations = 0;
  let unsynced: { position: number; before: Buffer; sizeBefore: number }[] = [];
  const remember = async (position: number, length: number): Promise<void> => {
    if (operations++ >= failAt) {
      for (const [index, { position: at, before, sizeBefore }] of [...unsynced.entries()].reverse())
        if (isLost(index)) {
          // A lost write behind the old end leaves zeros there, or no longer file.
          await file.write(
            Buffer.concat([before], Math.max(before.length, 1)).subarray(0, before.length),
            0,
            before.length,
            at,
          );
          if ((await file.stat()).size > sizeBefore && index === unsynced.length - 1) await file.truncate(sizeBefore);
        }
      throw new PowerCut();
    }
    const before = Buffer.alloc(length);
    await file.read(before, 0, length, position);
    unsynced.push({ position, before, sizeBefore: (await file.stat()).size });
  };
  return new Proxy(file, {
    get(target, name) {
      if (name === 'write')
        return async (data: Uint8Array, start: number, length: number, position: number) => {
          await remember(position, length);
          return target.write(data, start, length, position);
        };
      if (name === 'truncate')
        return async (length: number) => {
          await remember(0, 0);
          return target.truncate(length);
        };
      if (name === 'datasync' || name === 'sync')
        return async () => {
          unsynced = [];
        };
      const value: unknown = Reflect.get(target, name);
      return typeof value === 'function' ? (value.bind(target) as unknown) : value;
    },
  });
}
