/**
 * Layers on disk (seed: moby's lcow graph driver): read-only layers made from tar streams, writable layers made from a
 * blank scratch. Knows nothing of containers.
 */
export { initDriver, Driver, LAYER_VHD, SANDBOX_VHDX, type CreateOpts, type ApplyDiffOptions } from './driver.js';
