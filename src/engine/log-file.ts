import { StringDecoder } from 'node:string_decoder';
import { open, rename, rm, stat, type FileHandle } from 'node:fs/promises';
import { z } from 'zod';
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

const NEWLINE = 10;

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
      await this.#file!.appendFile(text);
      this.#bytes += Buffer.byteLength(text);
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
    this.#file = await open(this.#path, 'a+', 0o600);
    this.#bytes = (await this.#file.stat()).size;
    if (this.#bytes === 0) return;
    // A writer that was killed may have left half a line: ours must not go on with it.
    const { buffer } = await this.#file.read(Buffer.alloc(1), 0, 1, this.#bytes - 1);
    if (buffer[0] !== NEWLINE) await this.#writeOut('\n');
  }
}

function entry(log: string, stream: LogSource, time: string): string {
  return `${JSON.stringify({ log, stream, time })}\n`;
}

function ignoreMissing(error: unknown): undefined {
  if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
  return undefined;
}

/** What {@link readLog} takes. */
export interface ReadLogOptions {
  /** Only so many entries from the end. */
  tail?: number;
  since?: Date;
  /** Wait for more until this answers that nothing more is written. Called between looks at the file. */
  follow?: () => Promise<boolean>;
  signal?: AbortSignal;
}

/**
 * Yields a container's log, rotated files first. A last line that is half written is left for later, and lines that are no
 * entries, as a killed writer leaves one, are passed over.
 * @throws LcowError IO_FAILED.
 */
export async function* readLog(path: string, options: ReadLogOptions = {}): AsyncGenerator<LogEntry> {
  const { tail, since, follow, signal } = options;
  const wanted = (item: LogEntry): boolean => !since || new Date(item.time) >= since;
  await using reader = new LogReader(path);
  if (tail === undefined) {
    for await (const item of reader.rest()) if (wanted(item)) yield item;
  } else if (tail > 0 || follow) {
    let last: LogEntry[] = [];
    for await (const item of reader.rest()) {
      if (tail === 0 || !wanted(item)) continue;
      last.push(item);
      if (last.length >= 2 * tail) last = last.slice(-tail);
    }
    yield* last.slice(-tail);
  }
  while (follow) {
    const over = await follow();
    for await (const item of reader.rest()) if (wanted(item)) yield item;
    if (over || signal?.aborted) return;
  }
}

/** A place in a log. The file it is in is kept open and known by its inode, since rotation renames it at any time. */
class LogReader implements AsyncDisposable {
  readonly #path: string;
  #file: FileHandle | undefined;
  #inode = 0;
  #offset = 0;

  constructor(path: string) {
    this.#path = path;
  }

  /** The entries from here to the end of the newest file. */
  async *rest(): AsyncGenerator<LogEntry> {
    try {
      if (!this.#file && !(await this.#advance())) return;
      for (;;) {
        yield* this.#entries();
        const next = await this.#newer();
        if (!next) return;
        // Written before it was rotated and after our last look.
        yield* this.#entries();
        await this.#advance();
      }
    } catch (error) {
      throw asIoError(error, `The log ${this.#path} cannot be read`);
    }
  }

  /** Opens the next file, or the oldest one at the beginning. @returns false when there is none. */
  async #advance(): Promise<boolean> {
    for (;;) {
      const next = await this.#newer();
      if (!next) return false;
      let file: FileHandle;
      try {
        file = await open(next.path, 'r');
      } catch (error) {
        ignoreMissing(error);
        continue;
      }
      const { ino } = await file.stat();
      if (ino === next.inode) {
        await this.#file?.close();
        this.#file = file;
        this.#inode = ino;
        this.#offset = 0;
        return true;
      }
      // Renamed between the look and the opening.
      await file.close();
    }
  }

  /** The file behind the one we are in; the oldest one when we are in none, or in one that has been deleted. */
  async #newer(): Promise<{ path: string; inode: number } | undefined> {
    for (;;) {
      const files: { path: string; inode: number }[] = [];
      for (let index = MAX_FILES - 1; index >= 0; index--) {
        const path = index === 0 ? this.#path : `${this.#path}.${index}`;
        const found = await stat(path).catch(ignoreMissing);
        // Seen under two names when it was renamed meanwhile.
        if (found && files.at(-1)?.inode !== found.ino) files.push({ path, inode: found.ino });
      }
      const own = files.findIndex(({ inode }) => inode === this.#inode);
      if (own >= 0 || !this.#file || (await this.#file.stat()).nlink === 0) return files[own + 1];
      // It was renamed from a name we had yet to look at to one we had looked at.
    }
  }

  /** The whole lines from the place on, which is moved behind them. */
  async *#entries(): AsyncGenerator<LogEntry> {
    const chunk = Buffer.allocUnsafe(64 * 1024);
    let rest: Buffer = Buffer.alloc(0);
    for (;;) {
      const { bytesRead } = await this.#file!.read(chunk, 0, chunk.length, this.#offset + rest.length);
      if (bytesRead === 0) return;
      rest = Buffer.concat([rest, chunk.subarray(0, bytesRead)]);
      let newline: number;
      let begin = 0;
      while ((newline = rest.indexOf(NEWLINE, begin)) !== -1) {
        const item = parseEntry(rest.toString('utf8', begin, newline));
        this.#offset += newline + 1 - begin;
        begin = newline + 1;
        if (item) yield item;
      }
      rest = rest.subarray(begin);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#file?.close();
  }
}

const entrySchema = z.object({ log: z.string(), stream: z.enum(['stdout', 'stderr']), time: z.string() });

function parseEntry(line: string): LogEntry | undefined {
  try {
    return entrySchema.safeParse(JSON.parse(line)).data;
  } catch {
    return undefined;
  }
}
