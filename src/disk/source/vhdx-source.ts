import type { FileHandle } from 'node:fs/promises';
import { LcowError } from '../../errors/index.js';
import { readVhdx } from '../vhdx/index.js';
import type { BlockSource } from './block-source.js';
import { readFully } from './file-source.js';

/** The disk in a dynamic or fixed VHDX. Blocks that are not in the file are zeros. Does not close the file. */
export class VhdxSource implements BlockSource {
  readonly #offsets = new Map<number, number>();

  private constructor(
    private readonly file: FileHandle,
    readonly name: string,
    readonly sizeBytes: number,
    private readonly blockBytes: number,
  ) {}

  /**
   * @param name what to call the file in errors.
   * @throws LcowError BAD_VHDX, also when the log was not replayed: then the table of blocks may be out of date.
   */
  static async open(file: FileHandle, name: string): Promise<VhdxSource> {
    const { metadata, blocks, logPending } = await readVhdx(file, name);
    if (logPending)
      throw new LcowError(
        'BAD_VHDX',
        `${name} was not closed by its last writer: its log holds changes that are not in place yet.`,
        { hint: 'Opening it once for writing replays the log: qemu-img check -r all FILE.' },
      );
    const source = new VhdxSource(file, name, metadata.virtualSizeBytes, metadata.blockSizeBytes);
    blocks.numbers.forEach((number, index) => source.#offsets.set(number, blocks.offsets[index]!));
    return source;
  }

  async readInto(target: Uint8Array, offset: number): Promise<void> {
    for (let done = 0; done < target.length;) {
      const within = (offset + done) % this.blockBytes;
      const length = Math.min(this.blockBytes - within, target.length - done);
      const start = this.#offsets.get((offset + done - within) / this.blockBytes);
      const piece = target.subarray(done, done + length);
      if (start === undefined) piece.fill(0);
      else await readFully(this.file, piece, start + within, this.name);
      done += length;
    }
  }
}
