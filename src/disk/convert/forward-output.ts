import type { FileHandle } from 'node:fs/promises';
import { asIoError } from '../../state/index.js';
import type { ForwardSink } from '../ext4/index.js';

/** Bytes of one write, and how many may be under way while the next is filled. */
const BUFFER_BYTES = 2 * 1024 * 1024;
const WRITES_UNDER_WAY = 2;

/**
 * Appends to a file through a few large buffers: while the pool of threads writes one, the next is filled. Appending
 * never waits; a caller that never drains gets more buffers.
 */
export class ForwardOutput implements ForwardSink {
  position = 0;
  #buffer: Buffer = Buffer.allocUnsafeSlow(BUFFER_BYTES);
  #filled = 0;
  /** Bytes handed over to writes. */
  #sent = 0;
  readonly #spare: Buffer[] = [];
  readonly #writes = new Set<Promise<void>>();
  #failure: { error: unknown } | undefined;

  /** @param what the subject of the sentence when a write fails. */
  constructor(
    private readonly file: FileHandle,
    private readonly what: string,
  ) {}

  append(data: Buffer, start: number, end: number): void {
    let from = start;
    this.position += end - start;
    while (from < end) {
      const bytes = Math.min(end - from, BUFFER_BYTES - this.#filled);
      data.copy(this.#buffer, this.#filled, from, from + bytes);
      this.#filled += bytes;
      from += bytes;
      if (this.#filled === BUFFER_BYTES) this.#send();
    }
  }

  appendZeros(count: number): void {
    this.position += count;
    for (let left = count; left > 0;) {
      const bytes = Math.min(left, BUFFER_BYTES - this.#filled);
      this.#buffer.fill(0, this.#filled, this.#filled + bytes);
      this.#filled += bytes;
      left -= bytes;
      if (this.#filled === BUFFER_BYTES) this.#send();
    }
  }

  /** Starts the write of what is in the buffer. */
  #send(): void {
    if (this.#filled === 0 || this.#failure) {
      this.#filled = 0;
      return;
    }
    const buffer = this.#buffer;
    const write = writeFully(this.file, buffer, this.#filled, this.#sent, this.what)
      .catch((error: unknown) => {
        this.#failure ??= { error };
      })
      .finally(() => {
        this.#writes.delete(write);
        this.#spare.push(buffer);
      });
    this.#writes.add(write);
    this.#sent += this.#filled;
    this.#buffer = this.#spare.pop() ?? Buffer.allocUnsafeSlow(BUFFER_BYTES);
    this.#filled = 0;
  }

  async drain(): Promise<void> {
    while (this.#writes.size > WRITES_UNDER_WAY) await Promise.race(this.#writes);
    if (this.#failure) throw this.#failure.error;
  }

  /** Writes what is left and waits for all of it. @throws LcowError DISK_FULL, IO_FAILED. */
  async flush(): Promise<void> {
    this.#send();
    await this.settle();
    if (this.#failure) throw this.#failure.error;
  }

  /** Waits until no write is under way, whatever came of them: before the file may be closed. */
  async settle(): Promise<void> {
    while (this.#writes.size > 0) await Promise.all(this.#writes);
  }

  async writeAt(offset: number, data: Buffer): Promise<void> {
    await this.flush();
    await writeFully(this.file, data, data.length, offset, this.what);
  }
}

async function writeFully(
  file: FileHandle,
  data: Buffer,
  length: number,
  position: number,
  what: string,
): Promise<void> {
  try {
    for (let done = 0; done < length;)
      done += (await file.write(data, done, length - done, position + done)).bytesWritten;
  } catch (error) {
    throw asIoError(error, what);
  }
}
