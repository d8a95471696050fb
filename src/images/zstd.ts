import { Decompress } from 'fzstd';
import { LcowError, errorMessage } from '../errors/index.js';

/** Largest window we give a frame, in bytes: the default limit of the zstd tool. */
const MAX_WINDOW_BYTES = 128 * 1024 * 1024;
// A block of four bytes can stand for 128 KiB: small slices keep what one of them becomes in bounds.
const SLICE_BYTES = 2048;

const FRAME_MAGIC = 0xfd2fb528;
const SKIPPABLE_MAGIC = 0x184d2a50;
const RLE_BLOCK = 1;

/**
 * Decompresses zstd: any number of frames, skippable ones between them (RFC 8878, section 3).
 *
 * Not by node:zlib, where it has zstd at all: that drops every frame but the first and takes a cut-off stream for a
 * whole one (nodejs/node issues 64741 and 64592), and layers made for lazy pulling have a frame for every file.
 * @throws LcowError BAD_TAR when the data is damaged or cut off; NOT_SUPPORTED when a frame wants more than 128 MiB.
 */
export async function* decompressZstd(source: AsyncIterable<Uint8Array>, what: string): AsyncGenerator<Uint8Array> {
  const output: Uint8Array[] = [];
  const frames = new FrameHeaders(what);
  const decoder = new Decompress((chunk) => {
    if (chunk.byteLength > 0) output.push(chunk);
  });
  const push = (slice: Uint8Array, final: boolean): void => {
    try {
      decoder.push(slice, final);
    } catch (cause) {
      throw damaged(what, errorMessage(cause), cause);
    }
  };
  for await (const chunk of source)
    for (let at = 0; at < chunk.byteLength; at += SLICE_BYTES) {
      const slice = chunk.subarray(at, at + SLICE_BYTES);
      frames.read(slice);
      push(slice, false);
      yield* output.splice(0);
    }
  if (!frames.complete) throw damaged(what, 'unexpected end of data');
  push(new Uint8Array(), true);
  yield* output.splice(0);
}

/** The error for compressed data that cannot be read. */
export function damaged(what: string, reason: string, cause?: unknown): LcowError {
  return new LcowError('BAD_TAR', `The compressed data of ${what} is damaged or cut off: ${reason}.`, { cause });
}

type State = 'magic' | 'skippable' | 'descriptor' | 'header' | 'block' | 'checksum';

/** Follows the frame and block headers of a stream: the decoder would allocate whatever window a frame asks for. */
class FrameHeaders {
  readonly #what: string;
  readonly #field = Buffer.alloc(16);
  #filled = 0;
  #wanted = 4;
  #skip = 0;
  #state: State = 'magic';

  constructor(what: string) {
    this.#what = what;
  }

  /** Whether the stream may end here: between frames. */
  get complete(): boolean {
    return this.#state === 'magic' && this.#filled === 0 && this.#skip === 0;
  }

  /** @throws LcowError BAD_TAR, NOT_SUPPORTED. */
  read(bytes: Uint8Array): void {
    let at = 0;
    while (at < bytes.byteLength) {
      if (this.#skip > 0) {
        const passed = Math.min(this.#skip, bytes.byteLength - at);
        this.#skip -= passed;
        at += passed;
        continue;
      }
      this.#field[this.#filled++] = bytes[at++]!;
      if (this.#filled < this.#wanted) continue;
      this.#filled = 0;
      this.#step();
    }
  }

  #expect(state: State, bytes: number): void {
    this.#state = state;
    this.#wanted = bytes;
  }

  #step(): void {
    const field = this.#field;
    switch (this.#state) {
      case 'magic': {
        const magic = field.readUInt32LE();
        if (magic === FRAME_MAGIC) this.#expect('descriptor', 1);
        else if ((magic & 0xfffffff0) === SKIPPABLE_MAGIC) this.#expect('skippable', 4);
        else throw damaged(this.#what, 'no zstd frame where one should begin');
        return;
      }
      case 'skippable':
        this.#skip = field.readUInt32LE();
        this.#expect('magic', 4);
        return;
      case 'descriptor':
        this.#describe(field[0]!);
        return;
      case 'header':
        this.#checkWindow();
        this.#expect('block', 3);
        return;
      case 'block': {
        const header = field.readUIntLE(0, 3);
        this.#skip = ((header >> 1) & 3) === RLE_BLOCK ? 1 : header >> 3;
        if ((header & 1) === 0) this.#expect('block', 3);
        else if (this.#checksum) this.#expect('checksum', 4);
        else this.#expect('magic', 4);
        return;
      }
      case 'checksum':
        this.#expect('magic', 4);
    }
  }

  #checksum = false;
  #singleSegment = false;
  #idBytes = 0;
  #sizeBytes = 0;

  /** Frame_Header_Descriptor (RFC 8878, 3.1.1.1.1): which fields follow. */
  #describe(descriptor: number): void {
    this.#checksum = (descriptor & 4) !== 0;
    this.#singleSegment = (descriptor & 0x20) !== 0;
    this.#idBytes = [0, 1, 2, 4][descriptor & 3]!;
    this.#sizeBytes = [this.#singleSegment ? 1 : 0, 2, 4, 8][descriptor >> 6]!;
    this.#expect('header', (this.#singleSegment ? 0 : 1) + this.#idBytes + this.#sizeBytes);
  }

  #checkWindow(): void {
    const window = this.#singleSegment ? this.#contentSize() : this.#windowSize(this.#field[0]!);
    if (window > MAX_WINDOW_BYTES)
      throw new LcowError(
        'NOT_SUPPORTED',
        `${this.#what} needs a zstd window of ${window} bytes; the limit is ${MAX_WINDOW_BYTES}.`,
      );
  }

  /** Window_Descriptor (RFC 8878, 3.1.1.1.2). */
  #windowSize(descriptor: number): number {
    const base = 2 ** (10 + (descriptor >> 3));
    return base + (base / 8) * (descriptor & 7);
  }

  /** Frame_Content_Size (RFC 8878, 3.1.1.1.4), which is the window of a frame of one segment. */
  #contentSize(): number {
    const at = this.#idBytes;
    if (this.#sizeBytes === 8) return Number(this.#field.readBigUInt64LE(at));
    return this.#field.readUIntLE(at, this.#sizeBytes) + (this.#sizeBytes === 2 ? 256 : 0);
  }
}
