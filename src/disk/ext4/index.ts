/** ext4: written forward in one pass, or blank; never mounted here. */
export { formatBlankExt4, type BlankExt4Options, type BlockWriter } from './blank.js';
