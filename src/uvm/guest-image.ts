import { existsSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { LcowError } from '../errors/index.js';

/** Kernel, uncompressed with a PVH note: QEMU starts it without a boot loader. */
export const KERNEL_FILE = 'vmlinux';
/** Root file system, with the agent as /init. */
export const INITRD_FILE = 'initrd.img';

// Both src/uvm and dist/uvm are two folders below the package.
const PACKAGED = fileURLToPath(new URL('../../guest/out', import.meta.url));

/**
 * The folder with the boot files of the utility VM: `$LCOW_GUEST_IMAGE`, else guest/out of this package
 * (hcsshim's BootFilesPath).
 * @throws LcowError GUEST_IMAGE_MISSING when it lacks vmlinux or initrd.img.
 */
export function guestImageFolder(env: NodeJS.ProcessEnv = process.env): string {
  return checkBootFiles(resolve(env['LCOW_GUEST_IMAGE'] || PACKAGED));
}

/**
 * @returns The folder.
 * @throws LcowError GUEST_IMAGE_MISSING when it lacks vmlinux or initrd.img.
 */
export function checkBootFiles(folder: string): string {
  for (const name of [KERNEL_FILE, INITRD_FILE])
    if (!existsSync(join(folder, name)))
      throw new LcowError('GUEST_IMAGE_MISSING', `The guest image folder ${folder} has no ${name}.`);
  return folder;
}
