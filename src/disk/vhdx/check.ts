import type { FileHandle } from 'node:fs/promises';
import { isTooMany, type DiskFinding } from '../structure/index.js';
import { mapSpace } from './allocation.js';
import { HEADER_OFFSETS, REGION_TABLE_BYTES, REGION_TABLE_OFFSETS } from './layout.js';
import { readVhdx } from './reader.js';

/** What of a VHDX is in use. */
export interface VhdxUsage {
  readonly totalBlocks: number;
  readonly presentBlocks: number;
  /** Where the last structure or block ends. */
  readonly imageEndBytes: number;
  /** Bytes that nothing refers to, between structures and behind the last. */
  readonly unusedBytes: number;
}

/**
 * Checks all structures of a VHDX and adds what is wrong to `findings`.
 * @throws LcowError BAD_VHDX for what makes it impossible to go on.
 */
export async function checkVhdx(file: FileHandle, source: string, findings: DiskFinding[]): Promise<VhdxUsage> {
  const vhdx = await readVhdx(file, source, (error) => {
    // No one reads more of them, and looking for more costs time.
    if (isTooMany(findings)) throw error;
    const { offset } = error.details;
    findings.push({ severity: 'error', message: error.message, ...(typeof offset === 'number' ? { offset } : {}) });
  });
  const { copies, log, blocks, metadata, fileBytes } = vhdx;
  const warn = (message: string, offset: number): void => void findings.push({ severity: 'warning', message, offset });
  copies.headers.forEach((good, index) => {
    if (!good) warn(`Copy ${index} of the header is damaged; the other is good.`, HEADER_OFFSETS[index]!);
  });
  copies.regionTables.forEach((good, index) => {
    if (!good) warn(`Copy ${index} of the region table is damaged; the other is good.`, REGION_TABLE_OFFSETS[index]!);
  });
  if (copies.regionTables.every(Boolean)) {
    const [first, second] = await Promise.all(
      REGION_TABLE_OFFSETS.map((offset) => log.view.read(offset, REGION_TABLE_BYTES)),
    );
    if (!first!.equals(second!))
      warn('The copies of the region table differ; the first is used.', REGION_TABLE_OFFSETS[1]);
  }
  const logOffset = Number(vhdx.header.logOffset);
  if (log.kind === 'pending') warn(`The log holds changes that are not in place: the last writer died.`, logOffset);
  if (log.kind === 'unused')
    warn('The log is in use but holds no whole entry: the last writer died while it wrote the first.', logOffset);

  const { free, end } = mapSpace(vhdx);
  const firstBlock = blocks.offsets.reduce((least, offset) => Math.min(least, offset), end);
  let unusedBytes = Math.max(0, fileBytes - end);
  for (const span of free) {
    unusedBytes += span.end - span.start;
    // Writers leave room in front of the first block; QEMU leaves 4 MiB.
    if (span.start < firstBlock || isTooMany(findings)) continue;
    findings.push({
      severity: 'leak',
      message: `Nothing refers to the ${span.end - span.start} bytes at ${span.start}.`,
      offset: span.start,
    });
  }
  if (blocks.present > 0 && fileBytes - end >= metadata.blockSizeBytes)
    findings.push({
      severity: 'leak',
      message: `Nothing refers to the last ${fileBytes - end} bytes.`,
      offset: end,
    });
  return { totalBlocks: blocks.total, presentBlocks: blocks.present, imageEndBytes: end, unusedBytes };
}
