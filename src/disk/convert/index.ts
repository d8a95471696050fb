/** Between archives and disks. */
export { tarToVhd, type TarToVhdOptions, type TarToVhdResult } from './tar-to-vhd.js';
export { readFileChunks } from './file-chunks.js';
export { convertDisk, type ConvertDiskOptions, type ConvertDiskResult } from './convert-disk.js';
