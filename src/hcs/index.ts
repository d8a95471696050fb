/**
 * The host compute service: virtual machines from HCS schema 2.1 documents, run by QEMU. Knows nothing of what the guest
 * does.
 */
export * from './schema/index.js';
export type {
  ComputeSystem,
  ComputeSystemProperties,
  NotificationName,
  SystemExit,
  SystemState,
} from './compute-system.js';
export { NO_LOG, type Logger } from './logger.js';
export { createComputeSystem, type CreateOptions } from './qemu/compute-system.js';
export { findQemu, MINIMUM_QEMU, type QemuBinary } from './qemu/binary.js';
export { chooseAccelerator, probeAccelerators, type AcceleratorOptions } from './qemu/accelerator.js';
export { ACCELERATORS, type Accelerator, type AcceleratorVerdict } from './qemu/verdict-cache.js';
export { sweepComputeSystems } from './qemu/owner.js';
