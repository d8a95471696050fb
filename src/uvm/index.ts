/**
 * The utility VM: a compute system with the guest agent in it. Knows disks, networks and processes, not what a container
 * is made of.
 */
export { createUtilityVM, UtilityVM, type AddScsiOptions, type UtilityVMProperties } from './utility-vm.js';
export type { UtilityVMOptions } from './options.js';
export type { ScsiAttachment } from './scsi-manager.js';
export type { NetworkEndpoint } from './network.js';
export { guestImageFolder } from './guest-image.js';
export { sweepUtilityVMs } from './host.js';
