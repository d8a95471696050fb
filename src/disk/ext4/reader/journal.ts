/**
 * The journal (jbd2; "Journal" of the kernel's ext4 documents), replayed in memory: blocks that were committed and not
 * yet written home are read from the journal instead. The file is not touched. Numbers are big-endian.
 */
import type { BlockSource } from '../../source/index.js';
import { structure, u32, u8, bytes } from '../../structure/index.js';
import { FileContent } from './content.js';
import { metadataChecksum, NO_SEED } from './checksum.js';
import { fileRuns } from './extents.js';
import { decodeInode, type Ext4Inode } from './inode.js';
import type { Volume } from './volume.js';
import type { Run } from '../extents.js';

const MAGIC = 0xc03b3998;
const KIND = { descriptor: 1, commit: 2, superblock1: 3, superblock2: 4, revoke: 5 } as const;
const FEATURE = {
  revoke: 0x1,
  bit64: 0x2,
  asyncCommit: 0x4,
  checksum2: 0x8,
  checksum3: 0x10,
  fastCommit: 0x20,
} as const;
const KNOWN_FEATURES = 0x1f;
const TAG_FLAG = { escaped: 0x1, sameUuid: 0x2, last: 0x8 } as const;
const HEADER_BYTES = 12;
/** mke2fs makes a journal in one piece, or a few: more would only be slow to read. */
const MAXIMUM_RUNS = 4096;
const UUID_BYTES = 16;
/** The checksum at the end of descriptor and revoke blocks. */
const TAIL_BYTES = 4;

const JOURNAL_SUPERBLOCK = structure('journal super block', 1024, 'big', {
  h_magic: u32(0x0),
  h_blocktype: u32(0x4),
  h_sequence: u32(0x8),
  s_blocksize: u32(0xc),
  s_maxlen: u32(0x10),
  s_first: u32(0x14),
  s_sequence: u32(0x18),
  s_start: u32(0x1c),
  s_feature_compat: u32(0x24),
  s_feature_incompat: u32(0x28),
  s_uuid: bytes(0x30, 16),
  s_checksum_type: u8(0x50),
  s_num_fc_blks: u32(0x54),
  s_checksum: u32(0xfc),
});

/** A block that must be read from the journal. */
interface Logged {
  /** Where the copy is on the disk, in blocks. */
  readonly block: number;
  /** Its first word is that of a journal block and was blanked. */
  readonly escaped: boolean;
}

interface Tag extends Logged {
  readonly home: number;
}

/**
 * The disk as it is when the journal has been replayed; undefined when there is nothing to replay.
 * @throws LcowError BAD_EXT4 when the journal is damaged or of a kind that cannot be replayed.
 */
export async function replayJournal(volume: Volume): Promise<BlockSource | undefined> {
  const ino = volume.superblock.s_journal_inum;
  if (!volume.hasJournal || ino === 0) throw volume.bad('its journal must be replayed and is on another device');
  const journal = await Journal.open(volume, decodeInode(volume, ino, await volume.inode(ino)));
  const logged = await journal.committed();
  return logged.size === 0 ? undefined : new ReplayedSource(volume.cache.source, volume.blockBytes, logged);
}

class Journal {
  private constructor(
    private readonly volume: Volume,
    private readonly runs: readonly Run[],
    private readonly values: ReturnType<typeof JOURNAL_SUPERBLOCK.decode>,
    private readonly seed: number,
  ) {}

  static async open(volume: Volume, inode: Ext4Inode): Promise<Journal> {
    const { blockBytes } = volume;
    if (inode.kind !== 'file' || inode.size < 2 * blockBytes) throw volume.bad('its journal is no file');
    const first = Buffer.alloc(JOURNAL_SUPERBLOCK.size);
    await new FileContent(volume, inode).readInto(first);
    const values = JOURNAL_SUPERBLOCK.decode(first);
    if (
      values.h_magic !== MAGIC ||
      (values.h_blocktype !== KIND.superblock1 && values.h_blocktype !== KIND.superblock2)
    )
      throw volume.bad('its journal has no super block');
    if (
      values.s_blocksize !== blockBytes ||
      values.s_maxlen > inode.size / blockBytes ||
      values.s_first < 1 ||
      values.s_first >= values.s_maxlen ||
      values.s_start >= values.s_maxlen
    )
      throw volume.bad('the super block of its journal cannot be');
    const features = values.h_blocktype === KIND.superblock2 ? values.s_feature_incompat : 0;
    const unknown = (features & ~KNOWN_FEATURES) >>> 0;
    if (unknown !== 0 && values.s_start !== 0)
      throw volume.bad(
        unknown & FEATURE.fastCommit
          ? 'its journal must be replayed and has fast commits, which cannot be; e2fsck replays it'
          : `its journal must be replayed and has unknown features: 0x${unknown.toString(16)}`,
      );
    if (features & (FEATURE.checksum2 | FEATURE.checksum3)) {
      const sum = metadataChecksum(NO_SEED, withoutField(first, JOURNAL_SUPERBLOCK.fields.s_checksum.offset));
      if (sum !== values.s_checksum) throw volume.bad('the super block of its journal does not match its checksum');
    }
    const runs: Run[] = [];
    for await (const run of fileRuns(volume, inode)) {
      runs.push(run);
      if (runs.length > MAXIMUM_RUNS) throw volume.bad(`its journal is in more than ${MAXIMUM_RUNS} pieces`);
    }
    const own = values.h_blocktype === KIND.superblock2 ? values : { ...values, s_feature_incompat: 0 };
    return new Journal(volume, runs, own, metadataChecksum(NO_SEED, values.s_uuid));
  }

  /** Goes through all whole transactions. Returns the newest copy of every block that was not revoked since. */
  async committed(): Promise<Map<number, Logged>> {
    const { s_start, s_sequence, s_maxlen } = this.values;
    const logged = new Map<number, Logged & { sequence: number }>();
    /** The transaction that revoked a block last. */
    const revoked = new Map<number, number>();
    if (s_start === 0) return logged;
    let at = s_start;
    let left = s_maxlen;
    for (let sequence = s_sequence; ; sequence = (sequence + 1) >>> 0) {
      const tags: Tag[] = [];
      const revokes: number[] = [];
      for (;;) {
        if ((left -= 1) < 0) return this.#unrevoked(logged, revoked);
        const block = await this.#read(at);
        at = this.#next(at);
        if (block.readUInt32BE(0) !== MAGIC || block.readUInt32BE(8) !== sequence)
          return this.#unrevoked(logged, revoked);
        const kind = block.readUInt32BE(4);
        if (kind === KIND.commit) {
          // A commit that does not match its checksum was never finished.
          if (!this.#commitIsGood(block)) return this.#unrevoked(logged, revoked);
          break;
        }
        if (kind === KIND.revoke) {
          if (!this.#tailIsGood(block)) return this.#unrevoked(logged, revoked);
          this.#readRevokes(block, revokes);
        } else if (kind === KIND.descriptor) {
          if (!this.#tailIsGood(block)) return this.#unrevoked(logged, revoked);
          for (const tag of this.#readTags(block)) {
            if ((left -= 1) < 0) return this.#unrevoked(logged, revoked);
            tags.push({ ...tag, block: this.#physical(at) });
            at = this.#next(at);
          }
        } else return this.#unrevoked(logged, revoked);
      }
      for (const home of revokes) revoked.set(home, sequence);
      for (const { home, block, escaped } of tags) logged.set(home, { block, escaped, sequence });
    }
  }

  #unrevoked(logged: Map<number, Logged & { sequence: number }>, revoked: Map<number, number>): Map<number, Logged> {
    for (const [home, sequence] of revoked) {
      const copy = logged.get(home);
      // A revoke holds for its own transaction and for all before it; sequences wrap around.
      if (copy && ((copy.sequence - sequence) | 0) <= 0) logged.delete(home);
    }
    for (const home of logged.keys()) this.volume.checkBlocks(Math.max(home, 1), 1, 'its journal');
    return logged;
  }

  #has(feature: keyof typeof FEATURE): boolean {
    return (this.values.s_feature_incompat & FEATURE[feature]) !== 0;
  }

  get #hasChecksums(): boolean {
    return this.#has('checksum2') || this.#has('checksum3');
  }

  #next(at: number): number {
    return at + 1 >= this.values.s_maxlen ? this.values.s_first : at + 1;
  }

  /** Where a block of the journal is on the disk. */
  #physical(at: number): number {
    const run = this.runs.find(({ logical, length }) => at >= logical && at < logical + length);
    if (!run) throw this.volume.bad('its journal has a hole');
    return run.physical + at - run.logical;
  }

  #read(at: number): Buffer | Promise<Buffer> {
    return this.volume.block(this.#physical(at), 'its journal');
  }

  #tailIsGood(block: Buffer): boolean {
    if (!this.#hasChecksums) return true;
    const at = block.length - TAIL_BYTES;
    return metadataChecksum(this.seed, withoutField(block, at)) === block.readUInt32BE(at);
  }

  #commitIsGood(block: Buffer): boolean {
    // h_chksum[0] of struct commit_header.
    return !this.#hasChecksums || metadataChecksum(this.seed, withoutField(block, 16)) === block.readUInt32BE(16);
  }

  /** The tags of a descriptor block: journal_block_tag3_t, or journal_block_tag_t in its sizes. */
  *#readTags(block: Buffer): Generator<Omit<Tag, 'block'>, void, undefined> {
    const wide = this.#has('bit64');
    const third = this.#has('checksum3');
    const tagBytes = third ? 16 : (wide ? 12 : 8) + (this.#has('checksum2') ? 2 : 0);
    const end = block.length - (this.#hasChecksums ? TAIL_BYTES : 0);
    for (let at = HEADER_BYTES; at + tagBytes <= end;) {
      const flags = third ? block.readUInt32BE(at + 4) : block.readUInt16BE(at + 6);
      const home = block.readUInt32BE(at) + (wide ? block.readUInt32BE(at + 8) * 2 ** 32 : 0);
      yield { home, escaped: (flags & TAG_FLAG.escaped) !== 0 };
      if (flags & TAG_FLAG.last) return;
      at += tagBytes + (flags & TAG_FLAG.sameUuid ? 0 : UUID_BYTES);
    }
  }

  #readRevokes(block: Buffer, into: number[]): void {
    const bytesUsed = block.readUInt32BE(HEADER_BYTES);
    const wide = this.#has('bit64');
    if (bytesUsed > block.length) throw this.volume.bad('a revoke block of its journal is damaged');
    for (let at = HEADER_BYTES + 4; at + (wide ? 8 : 4) <= bytesUsed; at += wide ? 8 : 4)
      into.push(wide ? block.readUInt32BE(at) * 2 ** 32 + block.readUInt32BE(at + 4) : block.readUInt32BE(at));
  }
}

/** A copy with four bytes blanked: a checksum in its own structure. */
function withoutField(block: Buffer, at: number): Buffer {
  const copy = Buffer.from(block);
  copy.writeUInt32LE(0, at);
  return copy;
}

/** A disk, some of whose blocks are read from elsewhere on it. */
class ReplayedSource implements BlockSource {
  constructor(
    private readonly disk: BlockSource,
    private readonly blockBytes: number,
    private readonly logged: ReadonlyMap<number, Logged>,
  ) {}

  get name(): string {
    return this.disk.name;
  }

  get sizeBytes(): number {
    return this.disk.sizeBytes;
  }

  async readInto(target: Uint8Array, offset: number): Promise<void> {
    await this.disk.readInto(target, offset);
    const { blockBytes } = this;
    const last = Math.floor((offset + target.length - 1) / blockBytes);
    for (let number = Math.floor(offset / blockBytes); number <= last; number += 1) {
      const logged = this.logged.get(number);
      if (!logged) continue;
      const copy = Buffer.alloc(blockBytes);
      await this.disk.readInto(copy, logged.block * blockBytes);
      if (logged.escaped) copy.writeUInt32BE(MAGIC);
      const start = number * blockBytes;
      const from = Math.max(0, offset - start);
      target.set(
        copy.subarray(from, Math.min(blockBytes, offset + target.length - start)),
        Math.max(0, start - offset),
      );
    }
  }
}
