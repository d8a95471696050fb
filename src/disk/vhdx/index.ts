/** VHDX, the scratch format: made, read, written, repaired, resized; a reader that trusts nothing. See MS-VHDX. */
export { VhdxWriter, type VhdxWriterOptions, type VhdxWriterResult } from './writer.js';
export { crc32c } from './crc32c.js';
export { guidSource } from './guid.js';
export { looksLikeVhdx } from './looks-like-vhdx.js';
export { readVhdx, type VhdxFile } from './reader.js';
export type { VhdxMetadata } from './metadata.js';
export type { BlockTable } from './block-table.js';
export { openVhdx, MAXIMUM_CHAIN_LENGTH, type OpenVhdxOptions, type VhdxDisk } from './disk.js';
export { repairVhdx, type VhdxRepair } from './repair.js';
export { resizeVhdx, type VhdxResize } from './resize.js';
export { checkVhdx, type VhdxUsage } from './check.js';
