/** Holes: telling zeros from data, and copying a file without filling its holes. */
export { isZero, nonZeroRuns } from './zeros.js';
export { copySparse, refuseExisting, type SparseCopyResult } from './copy.js';
