/** The first LCOW package of hcsshim (seed: internal/lcow v0.8.0): scratch disks, layer disks, processes with bounded copies. */
export { createScratch, DefaultScratchSizeGB, type CreateScratchOptions } from './scratch.js';
export { copyBytes, CopyError, type CopyOptions } from './copy.js';
export { createProcess, DEFAULT_PATH, type ProcessOptions, type ByteCounts } from './process.js';
