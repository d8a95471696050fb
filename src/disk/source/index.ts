/** Disks as bytes at offsets, whatever file format holds them. */
export { MemorySource, type BlockSource } from './block-source.js';
export { FileSource } from './file-source.js';
export { DynamicVhdSource } from './dynamic-vhd-source.js';
export { openDisk, type DiskFormat, type OpenDisk } from './open-disk.js';
export { PageCache } from './page-cache.js';
