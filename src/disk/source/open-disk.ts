import type { FileHandle } from 'node:fs/promises';
import { asIoError } from '../../state/index.js';
import { openDiskFile } from '../structure/index.js';
import { findVhdFooter, looksLikeVhd, readDynamicVhd } from '../vhd/index.js';
import { looksLikeVhdx, openVhdx } from '../vhdx/index.js';
import type { BlockSource } from './block-source.js';
import { DynamicVhdSource } from './dynamic-vhd-source.js';
import { FileSource } from './file-source.js';

/** How a file holds a disk. */
export type DiskFormat = 'raw' | 'vhd' | 'vhdx';

/** A disk of a file, which is closed with it. */
export interface OpenDisk extends AsyncDisposable {
  readonly format: DiskFormat;
  readonly source: BlockSource;
  close(): Promise<void>;
}

/**
 * Opens the disk in a file for reading: a VHDX, its pending log replayed in memory, a fixed or dynamic VHD, or else a raw
 * image.
 * @param options.format what the file is; told by its content when absent. Whoever may write a raw disk can make it look
 * like another format: name the format where that matters.
 * @throws LcowError NOT_FOUND, BAD_VHD, BAD_VHDX, IO_FAILED.
 */
export async function openDisk(path: string, options: { format?: DiskFormat | undefined } = {}): Promise<OpenDisk> {
  const file = await openDiskFile(path);
  try {
    const format = options.format ?? (await detect(file));
    if (format === 'vhdx') {
      const source = await openVhdx(path);
      await file.close();
      const close = () => source.close();
      return { format, source, close, [Symbol.asyncDispose]: close };
    }
    const source =
      format === 'raw' ? new FileSource(file, path, (await file.stat()).size) : await vhdSource(file, path);
    const close = () => file.close();
    return { format, source, close, [Symbol.asyncDispose]: close };
  } catch (error) {
    await file.close();
    throw asIoError(error, `The disk ${path} cannot be read`);
  }
}

async function detect(file: FileHandle): Promise<DiskFormat> {
  if (await looksLikeVhdx(file)) return 'vhdx';
  return (await looksLikeVhd(file)) ? 'vhd' : 'raw';
}

async function vhdSource(file: FileHandle, path: string): Promise<BlockSource> {
  const { footer } = await findVhdFooter(file, path);
  if (footer.kind === 'fixed') return new FileSource(file, path, footer.virtualSizeBytes);
  return new DynamicVhdSource(file, path, footer.virtualSizeBytes, await readDynamicVhd(file, footer, path));
}
