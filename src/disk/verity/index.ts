/** dm-verity: a hash tree behind a file system, by which a guest's kernel checks each block that it reads. */
export { appendVerity, verifyVerity, type Verity, type VerityCheck } from './verity.js';
export { VERITY_BLOCK_BYTES } from './superblock.js';
