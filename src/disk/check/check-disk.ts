import type { FileHandle } from 'node:fs/promises';
import { isLcowError } from '../../errors/index.js';
import { asIoError } from '../../state/index.js';
import { isTooMany, openDiskFile, type DiskFinding } from '../structure/index.js';
import { findVhdFooter, readDynamicVhd } from '../vhd/index.js';
import { checkVhdx, looksLikeVhdx } from '../vhdx/index.js';

export type { DiskFinding } from '../structure/index.js';

/** What {@link checkDisk} found. */
export interface DiskCheck {
  readonly kind: 'vhdx' | 'fixed-vhd' | 'dynamic-vhd' | 'unknown';
  /** In the order they were found; the first 1000. Empty for a file in order. */
  readonly findings: readonly DiskFinding[];
  /** Findings by severity. */
  readonly errors: number;
  readonly warnings: number;
  readonly leaks: number;
  /** Payload blocks of the disk and how many are in the file; absent for fixed VHDs and files that cannot be read. */
  readonly totalBlocks?: number;
  readonly presentBlocks?: number;
  /** Where the last structure or block ends; absent likewise. */
  readonly imageEndBytes?: number;
  /** Bytes that nothing refers to, between structures and behind the last. */
  readonly unusedBytes?: number;
}

/**
 * Checks the structures of a VHD or VHDX, as `qemu-img check` does, and more: both headers and region tables, the log, all
 * regions, the metadata, each entry of the BAT against file, regions and other blocks, and space that was lost. A pending
 * log counts as replayed. The data is not looked at, the file not changed.
 *
 * - error: the disk cannot be read right, or not at all.
 * - warning: it can, but something is to be repaired: a pending log, one of two copies damaged.
 * - leak: space that nothing refers to, as a crash leaves it; the next writer uses it.
 * @throws LcowError NOT_FOUND, IO_FAILED. A file that is neither VHD nor VHDX has an error among its findings.
 */
export async function checkDisk(path: string): Promise<DiskCheck> {
  const file = await openDiskFile(path);
  const findings: DiskFinding[] = [];
  let facts: Omit<DiskCheck, 'findings' | 'errors' | 'warnings' | 'leaks'> = { kind: 'unknown' };
  try {
    if (await looksLikeVhdx(file)) {
      facts = { kind: 'vhdx' };
      facts = { kind: 'vhdx', ...(await checkVhdx(file, path, findings)) };
    } else facts = await checkVhd(file, path, findings);
  } catch (error) {
    if (!isLcowError(error, 'BAD_VHD', 'BAD_VHDX')) throw asIoError(error, `The disk ${path} cannot be checked`);
    if (!isTooMany(findings)) findings.push({ severity: 'error', message: error.message });
  } finally {
    await file.close();
  }
  const count = (severity: DiskFinding['severity']): number =>
    findings.filter((finding) => finding.severity === severity).length;
  return { ...facts, findings, errors: count('error'), warnings: count('warning'), leaks: count('leak') };
}

async function checkVhd(
  file: FileHandle,
  path: string,
  findings: DiskFinding[],
): Promise<Omit<DiskCheck, 'findings' | 'errors' | 'warnings' | 'leaks'>> {
  const { footer, footerGood } = await findVhdFooter(file, path);
  if (footer.kind === 'fixed') return { kind: 'fixed-vhd' };
  if (!footerGood)
    findings.push({
      severity: 'warning',
      message: 'The footer at the end is damaged; its copy at the start is good.',
      offset: (await file.stat()).size - 512,
    });
  const { totalBlocks, presentBlocks, numbers, offsets, blockSizeBytes } = await readDynamicVhd(file, footer, path);
  const order = numbers.map((_, index) => index).sort((one, other) => offsets[one]! - offsets[other]!);
  for (let at = 1; at < order.length && !isTooMany(findings); at++) {
    const [before, here] = [order[at - 1]!, order[at]!];
    if (offsets[here]! - offsets[before]! < blockSizeBytes)
      findings.push({
        severity: 'error',
        message: `Block ${numbers[here]!} lies over block ${numbers[before]!}.`,
        offset: offsets[here]!,
      });
  }
  return { kind: 'dynamic-vhd', totalBlocks, presentBlocks };
}
