/** ext4: written forward in one pass, or blank; never mounted here. */
export { formatBlankExt4, type BlankExt4Options, type BlockWriter } from './blank.js';
export { Ext4Writer } from './writer.js';
export { type Ext4WriterOptions, type FileAttributes, type SpecialKind } from './content.js';
export { type WrittenExt4 } from './finish.js';
export type { ForwardSink } from './sink.js';
export { ext4Info, type Ext4Info } from './info.js';
