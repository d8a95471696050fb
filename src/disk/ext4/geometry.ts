import { groupsFor } from './superblock.js';
import { BITS_PER_BITMAP, INODES_PER_BLOCK, MAXIMUM_BLOCKS } from './structures.js';

/** Where the closing metadata of an image stands. In blocks. */
export interface ImageGeometry {
  readonly groups: number;
  readonly blocksPerGroup: number;
  readonly inodesPerGroup: number;
  readonly inodeTable: number;
  readonly blockBitmaps: number;
  readonly inodeBitmaps: number;
  /** End of what is used. */
  readonly usedBlocks: number;
  /** Size of the file system: at least usedBlocks. */
  readonly blocks: number;
}

/**
 * Cuts an image into groups when everything but inode table and bitmaps is written.
 *
 * A group has at most 32768 inodes, since their bitmap is one block. An image of many small inodes needs more groups
 * than its blocks alone would make; its groups are then made smaller than 32768 blocks instead of the image larger.
 * @param contentBlocks blocks written so far.
 * @param inodes highest inode number in use.
 * @returns undefined when it would have 2^32 blocks or more.
 */
export function planImage(contentBlocks: number, inodes: number): ImageGeometry | undefined {
  for (let groups = Math.ceil(inodes / BITS_PER_BITMAP); ; groups += 1) {
    const inodesPerGroup = Math.ceil(inodes / groups / INODES_PER_BLOCK) * INODES_PER_BLOCK;
    const usedBlocks = contentBlocks + (groups * inodesPerGroup) / INODES_PER_BLOCK + 2 * groups;
    if (usedBlocks > MAXIMUM_BLOCKS) return undefined;
    if (groupsFor(usedBlocks) > groups) continue;
    // A multiple of 8, so that bitmaps have whole bytes.
    const blocksPerGroup =
      groupsFor(usedBlocks) === groups ? BITS_PER_BITMAP : Math.max(256, Math.ceil(usedBlocks / groups / 8) * 8);
    const inodeTable = contentBlocks;
    const blockBitmaps = inodeTable + (groups * inodesPerGroup) / INODES_PER_BLOCK;
    return {
      groups,
      blocksPerGroup,
      inodesPerGroup,
      inodeTable,
      blockBitmaps,
      inodeBitmaps: blockBitmaps + groups,
      usedBlocks,
      // The last group must exist, if only by one block.
      blocks: Math.max(usedBlocks, (groups - 1) * blocksPerGroup + 1),
    };
  }
}
