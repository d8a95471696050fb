import { createConnection, type Socket } from 'node:net';
import type { Readable, Writable } from 'node:stream';
import { CATALOGUE, LcowError, type ErrorCode } from '../errors/index.js';
import type { ConsoleSize, OciProcess } from '../gcs/index.js';
import {
  errorDetail,
  Multiplexer,
  serviceClient,
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

  private constructor(mux: Multiplexer) {
    this.#mux = mux;
    this.#service = serviceClient(SupervisorService, new TtrpcClient(mux.open()));
  }

  /** @throws LcowError CONTAINER_NOT_RUNNING when nobody listens. */
  static async connect(path: string, name: string): Promise<ControlClient> {
    const socket = await new Promise<Socket>((resolve, reject) => {
      const attempt = createConnection({ path, allowHalfOpen: true });
      attempt.once('connect', () => resolve(attempt));
      attempt.once('error', (cause) =>
        reject(new LcowError('CONTAINER_NOT_RUNNING', `Container ${name} is not running.`, { cause })),
      );
    });
    return new ControlClient(new Multiplexer(socket, { side: 'host' }));
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

  /** @param signal 0 for the image's stop signal. */
  async stop(graceMs: number, signal = 0): Promise<number> {
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
    const { execId } = await this.#call(
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
      throw error instanceof TtrpcError ? fromStatus(error) : error;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#mux.close();
    await this.#mux.closed;
  }
}

function fromStatus(error: TtrpcError): unknown {
  const detail = errorDetail(error, ControlErrorSchema);
  if (!detail) return error;
  const { code, hint } = detail;
  return new LcowError(code in CATALOGUE ? (code as ErrorCode) : 'IO_FAILED', error.message, {
    cause: error,
    ...(hint ? { hint } : {}),
  });
}
