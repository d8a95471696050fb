import { createConnection, type Socket } from 'node:net';
import type { Readable, Writable } from 'node:stream';
import { isErrorCode, LcowError } from '../errors/index.js';
import type { ConsoleSize, OciProcess } from '../gcs/index.js';
import { MAX_TIMER_MS } from '../lifetime/index.js';
import {
  errorDetail,
  Multiplexer,
  serviceClient,
  TransportError,
  TtrpcClient,
  TtrpcError,
  type ServiceClient,
} from '../ttrpc/index.js';
import { ControlErrorSchema, Supervisor as SupervisorService } from './control_pb.js';

/** A process started in another process' container. */
export interface RemoteExec {
  readonly execId: string;
  readonly stdin?: Writable;
  /** Absent when it was started detached. */
  readonly stdout?: Readable;
  readonly stderr?: Readable;
  signal(signal: number): Promise<boolean>;
  resizeConsole(rows: number, columns: number): Promise<void>;
  wait(): Promise<number>;
}

/** A connection to the supervisor of a running container. */
export class ControlClient implements AsyncDisposable {
  readonly #mux: Multiplexer;
  readonly #service: ServiceClient<typeof SupervisorService>;
  readonly #name: string;

  private constructor(socket: Socket, name: string) {
    this.#name = name;
    this.#mux = new Multiplexer(socket, { side: 'host', mapError: (error) => this.#known(error) });
    this.#service = serviceClient(SupervisorService, new TtrpcClient(this.#mux.open()));
  }

  /**
   * Calls and streams fail with CONTAINER_NOT_RUNNING, too, when the supervisor goes away meanwhile.
   * @throws LcowError CONTAINER_NOT_RUNNING when nobody listens.
   */
  static async connect(path: string, name: string): Promise<ControlClient> {
    const socket = await new Promise<Socket>((resolve, reject) => {
      const attempt = createConnection({ path, allowHalfOpen: true });
      attempt.once('connect', () => resolve(attempt));
      attempt.once('error', (cause) =>
        reject(new LcowError('CONTAINER_NOT_RUNNING', `Container ${name} is not running.`, { cause })),
      );
    });
    return new ControlClient(socket, name);
  }

  async state(): Promise<{ supervisorPid: number; qemuPid: number; pid: number }> {
    return this.#call(this.#service.state({}));
  }

  async wait(): Promise<number> {
    return (await this.#call(this.#service.wait({}))).exitCode;
  }

  /** @returns false when the init does not handle the signal, so that the kernel drops it. */
  async signal(signal: number, execId = ''): Promise<boolean> {
    return (await this.#call(this.#service.signal({ signal, execId }))).delivered;
  }

  /**
   * Also of a container that is still starting.
   * @param signal 0 for the image's stop signal.
   */
  async stop(graceMs: number, signal = 0): Promise<number> {
    graceMs = Math.min(Math.ceil(graceMs), MAX_TIMER_MS);
    return (await this.#call(this.#service.stop({ graceMs, signal }))).exitCode;
  }

  async exec(options: {
    process: OciProcess;
    user: string;
    stdin: boolean;
    /** No streams: its output is dropped. */
    detach: boolean;
    consoleSize?: ConsoleSize;
  }): Promise<RemoteExec> {
    const tty = options.process.terminal === true;
    const stdin = options.stdin && !options.detach ? this.#mux.open() : undefined;
    const stdout = options.detach ? undefined : this.#mux.open();
    const stderr = options.detach || tty ? undefined : this.#mux.open();
    // These two only ever carry one direction.
    stdout?.end();
    stderr?.end();
    const started = this.#call(
      this.#service.exec({
        processJson: Buffer.from(JSON.stringify(options.process)),
        user: options.user,
        stdinStream: stdin?.id ?? 0,
        stdoutStream: stdout?.id ?? 0,
        stderrStream: stderr?.id ?? 0,
        rows: options.consoleSize?.rows ?? 0,
        columns: options.consoleSize?.columns ?? 0,
      }),
    );
    started.catch(() => {
      for (const stream of [stdin, stdout, stderr]) stream?.destroy();
    });
    const { execId } = await started;
    return {
      execId,
      ...(stdin ? { stdin } : {}),
      ...(stdout ? { stdout } : {}),
      ...(stderr ? { stderr } : {}),
      signal: (number) => this.signal(number, execId),
      resizeConsole: async (rows, columns) => {
        await this.#call(this.#service.resizeExec({ execId, rows, columns }));
      },
      wait: async () => (await this.#call(this.#service.waitExec({ execId }))).exitCode,
    };
  }

  async #call<T>(answer: Promise<T>): Promise<T> {
    try {
      return await answer;
    } catch (error) {
      throw this.#known(error);
    }
  }

  #known<T>(error: T): T | LcowError {
    if (error instanceof TtrpcError) return fromStatus(error);
    if (!(error instanceof TransportError)) return error;
    return new LcowError('CONTAINER_NOT_RUNNING', `Container ${this.#name} is no longer running.`, { cause: error });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#mux.close();
    await this.#mux.closed;
  }
}

function fromStatus(error: TtrpcError): LcowError {
  const { code = '', hint = '' } = errorDetail(error, ControlErrorSchema) ?? {};
  return new LcowError(isErrorCode(code) ? code : 'IO_FAILED', error.message, {
    cause: error,
    ...(hint ? { hint } : {}),
  });
}
