import { LcowError } from '../../../errors/index.js';
import { PageCache, type BlockSource } from '../../source/index.js';
import type { StructureValues } from '../../structure/index.js';
import {
  COMPAT,
  DESCRIPTOR_BYTES,
  GROUP_DESCRIPTOR,
  INCOMPAT,
  RO_COMPAT,
  SUPERBLOCK,
  SUPERBLOCK_MAGIC,
  SUPERBLOCK_OFFSET,
} from '../structures.js';
import { checksumOfNumber, checksumOfZeros, crc16, metadataChecksum, NO_SEED } from './checksum.js';

export type SuperblockValues = StructureValues<typeof SUPERBLOCK.fields>;

/** Incompatible features that change nothing for a reader, or that this one knows. Others are refused by name. */
const KNOWN_INCOMPAT =
  INCOMPAT.filetype |
  INCOMPAT.recover |
  INCOMPAT.meta_bg |
  INCOMPAT.extents |
  INCOMPAT.bit64 |
  INCOMPAT.mmp |
  INCOMPAT.flex_bg |
  INCOMPAT.ea_inode |
  INCOMPAT.csum_seed |
  INCOMPAT.largedir |
  INCOMPAT.inline_data |
  INCOMPAT.casefold;

const CHECKSUM_CRC32C = 1;
/** Table blocks of groups that are remembered. */
const REMEMBERED_GROUPS = 4096;
const DESCRIPTOR_CHECKSUM_AT = 0x1e;

/** The shape of an ext4, from its super block, and its metadata blocks. */
export class Volume {
  readonly blockBytes: number;
  readonly blocks: number;
  readonly inodes: number;
  readonly inodeBytes: number;
  /** Whether metadata carries checksums, which are then verified. */
  readonly checksums: boolean;
  /** Whether entries of directories tell the kind of their inode. */
  readonly filetype: boolean;
  readonly checksumSeed: number;
  readonly cache: PageCache;
  readonly #groups: number;
  readonly #descriptorBytes: number;
  readonly #tables = new Map<number, number>();

  private constructor(
    source: BlockSource,
    readonly superblock: SuperblockValues,
  ) {
    this.cache = new PageCache(source);
    this.blockBytes = 1024 * 2 ** superblock.s_log_block_size;
    const wide = this.hasIncompat(INCOMPAT.bit64);
    this.blocks = superblock.s_blocks_count_lo + (wide ? superblock.s_blocks_count_hi * 2 ** 32 : 0);
    this.inodes = superblock.s_inodes_count;
    this.inodeBytes = superblock.s_rev_level === 0 ? 128 : superblock.s_inode_size;
    this.checksums = (superblock.s_feature_ro_compat & RO_COMPAT.metadata_csum) !== 0;
    this.filetype = this.hasIncompat(INCOMPAT.filetype);
    this.checksumSeed = this.hasIncompat(INCOMPAT.csum_seed)
      ? superblock.s_checksum_seed
      : metadataChecksum(NO_SEED, superblock.s_uuid);
    this.#descriptorBytes = wide ? Math.max(superblock.s_desc_size, DESCRIPTOR_BYTES) : DESCRIPTOR_BYTES;
    this.#groups = Math.ceil((this.blocks - superblock.s_first_data_block) / superblock.s_blocks_per_group);
  }

  /** Reads and checks the super block. @throws LcowError BAD_EXT4 */
  static async open(source: BlockSource): Promise<Volume> {
    if (source.sizeBytes < SUPERBLOCK_OFFSET + SUPERBLOCK.size)
      throw new LcowError('BAD_EXT4', `${source.name} is too short for an ext4 file system.`);
    const bytes = Buffer.alloc(SUPERBLOCK.size);
    await source.readInto(bytes, SUPERBLOCK_OFFSET);
    const superblock = SUPERBLOCK.decode(bytes);
    const bad = (reason: string): LcowError =>
      new LcowError('BAD_EXT4', `${source.name} is not a good ext4: its super block ${reason}.`);
    if (superblock.s_magic !== SUPERBLOCK_MAGIC)
      throw new LcowError('BAD_EXT4', `${source.name} holds no ext4 file system.`);
    if (superblock.s_log_block_size > 6) throw bad(`has the block size 2^${superblock.s_log_block_size + 10}`);
    if (superblock.s_rev_level > 1) throw bad(`is of the unknown revision ${superblock.s_rev_level}`);
    refuseUnknown(source.name, superblock.s_feature_incompat);
    const volume = new Volume(source, superblock);
    if (volume.checksums) {
      if (superblock.s_checksum_type !== CHECKSUM_CRC32C)
        throw bad(`has checksums of the unknown kind ${superblock.s_checksum_type}`);
      if (metadataChecksum(NO_SEED, bytes.subarray(0, 0x3fc)) !== superblock.s_checksum)
        throw bad('does not match its checksum');
    }
    const problem = volume.#problem();
    if (problem !== undefined) throw bad(problem);
    return volume;
  }

  hasIncompat(feature: number): boolean {
    return (this.superblock.s_feature_incompat & feature) !== 0;
  }

  get hasJournal(): boolean {
    return (this.superblock.s_feature_compat & COMPAT.has_journal) !== 0;
  }

  /** Values no good super block has, and on which the rest relies. */
  #problem(): string | undefined {
    const { superblock, blockBytes, blocks, inodeBytes } = this;
    const bits = blockBytes * 8;
    if (!Number.isSafeInteger(blocks * blockBytes) || blocks * blockBytes > this.cache.source.sizeBytes)
      return `tells of ${blocks} blocks of ${blockBytes} bytes, and the disk has ${this.cache.source.sizeBytes} bytes`;
    if (superblock.s_first_data_block >= blocks || superblock.s_first_data_block > 1)
      return `begins at block ${superblock.s_first_data_block}`;
    // With bigalloc the bitmap counts clusters, and a group has more blocks than its bitmap has bits.
    const clusterShift = Math.max(0, superblock.s_log_cluster_size - superblock.s_log_block_size);
    if (superblock.s_blocks_per_group === 0 || superblock.s_blocks_per_group > bits * 2 ** Math.min(clusterShift, 20))
      return `has groups of ${superblock.s_blocks_per_group} blocks`;
    if (superblock.s_inodes_per_group === 0 || superblock.s_inodes_per_group > bits)
      return `has groups of ${superblock.s_inodes_per_group} inodes`;
    if (inodeBytes < 128 || inodeBytes > blockBytes || (inodeBytes & (inodeBytes - 1)) !== 0)
      return `has inodes of ${inodeBytes} bytes`;
    if (this.inodes > this.#groups * superblock.s_inodes_per_group)
      return `tells of ${this.inodes} inodes in ${this.#groups} groups`;
    const size = this.#descriptorBytes;
    if (size > blockBytes || (size & (size - 1)) !== 0) return `has group descriptors of ${size} bytes`;
    return undefined;
  }

  /** The error for what is found wrong. */
  bad(reason: string): LcowError {
    return new LcowError('BAD_EXT4', `${this.cache.source.name} is not a good ext4: ${reason}.`);
  }

  /** Reads a metadata block. @param owner what refers to it, for errors. */
  block(number: number, owner: string): Buffer | Promise<Buffer> {
    this.checkBlocks(number, 1, owner);
    return this.cache.read(number * this.blockBytes, this.blockBytes);
  }

  /** @throws LcowError BAD_EXT4 unless the blocks are in the file system. Block 0 holds no one's data. */
  checkBlocks(first: number, count: number, owner: string): void {
    if (first < 1 || first + count > this.blocks)
      throw this.bad(`${owner} refers to block ${first + count - 1} of ${this.blocks}`);
  }

  /** The bytes of an inode, as they are on the disk. */
  inode(number: number): Buffer | Promise<Buffer> {
    if (number < 1 || number > this.inodes) throw this.bad(`there is no inode ${number}`);
    const perGroup = this.superblock.s_inodes_per_group;
    const group = Math.floor((number - 1) / perGroup);
    const table = this.#tables.get(group) ?? this.#readTable(group);
    const within = ((number - 1) % perGroup) * this.inodeBytes;
    if (typeof table === 'number') return this.cache.read(table * this.blockBytes + within, this.inodeBytes);
    return table.then((first) => this.cache.read(first * this.blockBytes + within, this.inodeBytes));
  }

  /** Where the inode table of a group begins. */
  async #readTable(group: number): Promise<number> {
    const perBlock = this.blockBytes / this.#descriptorBytes;
    const block = await this.block(
      this.#descriptorBlock(Math.floor(group / perBlock)),
      `the descriptor of group ${group}`,
    );
    const at = (group % perBlock) * this.#descriptorBytes;
    const descriptor = block.subarray(at, at + this.#descriptorBytes);
    this.#verifyDescriptor(group, descriptor);
    const low = descriptor.readUInt32LE(GROUP_DESCRIPTOR.fields.bg_inode_table_lo.offset);
    const high = this.#descriptorBytes >= 64 ? descriptor.readUInt32LE(0x28) : 0;
    const table = low + high * 2 ** 32;
    const blocks = Math.ceil((this.superblock.s_inodes_per_group * this.inodeBytes) / this.blockBytes);
    this.checkBlocks(table, blocks, `the descriptor of group ${group}`);
    if (this.#tables.size >= REMEMBERED_GROUPS) this.#tables.clear();
    this.#tables.set(group, table);
    return table;
  }

  #verifyDescriptor(group: number, descriptor: Buffer): void {
    const stored = descriptor.readUInt16LE(DESCRIPTOR_CHECKSUM_AT);
    const head = descriptor.subarray(0, DESCRIPTOR_CHECKSUM_AT);
    const tail = descriptor.subarray(DESCRIPTOR_CHECKSUM_AT + 2);
    let computed: number;
    if (this.checksums) {
      const seed = metadataChecksum(checksumOfNumber(this.checksumSeed, group), head);
      computed = metadataChecksum(checksumOfZeros(seed, 2), tail) & 0xffff;
    } else if (this.superblock.s_feature_ro_compat & RO_COMPAT.gdt_csum) {
      const number = Buffer.alloc(4);
      number.writeUInt32LE(group);
      computed = crc16(crc16(crc16(crc16(0xffff, this.superblock.s_uuid), number), head), tail);
    } else return;
    if (computed !== stored) throw this.bad(`the descriptor of group ${group} does not match its checksum`);
  }

  /** Where a block of group descriptors is (descriptor_loc of fs/ext4/super.c). */
  #descriptorBlock(index: number): number {
    const { superblock, blockBytes } = this;
    const superblockBlock = blockBytes === 1024 ? 1 : 0;
    if (!this.hasIncompat(INCOMPAT.meta_bg) || index < superblock.s_first_meta_bg) return superblockBlock + 1 + index;
    const group = index * (blockBytes / this.#descriptorBytes);
    return superblock.s_first_data_block + group * superblock.s_blocks_per_group + (this.#hasSuperblock(group) ? 1 : 0);
  }

  #hasSuperblock(group: number): boolean {
    const { superblock } = this;
    if (group === 0) return true;
    if (superblock.s_feature_compat & COMPAT.sparse_super2) {
      const backups = Buffer.from(superblock.s_backup_bgs);
      return group === backups.readUInt32LE(0) || group === backups.readUInt32LE(4);
    }
    if (group === 1 || !(superblock.s_feature_ro_compat & RO_COMPAT.sparse_super)) return true;
    return [3, 5, 7].some((base) => {
      let power = base;
      while (power < group) power *= base;
      return power === group;
    });
  }
}

function refuseUnknown(name: string, features: number): void {
  const unknown = (features & ~KNOWN_INCOMPAT) >>> 0;
  if (unknown === 0) return;
  const names = Object.entries(INCOMPAT)
    .filter(([, bit]) => unknown & bit)
    .map(([feature]) => feature);
  const rest = Object.values(INCOMPAT).reduce<number>((left, bit) => left & ~bit, unknown) >>> 0;
  if (rest !== 0) names.push(`0x${rest.toString(16)}`);
  throw new LcowError('BAD_EXT4', `${name} has an ext4 with features that cannot be read: ${names.join(', ')}.`);
}
