/** Disks to tars: layers and what containers changed, without a VM. */
export { vhdToTar, type VhdToTarOptions } from './vhd-to-tar.js';
