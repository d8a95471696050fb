import { randomUUID } from 'node:crypto';
import type { FileHandle } from 'node:fs/promises';
import { asIoError } from '../../state/index.js';
import { openDiskFile } from '../structure/index.js';
import { writeFully, writeZeros } from './file-access.js';
import { ZERO_GUID } from './guid.js';
import { updateHeaders } from './headers.js';
import { REGION_TABLE_BYTES, REGION_TABLE_OFFSETS } from './layout.js';
import { readVhdx, type VhdxFile } from './reader.js';

/** What {@link repairVhdx} did. */
export interface VhdxRepair {
  /** Log entries whose updates were made. */
  readonly replayedEntries: number;
  /** What was put right: `log`, `header`, `region table`. Empty when the file was in order. */
  readonly repaired: readonly ('log' | 'header' | 'region table')[];
}

/**
 * Puts right what can be without guessing: replays the log of a writer that died, and renews a damaged copy of header or
 * region table from the good one. A file that would not be good afterwards is refused and left as it is.
 * @throws LcowError NOT_FOUND, BAD_VHDX, DISK_FULL, IO_FAILED.
 */
export async function repairVhdx(path: string): Promise<VhdxRepair> {
  const file = await openDiskFile(path, 'r+');
  try {
    const vhdx = await readVhdx(file, path);
    const repaired: VhdxRepair['repaired'][number][] = [];
    if (vhdx.log.kind !== 'empty') {
      await applyLog(file, vhdx);
      repaired.push('log');
    }
    const { headers, regionTables } = vhdx.copies;
    if (!regionTables.every(Boolean)) {
      const [good, bad] = regionTables[0] ? REGION_TABLE_OFFSETS : [...REGION_TABLE_OFFSETS].reverse();
      if (repaired.length === 0) await changeHeaders(file, vhdx);
      await writeFully(file, await vhdx.log.view.read(good, REGION_TABLE_BYTES), bad);
      await file.datasync();
      repaired.push('region table');
    }
    if (!headers.every(Boolean)) {
      // Changing the headers renews both copies.
      if (repaired.length === 0) await changeHeaders(file, vhdx);
      repaired.push('header');
    }
    return { replayedEntries: vhdx.log.entries, repaired };
  } catch (error) {
    throw asIoError(error, `The disk ${path} cannot be repaired`);
  } finally {
    await file.close();
  }
}

async function changeHeaders(file: FileHandle, { header, headerSlot }: VhdxFile): Promise<void> {
  await updateHeaders(file, { header, slot: headerSlot }, { fileWriteGuid: randomUUID() });
}

/**
 * Makes the updates of a pending log in the file and empties the log (2.3.3). A crash meanwhile leaves the log pending:
 * making the updates again does no harm.
 */
export async function applyLog(file: FileHandle, vhdx: VhdxFile): Promise<void> {
  // 2.2.2: the GUID changes before anything else does, log playback included.
  const changed = await updateHeaders(
    file,
    { header: vhdx.header, slot: vhdx.headerSlot },
    { fileWriteGuid: randomUUID() },
  );
  const { overlay } = vhdx.log;
  if (overlay) {
    if ((await file.stat()).size < overlay.sizeBytes) await file.truncate(overlay.sizeBytes);
    for (const update of overlay.writes())
      if ('data' in update) await writeFully(file, update.data, update.offset);
      else await writeZeros(file, update.offset, update.offset + update.zeroLength);
    await file.datasync();
  }
  await updateHeaders(file, changed, { logGuid: ZERO_GUID });
}
