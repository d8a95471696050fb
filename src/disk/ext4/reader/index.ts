/** ext4, read: without a mount, without trust. */
export { Ext4Reader, openExt4, type WalkedEntry } from './reader.js';
export type { Ext4Inode, InodeKind } from './inode.js';
export type { DirectoryEntry } from './directory.js';
export type { FileContent } from './content.js';
