import { hash } from 'node:crypto';
import { VERITY_BLOCK_BYTES } from './superblock.js';

const HASH_BYTES = 32;
const HASHES_PER_BLOCK = VERITY_BLOCK_BYTES / HASH_BYTES;

/** Where the levels of a tree are: the root's first, as the kernel reads them. */
export interface TreeLayout {
  /** Of each level, leaves first: its first block, counted from the start of the tree, and how many it has. */
  readonly levels: readonly { readonly start: number; readonly blocks: number }[];
  readonly totalBlocks: number;
}

/** The layout of the tree over so many data blocks. One data block needs no tree: its hash is the root. */
export function treeLayout(dataBlocks: number): TreeLayout {
  const counts: number[] = [];
  for (let below = dataBlocks; below > 1;) {
    below = Math.ceil(below / HASHES_PER_BLOCK);
    counts.push(below);
  }
  let start = 0;
  const levels: { start: number; blocks: number }[] = [];
  for (let level = counts.length - 1; level >= 0; level--) {
    levels[level] = { start, blocks: counts[level]! };
    start += counts[level]!;
  }
  return { levels, totalBlocks: start };
}

/**
 * Makes the hash tree of dm-verity (kernel: Documentation/admin-guide/device-mapper/verity.rst, hash type 1): a node is
 * sha256(salt || block). Takes data block by block and gives out each block of the tree when it is full, so that only one
 * block of each level is kept.
 */
export class HashTree {
  readonly #layout: TreeLayout;
  readonly #salted: Buffer;
  /** One block of each level, and how many hashes were put into the level. */
  readonly #levels: { readonly block: Buffer; hashes: number }[];
  #root: Buffer | undefined;

  /** @param onBlock takes each block of the tree by its number; the block is reused afterwards. */
  constructor(
    dataBlocks: number,
    salt: Uint8Array,
    private readonly onBlock: (number: number, block: Buffer) => void,
  ) {
    this.#layout = treeLayout(dataBlocks);
    this.#salted = Buffer.alloc(salt.length + VERITY_BLOCK_BYTES);
    this.#salted.set(salt);
    this.#levels = this.#layout.levels.map(() => ({ block: Buffer.alloc(VERITY_BLOCK_BYTES), hashes: 0 }));
  }

  /** Takes whole data blocks, in order. */
  push(data: Uint8Array): void {
    for (let at = 0; at < data.length; at += VERITY_BLOCK_BYTES)
      this.#add(0, data.subarray(at, at + VERITY_BLOCK_BYTES));
  }

  /** Gives out what is left. Returns the root hash. All data blocks must have been taken. */
  finish(): Buffer {
    for (const [level, { hashes }] of this.#levels.entries()) if (hashes % HASHES_PER_BLOCK !== 0) this.#close(level);
    return this.#root!;
  }

  /** Hashes a block of the level below; level 0 is above the data. */
  #add(level: number, below: Uint8Array): void {
    this.#salted.set(below, this.#salted.length - VERITY_BLOCK_BYTES);
    const digest = hash('sha256', this.#salted, 'buffer');
    const here = this.#levels[level];
    if (!here) {
      this.#root = digest;
      return;
    }
    digest.copy(here.block, (here.hashes % HASHES_PER_BLOCK) * HASH_BYTES);
    here.hashes += 1;
    if (here.hashes % HASHES_PER_BLOCK === 0) this.#close(level);
  }

  #close(level: number): void {
    const { block, hashes } = this.#levels[level]!;
    const number = Math.ceil(hashes / HASHES_PER_BLOCK) - 1;
    this.onBlock(this.#layout.levels[level]!.start + number, block);
    this.#add(level + 1, block);
    block.fill(0);
  }
}
