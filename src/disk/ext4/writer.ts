import { createHash } from 'node:crypto';
import { ImageContent } from './content.js';
import { finishImage, type WrittenExt4 } from './finish.js';

/**
 * Writes an ext4 file system in one forward pass: content in the order it comes, each file in one run; then directories,
 * attributes, inodes and bitmaps; and at the end the super block at the front. That is the layout of hcsshim's tar2ext4
 * (ext4/internal/compactext4), with any number of extents, indexed directories, and nothing for e2fsck to complain of.
 *
 * Calls take paths as tar members have them, in their order, and mean what extraction would do: a later one replaces an
 * earlier, a directory over a directory only changes its attributes. Every method may throw LcowError BAD_TAR.
 */
export class Ext4Writer extends ImageContent {
  /** Writes all that is left. Nothing may be called afterwards. */
  async finish(): Promise<WrittenExt4> {
    return finishImage(this, createHash('sha256'));
  }
}
