import { StringDecoder } from 'node:string_decoder';
import { open, rename, rm, stat, type FileHandle } from 'node:fs/promises';
import { LcowError } from '../errors/index.js';
import { asIoError } from '../state/index.js';

/** Which output of a container a piece of log comes from. */
export type LogSource = 'stdout' | 'stderr';

/** One line of a log file, as Docker's json-file driver writes it. */
export interface LogEntry {
  /** Text with its line end, or a piece of a line longer than 16 KiB without one. */
  readonly log: string;
  readonly stream: LogSource;
  /** RFC 3339 with nanoseconds. */
  readonly time: string;
}

/** Docker splits longer lines (moby daemon/logger/copier.go, defaultBufSize). */
export const MAX_LINE_BYTES = 16 * 1024;
/** Rotation of Docker's "local" driver: five files of 20 MB. */
export const MAX_FILE_BYTES = 20_000_000;
export const MAX_FILES = 5;

/** Writes a container's output as json-file lines, rotating `<file>`, `<file>.1`, … */
export class LogWriter {
  readonly #path: string;
  readonly #maxFileBytes: number;
  readonly #sources = {
    stdout: { decoder: new StringDecoder('utf8'), partial: '' },
    stderr: { decoder: new StringDecoder('utf8'), partial: '' },
  };
  #file: FileHandle | undefined;
  #bytes = 0;
  // Writes are ordered one behind the other; a failure is kept and thrown by close().
  #tail: Promise<void> = Promise.resolve();
  #failure: unknown;

  private constructor(path: string, maxFileBytes: number) {
    this.#path = path;
    this.#maxFileBytes = maxFileBytes;
  }

  static async open(path: string, maxFileBytes = MAX_FILE_BYTES): Promise<LogWriter> {
    const writer = new LogWriter(path, maxFileBytes);
    await writer.#openFile();
    return writer;
  }

  /** Adds output. Resolves when it is written, so that awaiting it is back-pressure. A failed log never stops the container. */
  async write(stream: LogSource, chunk: Uint8Array): Promise<void> {
    const source = this.#sources[stream];
    await this.#append(stream, source.partial + source.decoder.write(Buffer.from(chunk)), false);
  }

  /** Writes what is left of unfinished lines and closes. */
  async close(): Promise<void> {
    for (const stream of ['stdout', 'stderr'] as const) {
      const source = this.#sources[stream];
      await this.#append(stream, source.partial + source.decoder.end(), true);
    }
    await this.#file?.close();
    this.#file = undefined;
    if (this.#failure) throw asIoError(this.#failure, `The log ${this.#path} is incomplete`);
  }

  async #append(stream: LogSource, text: string, last: boolean): Promise<void> {
    const time = new Date().toISOString().replace('Z', '000000Z');
    const lines: string[] = [];
    let begin = 0;
    while (begin < text.length) {
      const newline = text.indexOf('\n', begin);
      const end = newline === -1 ? text.length : newline + 1;
      if (end - begin > MAX_LINE_BYTES) {
        lines.push(entry(text.slice(begin, begin + MAX_LINE_BYTES), stream, time));
        begin += MAX_LINE_BYTES;
      } else if (newline === -1 && !last) {
        break;
      } else {
        lines.push(entry(text.slice(begin, end), stream, time));
        begin = end;
      }
    }
    this.#sources[stream].partial = last ? '' : text.slice(begin);
    if (lines.length > 0) this.#tail = this.#tail.then(() => this.#writeOut(lines.join('')));
    await this.#tail;
  }

  async #writeOut(text: string): Promise<void> {
    if (this.#failure) return;
    try {
      if (this.#bytes > this.#maxFileBytes) await this.#rotate();
      const { bytesWritten } = await this.#file!.write(text);
      this.#bytes += bytesWritten;
    } catch (error) {
      this.#failure = error;
    }
  }

  async #rotate(): Promise<void> {
    await this.#file!.close();
    await rm(`${this.#path}.${MAX_FILES - 1}`, { force: true });
    for (let index = MAX_FILES - 2; index >= 1; index--)
      await rename(`${this.#path}.${index}`, `${this.#path}.${index + 1}`).catch(ignoreMissing);
    await rename(this.#path, `${this.#path}.1`);
    await this.#openFile();
  }

  async #openFile(): Promise<void> {
    this.#file = await open(this.#path, 'a', 0o600);
    this.#bytes = (await this.#file.stat()).size;
  }
}

function entry(log: string, stream: LogSource, time: string): string {
  return `${JSON.stringify({ log, stream, time })}\n`;
}

function ignoreMissing(error: unknown): void {
  if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
}

export interface ReadLogOptions {
  /** Only so many lines from the end. */
  tail?: number;
  since?: Date;
  /**
   * Wait for more until this answers that nothing more is written. Called between looks at the file.
   */
  follow?: () => Promise<boolean>;
  signal?: AbortSignal;
}

/** Yields a container's log, rotated files first. A last line that is half written is left for later. */
export async function* readLog(path: string, options: ReadLogOptions = {}): AsyncGenerator<LogEntry> {
  const wanted = (item: LogEntry): boolean => !options.since || new Date(item.time) >= options.since;
  if (options.tail !== undefined) {
    const ring: LogEntry[] = [];
    const position = { inode: 0, offset: 0 };
    if (options.tail > 0 || options.follow) {
      for await (const item of existingEntries(path, position)) {
        if (!wanted(item)) continue;
        ring.push(item);
        if (ring.length > options.tail) ring.shift();
      }
    }
    yield* ring;
    if (options.follow) yield* followEntries(path, position, options);
    return;
  }
  const position = { inode: 0, offset: 0 };
  for await (const item of existingEntries(path, position)) if (wanted(item)) yield item;
  if (options.follow) yield* followEntries(path, position, options);
}

interface Position {
  inode: number;
  offset: number;
}

async function* existingEntries(path: string, position: Position): AsyncGenerator<LogEntry> {
  for (let index = MAX_FILES - 1; index >= 1; index--) yield* entriesOf(`${path}.${index}`, { inode: 0, offset: 0 });
  yield* entriesOf(path, position);
}

/** The whole lines from the position on, which is moved behind them. */
async function* entriesOf(path: string, position: Position): AsyncGenerator<LogEntry> {
  let file: FileHandle;
  try {
    file = await open(path, 'r');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return;
    throw asIoError(error, `The log ${path} cannot be read`);
  }
  try {
    position.inode = (await file.stat()).ino;
    const chunk = Buffer.allocUnsafe(64 * 1024);
    let rest: Buffer = Buffer.alloc(0);
    for (;;) {
      const { bytesRead } = await file.read(chunk, 0, chunk.length, position.offset + rest.length);
      if (bytesRead === 0) return;
      rest = Buffer.concat([rest, chunk.subarray(0, bytesRead)]);
      let newline: number;
      let begin = 0;
      while ((newline = rest.indexOf(10, begin)) !== -1) {
        yield parseEntry(rest.toString('utf8', begin, newline), path);
        position.offset += newline + 1 - begin;
        begin = newline + 1;
      }
      rest = rest.subarray(begin);
    }
  } finally {
    await file.close();
  }
}

function parseEntry(line: string, path: string): LogEntry {
  try {
    return JSON.parse(line) as LogEntry;
  } catch (cause) {
    throw new LcowError('IO_FAILED', `The log ${path} is damaged: a line is not JSON.`, { cause });
  }
}

async function* followEntries(path: string, position: Position, options: ReadLogOptions): AsyncGenerator<LogEntry> {
  for (;;) {
    const over = await options.follow!();
    const current = await stat(path).catch(() => undefined);
    if (current && current.ino !== position.inode && position.inode !== 0) {
      // Rotated: what was written to the old file after our last look comes first.
      yield* entriesOf(`${path}.1`, { inode: 0, offset: position.offset });
      position.offset = 0;
    }
    yield* entriesOf(path, position);
    if (over || options.signal?.aborted) return;
  }
}
