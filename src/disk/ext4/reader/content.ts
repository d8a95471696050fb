/** The content of files. */
import type { Run } from '../extents.js';
import { fileRuns, runsAtHand } from './extents.js';
import { hasFlag, type Ext4Inode } from './inode.js';
import type { Volume } from './volume.js';
import { inlineRest } from './xattrs.js';

/** From this size on a piece is read past the cache, straight to where it is wanted. */
const DIRECT_BYTES = 64 * 1024;

/** The content of a file that lives in its inode. */
export function inlineContent(volume: Volume, inode: Ext4Inode): Buffer {
  const content = Buffer.concat([inode.content, inlineRest(volume, inode)]);
  if (inode.size > content.length)
    throw volume.bad(`inode ${inode.ino} has ${inode.size} bytes and holds ${content.length}`);
  return content.subarray(0, inode.size);
}

/**
 * The whole content of a small file, without a promise; undefined when it is not in memory, in pieces, or has holes.
 * The view is good for as long as it is held.
 */
export function contentAtHand(volume: Volume, inode: Ext4Inode): Buffer | undefined {
  if (hasFlag(inode, 'inlineData')) return inlineContent(volume, inode);
  const runs = runsAtHand(volume, inode);
  const run = runs?.[0];
  if (run?.logical !== 0 || run.length * volume.blockBytes < inode.size) return undefined;
  return volume.cache.peek(run.physical * volume.blockBytes, inode.size);
}

/** Reads a file forward. */
export class FileContent {
  readonly #inline: Buffer | undefined;
  readonly #runs: AsyncGenerator<Run, void, undefined> | undefined;
  /** Runs at hand, and the next of them. */
  readonly #list: readonly Run[] | undefined;
  #index = 0;
  #position: number;
  /** The run at or behind the position; undefined when there is none left. */
  #run: Run | undefined;
  #started = false;

  /** @param position where to begin, in bytes. */
  constructor(
    private readonly volume: Volume,
    private readonly inode: Ext4Inode,
    position = 0,
  ) {
    this.#position = position;
    if (hasFlag(inode, 'inlineData')) this.#inline = inlineContent(volume, inode);
    else {
      this.#list = runsAtHand(volume, inode);
      if (!this.#list) this.#runs = fileRuns(volume, inode, Math.floor(position / volume.blockBytes));
    }
  }

  get position(): number {
    return this.#position;
  }

  /** Goes forward to an offset. */
  skipTo(offset: number): void {
    this.#position = Math.max(this.#position, offset);
  }

  /** Fills `target` with what comes next; the caller does not ask for more than the file has. */
  async readInto(target: Uint8Array): Promise<void> {
    if (this.#inline) {
      target.set(this.#inline.subarray(this.#position, this.#position + target.length));
      this.#position += target.length;
      return;
    }
    const { blockBytes } = this.volume;
    for (let done = 0; done < target.length;) {
      const run = await this.#runHere();
      const runStart = run ? run.logical * blockBytes : Infinity;
      const inHole = this.#position < runStart;
      const end = inHole ? runStart : runStart + run!.length * blockBytes;
      const length = Math.min(target.length - done, end - this.#position);
      const piece = target.subarray(done, done + length);
      if (inHole) piece.fill(0);
      else await this.#readPiece(piece, run!.physical * blockBytes + this.#position - runStart);
      this.#position += length;
      done += length;
    }
  }

  /**
   * The next stretch of data at or behind the position, up to its end or that of the file; undefined when only a hole
   * is left. Neighbouring runs are told one by one.
   */
  async nextData(): Promise<{ start: number; end: number } | undefined> {
    if (this.#inline)
      return this.#position < this.inode.size ? { start: this.#position, end: this.inode.size } : undefined;
    const run = await this.#runHere();
    const { blockBytes } = this.volume;
    const start = run ? Math.max(run.logical * blockBytes, this.#position) : Infinity;
    if (!run || start >= this.inode.size) return undefined;
    return { start, end: Math.min((run.logical + run.length) * blockBytes, this.inode.size) };
  }

  async #readPiece(piece: Uint8Array, offset: number): Promise<void> {
    const { cache } = this.volume;
    if (piece.length >= DIRECT_BYTES) await cache.source.readInto(piece, offset);
    else piece.set(await cache.read(offset, piece.length));
  }

  /** Goes on to the run that ends behind the position. */
  async #runHere(): Promise<Run | undefined> {
    const block = Math.floor(this.#position / this.volume.blockBytes);
    while (!this.#started || (this.#run && this.#run.logical + this.#run.length <= block)) {
      this.#started = true;
      if (this.#list) this.#run = this.#list[this.#index++];
      else {
        const next = await this.#runs!.next();
        this.#run = next.done ? undefined : next.value;
      }
    }
    return this.#run;
  }
}
