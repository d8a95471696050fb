/** Disks as bytes at offsets, whatever file format holds them. */
export { MemorySource, type BlockSource } from './block-source.js';
export { FileSource } from './file-source.js';
export { VhdxSource } from './vhdx-source.js';
export { openDisk, type OpenDisk } from './open-disk.js';
export { PageCache } from './page-cache.js';
