/** Whether a disk file is in order, with everything that is wrong rather than the first of it. */
export { checkDisk, type DiskCheck, type DiskFinding } from './check-disk.js';
