/** The guest's serial console: always read, its end kept, and shown to whoever connects. */
import { createServer, type Server, type Socket } from 'node:net';
import { chmod, rm } from 'node:fs/promises';
import { LcowError } from '../../errors/index.js';

/** How much of the console is kept for error reports. */
export const CONSOLE_TAIL_BYTES = 64 << 10;
/** A client that reads slower than this much behind is let go: the guest must not wait for it. */
const MAX_CLIENT_BACKLOG_BYTES = 1 << 20;
const MAX_CLIENTS = 16;

/** Keeps the last bytes of what it is given. */
export class TailBuffer {
  readonly #limit: number;
  #chunks: Buffer[] = [];
  #bytes = 0;

  constructor(limit: number) {
    this.#limit = limit;
  }

  push(chunk: Buffer): void {
    this.#chunks.push(chunk);
    this.#bytes += chunk.length;
    // Trimmed at twice the limit, so that each byte is copied at most once more.
    if (this.#bytes >= 2 * this.#limit || this.#chunks.length > 4096) this.bytes();
  }

  bytes(): Buffer {
    const all = Buffer.concat(this.#chunks);
    // Copied, so that a small tail does not keep a large buffer.
    const tail = Buffer.from(all.subarray(Math.max(0, all.length - this.#limit)));
    this.#chunks = [tail];
    this.#bytes = tail.length;
    return tail;
  }
}

// ECMA-48 control sequences, and control characters other than tab and newline. The guest must not steer our user's terminal.
const CONTROL = /\u001b(?:\[[0-?]*[ -/]*[@-~]|[ -/]*[0-~])|[\u0000-\u0008\u000b-\u001f\u007f-\u009f]/g;

/** Text of a console, safe to print. */
export function printable(bytes: Buffer): string {
  return bytes.toString('utf8').replaceAll('\r\n', '\n').replace(CONTROL, '');
}

/** The last line of a text, without the full stop of its sentence. */
export function lastLine(text: string): string {
  return (text.trim().split('\n').at(-1) ?? '').replace(/\.+$/, '');
}

/** Whether the console shows that the guest's kernel panicked. */
export function showsPanic(text: string): boolean {
  return text.includes('Kernel panic - not syncing');
}

/** The console of one compute system. */
export class GuestConsole implements AsyncDisposable {
  readonly #tail = new TailBuffer(CONSOLE_TAIL_BYTES);
  readonly #clients = new Set<Socket>();
  #guest: Socket | undefined;
  #server: Server | undefined;
  #serverPath: string | undefined;

  /** Takes the guest's end; resolves to when it has ended. */
  attach(guest: Socket): void {
    this.#guest = guest;
    guest.on('data', (chunk: Buffer) => {
      this.#tail.push(chunk);
      for (const client of this.#clients) this.#send(client, chunk);
    });
    // A broken console is an ended one: QEMU's exit tells the rest.
    guest.on('error', () => guest.destroy());
  }

  /** The kept end of the console, without control characters. */
  text(): string {
    return printable(this.#tail.bytes());
  }

  /** The guest's own bytes. */
  raw(): Buffer {
    return this.#tail.bytes();
  }

  /**
   * Makes a unix socket at which clients see the console (HCS ComPorts NamedPipe).
   * @throws LcowError IO_FAILED.
   */
  async serve(path: string): Promise<void> {
    const server = createServer((client) => this.#accept(client));
    await new Promise<void>((resolve, reject) => {
      server.once('error', (cause) =>
        reject(new LcowError('IO_FAILED', `The console socket ${path} cannot be made: ${cause.message}.`, { cause })),
      );
      server.listen(path, resolve);
    });
    this.#server = server;
    this.#serverPath = path;
    await chmod(path, 0o600);
  }

  #accept(client: Socket): void {
    if (this.#clients.size >= MAX_CLIENTS) {
      client.destroy();
      return;
    }
    this.#clients.add(client);
    client.on('close', () => this.#clients.delete(client));
    client.on('error', () => client.destroy());
    client.write(this.raw());
    client.on('data', (chunk: Buffer) => {
      if (this.#guest?.write(chunk) !== false) return;
      client.pause();
      this.#guest.once('drain', () => client.resume());
    });
  }

  #send(client: Socket, chunk: Buffer): void {
    if (client.writableLength > MAX_CLIENT_BACKLOG_BYTES) client.destroy();
    else client.write(chunk);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#guest?.destroy();
    for (const client of this.#clients) client.end();
    this.#server?.close();
    if (this.#serverPath !== undefined) await rm(this.#serverPath, { force: true });
  }
}
