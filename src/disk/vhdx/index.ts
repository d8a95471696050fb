/** VHDX, the scratch format: a writer of dynamic files and a reader that trusts nothing. See MS-VHDX. */
export { VhdxWriter, type VhdxWriterOptions, type VhdxWriterResult } from './writer.js';
export { crc32c } from './crc32c.js';
export { guidSource } from './guid.js';
export { readVhdx, type VhdxFile } from './reader.js';
export type { VhdxMetadata } from './metadata.js';
export type { BlockTable } from './block-table.js';
