import type { FileHandle } from 'node:fs/promises';
import { LcowError } from '../../errors/index.js';
import { abortable, throwIfAborted } from '../../lifetime/index.js';
import { createAtomic } from '../../state/index.js';
import { Ext4Writer } from '../ext4/index.js';
import { readableName, TarParser, TOKEN } from '../tar/index.js';
import { appendVerity, type Verity } from '../verity/index.js';
import { encodeFixedVhdFooter, MAXIMUM_VHD_BYTES, VHD_FOOTER_BYTES } from '../vhd/index.js';
import { applyEntry } from './apply-entry.js';
import { ForwardOutput } from './forward-output.js';

export interface TarToVhdOptions {
  /** Turns whiteouts into what overlayfs understands (default), instead of taking them as files. */
  readonly convertWhiteout?: boolean;
  /** Ends the file with the 512 bytes that make it a fixed VHD (default); without them it is a raw image. */
  readonly appendVhdFooter?: boolean;
  /** Adds the hash tree by which a guest can check the layer (tar2ext4 AppendDMVerity); see `verity` of the result. */
  readonly appendDMVerity?: boolean;
  /** Largest image: 256 GiB unless given (tar2ext4: 16 GiB). Up to 2040 GiB with a footer, else 16 TiB. */
  readonly maximumDiskSizeBytes?: number;
  /** Ends the conversion with CANCELLED; the source is asked to return, but not waited for. */
  readonly signal?: AbortSignal | undefined;
  /** Called after each chunk with the bytes of the source taken so far. */
  readonly onProgress?: ((bytesIn: number) => void) | undefined;
}

export interface TarToVhdResult {
  /** Size of the file. */
  readonly sizeBytes: number;
  /** Size of the file system in it: sizeBytes without hash tree and footer. */
  readonly imageBytes: number;
  /** Members of the tar. */
  readonly entries: number;
  /** The hash tree, with `appendDMVerity`. */
  readonly verity?: Verity;
}

/** A chunk of the source is converted in pieces of this size, so that even one huge chunk has back-pressure. */
const PIECE_BYTES = 1024 * 1024;

/**
 * Converts the tar of a container layer into an ext4 file system in a fixed VHD (hcsshim tar2ext4, internal/lcow TarToVhd),
 * in one pass: the source is read once, to its end, and the file written once. The same tar gives the same bytes.
 *
 * @param target a path, where the file appears whole or not at all and replaces what was there; or a file open for
 * writing (and reading, for a hash tree), which is written from its start and cut to its new length, emptied on failure, and neither synced nor closed.
 * @throws LcowError BAD_TAR naming the member or the offset; DISK_FULL, IO_FAILED, CANCELLED; what the source throws.
 */
export async function tarToVhd(
  source: AsyncIterable<Uint8Array>,
  target: string | FileHandle,
  options: TarToVhdOptions = {},
): Promise<TarToVhdResult> {
  throwIfAborted(options.signal);
  if (typeof target === 'string')
    return createAtomic(target, async (file) => convert(source, file, `${target} cannot be written`, options));
  try {
    const result = await convert(source, target, 'The disk image cannot be written', options);
    await target.truncate(result.sizeBytes);
    return result;
  } catch (error) {
    // Best effort: what failed is what the caller must hear of.
    await target.truncate(0).catch(() => undefined);
    throw error;
  }
}

async function convert(
  source: AsyncIterable<Uint8Array>,
  file: FileHandle,
  what: string,
  options: TarToVhdOptions,
): Promise<TarToVhdResult> {
  const { appendVhdFooter = true, maximumDiskSizeBytes } = options;
  if (appendVhdFooter && (maximumDiskSizeBytes ?? 0) > MAXIMUM_VHD_BYTES)
    throw new LcowError('INVALID_ARGUMENT', `A VHD has at most 2040 GiB, not ${maximumDiskSizeBytes} bytes.`);
  const output = new ForwardOutput(file, what);
  try {
    const writer = new Ext4Writer(
      output,
      maximumDiskSizeBytes === undefined ? {} : { maximumBytes: maximumDiskSizeBytes },
    );
    const entries = await readMembers(source, writer, output, options);
    const { imageBytes, secondUuid } = await writer.finish();
    await output.flush();
    // A second reading of the file: blocks of the front are written last. It is in the page cache.
    const verity = options.appendDMVerity ? await appendVerity(file, imageBytes, options) : undefined;
    const diskBytes = imageBytes + (verity?.hashBytes ?? 0);
    if (appendVhdFooter) await output.writeAt(diskBytes, Buffer.from(encodeFixedVhdFooter(diskBytes, secondUuid)));
    const sizeBytes = diskBytes + (appendVhdFooter ? VHD_FOOTER_BYTES : 0);
    return { sizeBytes, imageBytes, entries, ...(verity ? { verity } : {}) };
  } finally {
    // The caller closes the file next: no write may still be under way then.
    await output.settle();
  }
}

/** Takes the whole source through the parser. */
async function readMembers(
  source: AsyncIterable<Uint8Array>,
  writer: Ext4Writer,
  output: ForwardOutput,
  { convertWhiteout = true, signal, onProgress }: TarToVhdOptions,
): Promise<number> {
  const conversion = new Conversion(writer, convertWhiteout);
  const chunks = source[Symbol.asyncIterator]();
  let ended = false;
  let bytesIn = 0;
  try {
    for (;;) {
      const next = await (signal ? abortable(Promise.resolve(chunks.next()), signal) : chunks.next());
      if (next.done) {
        ended = true;
        return conversion.finish();
      }
      for (let at = 0; at < next.value.length; at += PIECE_BYTES) {
        conversion.push(next.value.subarray(at, at + PIECE_BYTES));
        await output.drain();
      }
      bytesIn += next.value.length;
      onProgress?.(bytesIn);
    }
  } finally {
    // Not waited for: a source that is stuck would keep a cancelled conversion from ending.
    if (!ended) void Promise.resolve(chunks.return?.()).catch(() => undefined);
  }
}

/** Drives the writer by the tokens of the parser. Synchronous: chunk by chunk. */
class Conversion {
  readonly #parser = new TarParser();
  #entries = 0;
  /** Whether the content of the current member belongs into the image. */
  #inFile = false;

  constructor(
    private readonly writer: Ext4Writer,
    private readonly convertWhiteout: boolean,
  ) {}

  push(chunk: Uint8Array): void {
    const parser = this.#parser;
    const writer = this.writer;
    parser.feed(chunk);
    for (;;) {
      switch (parser.step()) {
        case TOKEN.needMore:
          return;
        case TOKEN.entry:
          this.#begin();
          break;
        case TOKEN.data:
          if (this.#inFile) writer.write(parser.chunk, parser.dataStart, parser.dataEnd);
          break;
        case TOKEN.hole:
          if (this.#inFile) writer.hole(parser.holeBytes);
          break;
        case TOKEN.entryEnd:
          if (this.#inFile) writer.endFile();
          this.#inFile = false;
          break;
      }
    }
  }

  #begin(): void {
    const { header } = this.#parser;
    this.#entries += 1;
    try {
      this.#inFile = applyEntry(this.writer, header, this.convertWhiteout);
    } catch (error) {
      if (!(error instanceof LcowError) || error.code !== 'BAD_TAR') throw error;
      const message = error.message.replace(/\.$/, ` (header at byte ${header.offset} of the tar).`);
      throw new LcowError('BAD_TAR', message, {
        cause: error,
        details: { ...error.details, member: readableName(header.path), offset: header.offset },
      });
    }
  }

  /** At the end of the source. Returns the number of members. */
  finish(): number {
    this.#parser.finish();
    return this.#entries;
  }
}
