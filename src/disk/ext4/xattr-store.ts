import { encodeXattrs, MAXIMUM_REFERENCES, setReferences, type EncodedXattrs, type Xattrs } from './xattr.js';

/** Attributes of one set, kept once however many inodes have them. */
interface Shared {
  readonly xattrs: Xattrs;
  readonly encoded: EncodedXattrs;
  /** The block that further inodes may refer to. */
  block: { number: number; references: number; content: Buffer } | undefined;
}

/** The extended attributes of all inodes. Equal sets share memory, and blocks as the kernel shares them. */
export class XattrStore {
  readonly #byInode = new Map<number, Shared>();
  readonly #byContent = new Map<string, Shared>();
  readonly #blockOfInode = new Map<number, number>();

  /** Replaces the attributes of an inode. @throws LcowError BAD_TAR, its message to be completed by the caller's. */
  set(inode: number, xattrs: Xattrs | undefined): void {
    if (!xattrs || xattrs.size === 0) {
      this.#byInode.delete(inode);
      return;
    }
    let key = '';
    for (const [name, value] of xattrs) key += `${name.length}:${value.length}:${name}${value.toString('latin1')}`;
    let shared = this.#byContent.get(key);
    if (!shared) {
      // Copied: the values are views of a whole pax header.
      const own = new Map([...xattrs].map(([name, value]) => [name, Buffer.from(value)] as const));
      shared = { xattrs: own, encoded: encodeXattrs(own), block: undefined };
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
   * Places the blocks of all inodes' attributes, shared by up to 1024 inodes each.
   * @param allocate returns the number of the next block to be written.
   * @returns the blocks in that order.
   */
  placeBlocks(allocate: () => number): Buffer[] {
    const blocks: Buffer[] = [];
    for (const [inode, shared] of this.#byInode) {
      if (!shared.encoded.block) continue;
      if (!shared.block || shared.block.references === MAXIMUM_REFERENCES) {
        shared.block = { number: allocate(), references: 0, content: Buffer.from(shared.encoded.block) };
        blocks.push(shared.block.content);
      }
      shared.block.references += 1;
      setReferences(shared.block.content, shared.block.references);
      this.#blockOfInode.set(inode, shared.block.number);
    }
    return blocks;
  }

  /** The part in the inode. */
  body(inode: number): Buffer | undefined {
    return this.#byInode.get(inode)?.encoded.body;
  }

  /** The placed block; 0 for none. */
  block(inode: number): number {
    return this.#blockOfInode.get(inode) ?? 0;
  }

  /** Whether any inode has attributes. */
  get isEmpty(): boolean {
    return this.#byInode.size === 0;
  }
}
