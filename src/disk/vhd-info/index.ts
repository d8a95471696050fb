/** What a VHD or VHDX file is and whether its structures are good, without looking at its data. */
import type { FileHandle } from 'node:fs/promises';
import { isLcowError, LcowError } from '../../errors/index.js';
import { asIoError } from '../../state/index.js';
import { ext4Info, type Ext4Info } from '../ext4/index.js';
import { openDiskFile } from '../structure/index.js';
import { findVhdFooter, readDynamicVhd } from '../vhd/index.js';
import { looksLikeVhdx, readVhdx } from '../vhdx/index.js';

interface CommonInfo {
  /** Size of the disk. */
  readonly virtualSizeBytes: number;
  /** Apparent size of the file. */
  readonly fileSizeBytes: number;
  /** What the file takes on the host's disk: less than its size when it has holes. */
  readonly allocatedBytes: number;
  /** Identity of the disk: the footer's unique id, or the page 83 identity of a VHDX. */
  readonly uuid: string;
  /** What its writer called itself; any text. */
  readonly creator: string;
}

interface BlockInfo {
  readonly blockSizeBytes: number;
  readonly totalBlocks: number;
  /** Blocks that are in the file; the others are zeros. */
  readonly presentBlocks: number;
}

/** A raw image with a footer: a read-only layer. */
export interface FixedVhdInfo extends CommonInfo {
  readonly kind: 'fixed-vhd';
  /** The file system in it; absent when it is no ext4, or a damaged one. */
  readonly ext4?: Ext4Info;
  /** Cylinders, heads and sectors per track, which some readers take the size from. */
  readonly geometry: readonly [cylinders: number, heads: number, sectorsPerTrack: number];
}

export interface DynamicVhdInfo extends CommonInfo, BlockInfo {
  readonly kind: 'dynamic-vhd';
  /** Whether the footer at the end is good; the copy at the start is, or this would be an error. */
  readonly footerGood: boolean;
}

export interface VhdxInfo extends CommonInfo, BlockInfo {
  readonly kind: 'vhdx';
  /** The file system in it; absent when it is no ext4, or a damaged one. */
  readonly ext4?: Ext4Info;
  readonly logicalSectorBytes: number;
  readonly physicalSectorBytes: number;
  /** Whether all blocks are allocated beforehand. */
  readonly fixed: boolean;
  /** The log is to be replayed into the file: its writer died. Readers here do it in memory; the rest counts it as done. */
  readonly logPending: boolean;
  /** Which of the two copies are good; readers need one of each. */
  readonly headersGood: readonly [boolean, boolean];
  readonly regionTablesGood: readonly [boolean, boolean];
  /** Where a differencing file has its parent, as it says. */
  readonly parentPaths?: readonly string[];
  /** Changes whenever the data may have changed. */
  readonly dataWriteGuid: string;
}

export type VhdInfo = FixedVhdInfo | DynamicVhdInfo | VhdxInfo;

/**
 * Tells a fixed VHD, a dynamic VHD and a VHDX apart by content and describes it. Checksums, sizes and the places of all
 * blocks are verified: what this returns without an error is sound in structure.
 * @throws LcowError NOT_FOUND; BAD_VHD or BAD_VHDX naming the field and its offset; IO_FAILED.
 */
export async function vhdInfo(path: string): Promise<VhdInfo> {
  const file = await openDiskFile(path);
  try {
    return await describe(file, path);
  } catch (error) {
    if (error instanceof LcowError) throw error;
    throw asIoError(error, `The disk ${path} cannot be read`);
  } finally {
    await file.close();
  }
}

async function describe(file: FileHandle, path: string): Promise<VhdInfo> {
  const stat = await file.stat();
  if (!stat.isFile()) throw new LcowError('BAD_VHD', `${path} is not a VHD: it is not a file.`);
  const sizes = { fileSizeBytes: stat.size, allocatedBytes: stat.blocks * 512 };
  if (await looksLikeVhdx(file)) return { ...sizes, ...(await describeVhdx(file, path)) };
  const { footer, footerGood } = await findVhdFooter(file, path);
  const common = {
    ...sizes,
    virtualSizeBytes: footer.virtualSizeBytes,
    uuid: formatUuid(footer.uniqueId),
    creator: footer.creatorApplication.trim(),
  };
  if (footer.kind === 'fixed')
    return {
      kind: 'fixed-vhd',
      ...common,
      geometry: [footer.cylinders, footer.heads, footer.sectorsPerTrack],
      ...(await findExt4(path, 0)),
    };
  const { blockSizeBytes, totalBlocks, presentBlocks } = await readDynamicVhd(file, footer, path);
  return { kind: 'dynamic-vhd', ...common, footerGood, blockSizeBytes, totalBlocks, presentBlocks };
}

async function describeVhdx(
  file: FileHandle,
  path: string,
): Promise<Omit<VhdxInfo, 'fileSizeBytes' | 'allocatedBytes'>> {
  const { creator, header, copies, logPending, metadata, blocks } = await readVhdx(file, path);
  return {
    kind: 'vhdx',
    virtualSizeBytes: metadata.virtualSizeBytes,
    uuid: metadata.virtualDiskId,
    creator,
    blockSizeBytes: metadata.blockSizeBytes,
    totalBlocks: blocks.total,
    presentBlocks: blocks.present,
    logicalSectorBytes: metadata.logicalSectorBytes,
    physicalSectorBytes: metadata.physicalSectorBytes,
    fixed: metadata.leaveBlocksAllocated,
    logPending,
    headersGood: copies.headers,
    regionTablesGood: copies.regionTables,
    dataWriteGuid: header.dataWriteGuid,
    ...(metadata.parent ? { parentPaths: metadata.parent.paths } : {}),
    // The super block is in the first 2 KiB, and so in block 0.
    ...(blocks.numbers[0] === 0 ? await findExt4(path, blocks.offsets[0]!) : {}),
  };
}

async function findExt4(path: string, offset: number): Promise<{ ext4?: Ext4Info }> {
  try {
    return { ext4: await ext4Info(path, offset) };
  } catch (error) {
    if (isLcowError(error, 'BAD_EXT4')) return {};
    throw error;
  }
}

/** VHD stores its unique id in printed order. */
function formatUuid(bytes: Uint8Array): string {
  return Buffer.from(bytes)
    .toString('hex')
    .replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5');
}
