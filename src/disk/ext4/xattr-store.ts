import { encodeXattrBlock, encodeXattrBody, layOutXattrs, MAXIMUM_REFERENCES, type Xattrs } from './xattr.js';

/** Attributes of one set, kept once however many inodes have them, and encoded only when they are written. */
interface Shared {
  readonly xattrs: Xattrs;
  readonly needsBlock: boolean;
  /** The block that further inodes may refer to. */
  block: PlacedBlock | undefined;
  body: Buffer | undefined;
}

interface PlacedBlock {
  readonly number: number;
  readonly shared: Shared;
  references: number;
}

/** The extended attributes of all inodes. Equal sets share memory, and blocks as the kernel shares them. */
export class XattrStore {
  readonly #byInode = new Map<number, Shared>();
  readonly #byContent = new Map<string, Shared>();
  readonly #blockOfInode = new Map<number, number>();

  /** Replaces the attributes of an inode. @throws LcowError BAD_TAR when they do not fit. */
  set(inode: number, xattrs: Xattrs | undefined): void {
    if (!xattrs || xattrs.size === 0) {
      this.#byInode.delete(inode);
      return;
    }
    let key = '';
    for (const [name, value] of xattrs) key += `${name.length}:${value.length}:${name}${value.toString('latin1')}`;
    let shared = this.#byContent.get(key);
    if (!shared) {
      const { inBlock } = layOutXattrs(xattrs);
      // Copied: the values are views of a whole pax header.
      const own = new Map([...xattrs].map(([name, value]) => [name, Buffer.from(value)] as const));
      shared = { xattrs: own, needsBlock: inBlock.length > 0, block: undefined, body: undefined };
      this.#byContent.set(key, shared);
    }
    this.#byInode.set(inode, shared);
  }

  get(inode: number): Xattrs | undefined {
    return this.#byInode.get(inode)?.xattrs;
  }

  delete(inode: number): void {
    this.#byInode.delete(inode);
  }

  /**
   * Places the blocks of all inodes' attributes, each shared by up to 1024 inodes.
   * @param first number of the first block.
   * @returns the blocks in their order.
   */
  *placeBlocks(first: number): Generator<Buffer, void, undefined> {
    const placed: PlacedBlock[] = [];
    for (const [inode, shared] of this.#byInode) {
      if (!shared.needsBlock) continue;
      if (!shared.block || shared.block.references === MAXIMUM_REFERENCES) {
        shared.block = { number: first + placed.length, shared, references: 0 };
        placed.push(shared.block);
      }
      shared.block.references += 1;
      this.#blockOfInode.set(inode, shared.block.number);
    }
    for (const { shared, references } of placed)
      yield encodeXattrBlock(layOutXattrs(shared.xattrs).inBlock, references);
  }

  /** The part in the inode. */
  body(inode: number): Buffer | undefined {
    const shared = this.#byInode.get(inode);
    if (!shared) return undefined;
    if (!shared.body) {
      const { inBody } = layOutXattrs(shared.xattrs);
      if (inBody.length > 0) shared.body = encodeXattrBody(inBody);
    }
    return shared.body;
  }

  /** The placed block; 0 for none. */
  block(inode: number): number {
    return this.#blockOfInode.get(inode) ?? 0;
  }

  /** Whether no inode has attributes. */
  get isEmpty(): boolean {
    return this.#byInode.size === 0;
  }
}
