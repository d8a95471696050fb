/**
 * What a disk file of the host is, found out by us: QEMU is never left to guess a format, since a guest could write
 * another format's header into a raw disk and have QEMU open any file of the host through it.
 */
import type { FileHandle } from 'node:fs/promises';
import { openDiskFile } from '../../disk/index.js';
import { LcowError } from '../../errors/index.js';
import { asIoError } from '../../state/index.js';
import type { Attachment } from '../schema/index.js';

const FOOTER_BYTES = 512;
/** VHD specification 1.0, "Hard Disk Footer Format": cookie at 0, disk type at 60. */
const VHD_COOKIE = 'conectix';
const VHD_TYPE_FIXED = 2;
/** [MS-VHDX] 2.2.1: the file type identifier. */
const VHDX_SIGNATURE = 'vhdxfile';
const SECTOR_BYTES = 512;

/** The content of a disk file. */
export type DiskImage =
  | { readonly format: 'fixed VHD'; readonly sizeBytes: number }
  | { readonly format: 'VHDX' }
  | { readonly format: 'raw'; readonly sizeBytes: number };

/** A node for QEMU's blockdev-add. */
export interface BlockNode {
  readonly driver: 'raw' | 'vhdx';
  readonly 'node-name': string;
  readonly 'read-only': boolean;
  readonly size?: number;
  readonly discard: 'unmap' | 'ignore';
  readonly file: {
    readonly driver: 'file';
    readonly filename: string;
    readonly locking: 'auto' | 'off';
  };
}

/** The device id of the disk in a slot, which is its node name too. */
export function diskDeviceId(controller: number, lun: number): string {
  return `disk${controller}-${lun}`;
}

/**
 * Tells a disk by its content. A file without a known signature is raw, and only taken with the ending `.raw`.
 * @throws LcowError NOT_FOUND, INVALID_ARGUMENT (no file, no known format), NOT_SUPPORTED (a dynamic or differencing VHD),
 * IO_FAILED.
 */
export async function inspectDisk(path: string): Promise<DiskImage> {
  const file = await openDiskFile(path);
  try {
    const stat = await file.stat();
    if (!stat.isFile()) throw new LcowError('INVALID_ARGUMENT', `The disk ${path} is not a file.`);
    return await classify(file, path, stat.size);
  } catch (cause) {
    throw asIoError(cause, `The disk ${path} cannot be read`);
  } finally {
    await file.close();
  }
}

async function classify(file: FileHandle, path: string, fileBytes: number): Promise<DiskImage> {
  const head = await readAt(file, 0, 8);
  if (head.toString('latin1') === VHDX_SIGNATURE) return { format: 'VHDX' };
  if (fileBytes > FOOTER_BYTES) {
    const footer = await readAt(file, fileBytes - FOOTER_BYTES, FOOTER_BYTES);
    if (footer.toString('latin1', 0, 8) === VHD_COOKIE) {
      if (footer.readUInt32BE(60) !== VHD_TYPE_FIXED)
        throw new LcowError('NOT_SUPPORTED', `The disk ${path} is a VHD, but not a fixed one.`);
      const sizeBytes = fileBytes - FOOTER_BYTES;
      checkSectors(path, sizeBytes);
      return { format: 'fixed VHD', sizeBytes };
    }
  }
  if (!path.endsWith('.raw'))
    throw new LcowError('INVALID_ARGUMENT', `The disk ${path} is neither a fixed VHD nor a VHDX.`, {
      hint: 'A raw disk is only taken when its name ends in .raw.',
    });
  checkSectors(path, fileBytes);
  return { format: 'raw', sizeBytes: fileBytes };
}

function checkSectors(path: string, sizeBytes: number): void {
  if (sizeBytes === 0 || sizeBytes % SECTOR_BYTES !== 0)
    throw new LcowError('INVALID_ARGUMENT', `The disk ${path} has ${sizeBytes} bytes, not a number of whole sectors.`);
}

async function readAt(file: FileHandle, position: number, length: number): Promise<Buffer> {
  const { buffer, bytesRead } = await file.read(Buffer.alloc(length), 0, length, position);
  return buffer.subarray(0, bytesRead);
}

/**
 * Describes an attachment to QEMU. Read-only disks are opened without locks, so that any number of virtual machines share
 * a layer; a writable one is locked by QEMU, so that a second one is refused.
 */
export function blockNode(controller: number, lun: number, attachment: Attachment, image: DiskImage): BlockNode {
  const readOnly = attachment.ReadOnly ?? false;
  return {
    driver: image.format === 'VHDX' ? 'vhdx' : 'raw',
    'node-name': diskDeviceId(controller, lun),
    'read-only': readOnly,
    // The size keeps the VHD footer out of the guest's reach.
    ...(image.format === 'VHDX' ? {} : { size: image.sizeBytes }),
    discard: readOnly ? 'ignore' : 'unmap',
    file: { driver: 'file', filename: attachment.Path, locking: readOnly ? 'off' : 'auto' },
  };
}
