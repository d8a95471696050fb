import type { FileHandle } from 'node:fs/promises';
import type { DynamicVhd } from '../vhd/index.js';
import type { BlockSource } from './block-source.js';
import { readFully } from './file-source.js';

/**
 * The disk in a dynamic VHD. Blocks that are not in the file are zeros. The bitmaps of sectors are not looked at, as by
 * QEMU: sectors that were never written to are zeros in the file as well. Does not close the file.
 */
export class DynamicVhdSource implements BlockSource {
  readonly #offsets: ReadonlyMap<number, number>;

  constructor(
    private readonly file: FileHandle,
    readonly name: string,
    readonly sizeBytes: number,
    private readonly vhd: DynamicVhd,
  ) {
    this.#offsets = new Map(vhd.numbers.map((number, index) => [number, vhd.offsets[index]!]));
  }

  async readInto(target: Uint8Array, offset: number): Promise<void> {
    const { blockSizeBytes } = this.vhd;
    for (let done = 0; done < target.length;) {
      const within = (offset + done) % blockSizeBytes;
      const piece = target.subarray(done, done + blockSizeBytes - within);
      const start = this.#offsets.get((offset + done - within) / blockSizeBytes);
      if (start === undefined) piece.fill(0);
      else await readFully(this.file, piece, start + within, this.name);
      done += piece.length;
    }
  }

  *dataRuns(): Generator<{ start: number; end: number }, void, undefined> {
    const { blockSizeBytes, numbers } = this.vhd;
    for (let index = 0; index < numbers.length;) {
      let next = index + 1;
      while (next < numbers.length && numbers[next]! === numbers[next - 1]! + 1) next++;
      const start = numbers[index]! * blockSizeBytes;
      yield { start, end: Math.min((numbers[next - 1]! + 1) * blockSizeBytes, this.sizeBytes) };
      index = next;
    }
  }
}
