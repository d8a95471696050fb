import { open, type FileHandle } from 'node:fs/promises';
import { LcowError } from '../../errors/index.js';
import { asIoError } from '../../state/index.js';
import { readAt } from '../structure/index.js';
import { decodeVhdFooter, VHD_FOOTER_BYTES } from '../vhd/index.js';
import type { BlockSource } from './block-source.js';
import { FileSource } from './file-source.js';
import { VhdxSource } from './vhdx-source.js';

/** A disk of a file, which is closed with it. */
export interface OpenDisk extends AsyncDisposable {
  readonly source: BlockSource;
  close(): Promise<void>;
}

/**
 * Opens the disk in a file for reading: a VHDX, a fixed VHD, or else a raw image; told apart by content.
 * @throws LcowError NOT_FOUND, BAD_VHD, BAD_VHDX, IO_FAILED.
 */
export async function openDisk(path: string): Promise<OpenDisk> {
  let file: FileHandle;
  try {
    file = await open(path, 'r');
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === 'ENOENT')
      throw new LcowError('NOT_FOUND', `The disk ${path} does not exist.`, { cause });
    throw asIoError(cause, `The disk ${path} cannot be opened`);
  }
  try {
    const source = await sourceOf(file, path);
    const close = () => file.close();
    return { source, close, [Symbol.asyncDispose]: close };
  } catch (error) {
    await file.close();
    throw asIoError(error, `The disk ${path} cannot be read`);
  }
}

async function sourceOf(file: FileHandle, path: string): Promise<BlockSource> {
  const { size } = await file.stat();
  if ((await readAt(file, 0, 8)).toString('latin1') === 'vhdxfile') return VhdxSource.open(file, path);
  const footerOffset = size - VHD_FOOTER_BYTES;
  if (footerOffset < 0) return new FileSource(file, path, size);
  const end = await readAt(file, footerOffset, VHD_FOOTER_BYTES);
  if (end.toString('latin1', 0, 8) !== 'conectix') return new FileSource(file, path, size);
  const footer = decodeVhdFooter(end, path, footerOffset);
  if (footer.kind !== 'fixed')
    throw new LcowError(
      'BAD_VHD',
      `${path} is a ${footer.kind} VHD, which cannot be read; qemu-img convert makes it raw.`,
    );
  if (footer.virtualSizeBytes > footerOffset)
    throw new LcowError(
      'BAD_VHD',
      `${path} is cut off: its footer tells of ${footer.virtualSizeBytes} bytes, and ${footerOffset} stand before it.`,
    );
  return new FileSource(file, path, footer.virtualSizeBytes);
}
