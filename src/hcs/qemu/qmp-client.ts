/**
 * A client of the QEMU Machine Protocol (docs/interop/qmp-spec in QEMU): JSON objects, one a line. QEMU runs commands in
 * the order they are sent, so callers may send many before the first answer.
 */
import { EventEmitter } from 'node:events';
import type { Duplex } from 'node:stream';
import { LcowError } from '../../errors/index.js';
import { withDeadline } from '../../lifetime/index.js';

/** Longest line taken: query-blockstats of 256 disks has about 600 KB. */
const MAX_LINE_BYTES = 4 << 20;

/** A command that QEMU refused. */
export class QmpError extends Error {
  /** QAPI error class: GenericError, CommandNotFound, DeviceNotFound, DeviceNotActive, KVMMissingCap. */
  readonly class: string;
  readonly command: string;

  constructor(command: string, errorClass: string, description: string) {
    super(description);
    this.name = 'QmpError';
    this.class = errorClass;
    this.command = command;
  }
}

/** Something QEMU tells unasked, e.g. SHUTDOWN or DEVICE_DELETED. */
export interface QmpEvent {
  readonly event: string;
  readonly data: Readonly<Record<string, unknown>>;
}

interface Pending {
  readonly command: string;
  resolve(value: unknown): void;
  reject(error: unknown): void;
}

type JsonObject = Record<string, unknown>;

/**
 * One QMP session. Emits `event` with a {@link QmpEvent}.
 * Commands that wait when the connection ends are rejected with VM_EXITED.
 */
export class QmpClient extends EventEmitter<{ event: [QmpEvent] }> {
  readonly #socket: Duplex;
  readonly #pending = new Map<number, Pending>();
  readonly #closed: Promise<void>;
  #nextId = 1;
  #chunks: Buffer[] = [];
  #lineBytes = 0;
  #greeted!: (version: JsonObject) => void;
  #failure: LcowError | undefined;

  private constructor(socket: Duplex) {
    super();
    // One for each event waited for: as many as disks are removed at once.
    this.setMaxListeners(0);
    this.#socket = socket;
    this.#closed = new Promise((resolve) => {
      socket.once('close', () => {
        this.#fail(new LcowError('VM_EXITED', 'The connection to the QEMU monitor ended.'));
        resolve();
      });
    });
    socket.on('data', (chunk: Buffer) => this.#take(chunk));
    socket.on('end', () => socket.destroy());
    // 'close' follows and rejects what waits.
    socket.on('error', (cause) =>
      this.#fail(new LcowError('VM_EXITED', 'The connection to the QEMU monitor broke.', { cause })),
    );
  }

  /**
   * Waits for QEMU's greeting and negotiates capabilities.
   * @param socket Connected to a QMP chardev; owned by the client from now on, also on failure.
   * @throws LcowError TIMED_OUT (limit `qmpCommand`), VM_EXITED, QEMU_FAILED, CANCELLED.
   */
  static async connect(socket: Duplex, signal?: AbortSignal): Promise<QmpClient> {
    const client = new QmpClient(socket);
    try {
      await withDeadline(
        'qmpCommand',
        'The greeting of the QEMU monitor',
        signal,
        () =>
          new Promise<JsonObject>((resolve, reject) => {
            if (client.#failure) {
              reject(client.#failure);
              return;
            }
            client.#greeted = resolve;
            // Id 0 stands for the greeting: a lost connection rejects it as it does a command.
            client.#pending.set(0, { command: 'greeting', resolve: () => {}, reject });
          }),
      );
      client.#pending.delete(0);
      await client.execute('qmp_capabilities', {}, signal);
      return client;
    } catch (error) {
      socket.destroy();
      throw error;
    }
  }

  /** Resolves when the connection has ended, for whatever reason. */
  get closed(): Promise<void> {
    return this.#closed;
  }

  /**
   * Runs a command. Cancelling stops the waiting, not the command: its answer is dropped when it comes.
   * @throws QmpError when QEMU refuses; LcowError TIMED_OUT (limit `qmpCommand`), VM_EXITED, CANCELLED.
   */
  async execute(command: string, parameters: JsonObject = {}, signal?: AbortSignal): Promise<unknown> {
    if (this.#failure) throw this.#failure;
    const id = this.#nextId++;
    const answer = new Promise<unknown>((resolve, reject) => this.#pending.set(id, { command, resolve, reject }));
    // Whoever waits below sees the rejection; this keeps one that nobody waits for any more quiet.
    answer.catch(() => {});
    this.#socket.write(`${JSON.stringify({ execute: command, arguments: parameters, id })}\n`);
    return withDeadline('qmpCommand', `The QEMU command ${command}`, signal, () => answer);
  }

  /** Resolves with the first event that matches, or rejects as {@link execute} does. Call it before the cause. */
  waitFor(match: (event: QmpEvent) => boolean, what: string, signal?: AbortSignal): Promise<QmpEvent> {
    return withDeadline('qmpCommand', what, signal, (limit) => {
      if (this.#failure) return Promise.reject(this.#failure);
      const { promise, settle } = this.#listen(match);
      limit.addEventListener('abort', settle, { once: true });
      return promise.finally(() => limit.removeEventListener('abort', settle));
    });
  }

  #listen(match: (event: QmpEvent) => boolean): { promise: Promise<QmpEvent>; settle: () => void } {
    let settle!: () => void;
    const promise = new Promise<QmpEvent>((resolve, reject) => {
      const id = this.#nextId++;
      const onEvent = (event: QmpEvent): void => {
        if (!match(event)) return;
        settle();
        resolve(event);
      };
      settle = () => {
        this.off('event', onEvent);
        this.#pending.delete(id);
      };
      // In the table so that a lost connection rejects it.
      this.#pending.set(id, {
        command: 'event',
        resolve: () => {},
        reject: (error) => {
          settle();
          reject(error);
        },
      });
      this.on('event', onEvent);
    });
    return { promise, settle };
  }

  /** Ends the session; QEMU goes on. */
  close(): void {
    this.#socket.destroy();
  }

  #take(chunk: Buffer): void {
    let start = 0;
    for (;;) {
      const end = chunk.indexOf(0x0a, start);
      const part = chunk.subarray(start, end < 0 ? chunk.length : end);
      this.#lineBytes += part.length;
      if (this.#lineBytes > MAX_LINE_BYTES) {
        this.#fail(new LcowError('QEMU_FAILED', `The QEMU monitor sent a line of more than ${MAX_LINE_BYTES} bytes.`));
        return;
      }
      this.#chunks.push(part);
      if (end < 0) return;
      const line = this.#chunks.length === 1 ? part : Buffer.concat(this.#chunks);
      this.#chunks = [];
      this.#lineBytes = 0;
      start = end + 1;
      this.#line(line.toString('utf8'));
    }
  }

  #line(text: string): void {
    if (text.trim() === '') return;
    let message: JsonObject;
    try {
      const value: unknown = JSON.parse(text);
      if (typeof value !== 'object' || value === null || Array.isArray(value)) throw new SyntaxError('not an object');
      message = value as JsonObject;
    } catch (cause) {
      this.#fail(new LcowError('QEMU_FAILED', 'The QEMU monitor sent what is not a JSON object.', { cause }));
      return;
    }
    if (typeof message['event'] === 'string') {
      this.emit('event', { event: message['event'], data: asObject(message['data']) });
      return;
    }
    if ('QMP' in message) {
      this.#greeted(asObject(message['QMP']));
      return;
    }
    const id = message['id'];
    const pending = typeof id === 'number' ? this.#pending.get(id) : undefined;
    if (!pending) {
      // An error without an id answers a line QEMU could not parse: nothing can be trusted after it.
      if ('error' in message && id === undefined)
        this.#fail(new LcowError('QEMU_FAILED', `The QEMU monitor refused a line: ${text.slice(0, 500)}.`));
      return;
    }
    this.#pending.delete(id as number);
    if ('error' in message) {
      const error = asObject(message['error']);
      pending.reject(new QmpError(pending.command, String(error['class']), String(error['desc'])));
    } else {
      pending.resolve(message['return']);
    }
  }

  #fail(error: LcowError): void {
    this.#failure ??= error;
    const waiting = [...this.#pending.values()];
    this.#pending.clear();
    for (const pending of waiting) pending.reject(this.#failure);
    this.#socket.destroy();
  }
}

function asObject(value: unknown): JsonObject {
  return typeof value === 'object' && value !== null ? (value as JsonObject) : {};
}
