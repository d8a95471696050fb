import { chmod, mkdir, rm } from 'node:fs/promises';
import { createServer, type Server, type Socket } from 'node:net';
import { dirname } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { errorMessage, LcowError } from '../errors/index.js';
import type { Container, OciProcess, Process } from '../gcs/index.js';
import { asIoError } from '../state/index.js';
import { Multiplexer, packDetail, StatusCode, TtrpcError, TtrpcServer } from '../ttrpc/index.js';
import type { UtilityVM } from '../uvm/index.js';
import { ControlErrorSchema, Supervisor as SupervisorService, type ExecRequest } from './control_pb.js';
import type { ContainerState } from './container-record.js';

/** What the server needs of the supervisor it speaks for. */
export interface Supervised {
  readonly vm: Pick<UtilityVM, 'properties'>;
  readonly container: Pick<Container, 'id' | 'createProcess'>;
  readonly init: Process;
  /** Stop signal, SIGKILL after the grace; settles when everything is released. */
  stop(graceMs: number, signal?: number): Promise<ContainerState>;
}

/** Answers other lcow commands about one running container, on a unix socket in a private folder. */
export class ControlServer {
  readonly #server: Server;
  readonly #supervisor: Supervised;
  readonly #path: string;
  readonly #connections = new Set<Multiplexer>();
  readonly #execs = new Map<string, Process>();

  private constructor(path: string, supervisor: Supervised) {
    this.#path = path;
    this.#supervisor = supervisor;
    this.#server = createServer({ allowHalfOpen: true }, (socket) => this.#serve(socket));
  }

  /** @throws LcowError IO_FAILED when the socket cannot be made. */
  static async listen(path: string, supervisor: Supervised): Promise<ControlServer> {
    const control = new ControlServer(path, supervisor);
    try {
      await mkdir(dirname(path), { recursive: true, mode: 0o700 });
      // Only a dead supervisor can have left one: the container's state says that we are its owner.
      await rm(path, { force: true });
      await new Promise<void>((resolve, reject) => {
        control.#server.once('error', reject);
        control.#server.listen(path, resolve);
      });
      await chmod(path, 0o600);
    } catch (error) {
      throw asIoError(error, `The control socket ${path} cannot be made`);
    }
    return control;
  }

  /** Ends every connection and removes the socket. Callers of Wait and Stop have their answer by then. */
  async close(): Promise<void> {
    const closed = new Promise((resolve) => this.#server.close(resolve));
    for (const connection of this.#connections) connection.close();
    await closed;
    await rm(this.#path, { force: true });
  }

  #serve(socket: Socket): void {
    const mux = new Multiplexer(socket, { side: 'guest' });
    this.#connections.add(mux);
    void mux.closed.then(() => this.#connections.delete(mux));
    void this.#answer(mux);
  }

  async #answer(mux: Multiplexer): Promise<void> {
    const server = new TtrpcServer();
    const supervisor = this.#supervisor;
    server.addService(SupervisorService, {
      state: () =>
        guarded(async () => {
          const properties = await supervisor.vm.properties();
          return {
            containerId: supervisor.container.id,
            status: 'running',
            pid: supervisor.init.pid,
            supervisorPid: process.pid,
            qemuPid: properties.processId ?? 0,
          };
        }),
      wait: () => guarded(async () => ({ exitCode: (await supervisor.init.wait()).exitCode })),
      signal: ({ execId, signal }) => guarded(async () => ({ delivered: await this.#process(execId).signal(signal) })),
      stop: ({ graceMs, signal }) =>
        guarded(async () => {
          void supervisor.stop(graceMs, signal || undefined).catch(() => undefined);
          return { exitCode: (await supervisor.init.wait()).exitCode };
        }),
      exec: (request) => guarded(() => this.#exec(mux, request)),
      waitExec: ({ execId }) =>
        guarded(async () => {
          const exec = this.#process(execId);
          const { exitCode } = await exec.wait();
          return { exitCode };
        }),
      resizeExec: ({ execId, rows, columns }) =>
        guarded(async () => {
          await this.#process(execId).resizeConsole(rows, columns);
          return {};
        }),
    });
    try {
      await server.serve(mux.claim(1));
    } catch {
      // A client that went away, or never spoke the protocol; its connection is closed below.
    } finally {
      mux.close();
    }
  }

  #process(execId: string): Process {
    const found = execId === '' ? this.#supervisor.init : this.#execs.get(execId);
    if (!found) throw new LcowError('NOT_FOUND', `No such exec process: ${execId}.`);
    return found;
  }

  /** A failure to delete it in the guest is of no consequence: it goes with the container. */
  async #forget(exec: Process): Promise<void> {
    this.#execs.delete(exec.execId);
    await exec.close().catch(() => undefined);
  }

  async #exec(mux: Multiplexer, request: ExecRequest): Promise<{ execId: string }> {
    const exec = await this.#supervisor.container.createProcess({
      process: JSON.parse(Buffer.from(request.processJson).toString('utf8')) as OciProcess,
      user: request.user || '0',
      stdin: request.stdinStream !== 0,
      stdout: request.stdoutStream !== 0,
      stderr: request.stderrStream !== 0,
      ...(request.rows > 0 ? { consoleSize: { rows: request.rows, columns: request.columns } } : {}),
    });
    this.#execs.set(exec.execId, exec);
    const { stdin, stdout, stderr } = exec.stdio();
    const relays: Promise<void>[] = [];
    if (stdout) relays.push(pipeline(stdout, mux.claim(request.stdoutStream)));
    if (stderr) relays.push(pipeline(stderr, mux.claim(request.stderrStream)));
    if (stdin) {
      const input = mux.claim(request.stdinStream);
      // The process may exit without reading it all, and the client may leave: both are ordinary ends.
      pipeline(input, stdin).catch(() => undefined);
    }
    for (const relay of relays) relay.catch(() => undefined);
    // Kept until the client has gone: it asks for the exit code after the last output.
    void Promise.allSettled([...relays, exec.wait(), mux.closed]).then(() => this.#forget(exec));
    return { execId: exec.execId };
  }
}

/** Turns a failure into a status that carries our code, so that the command prints what it would print in-process. */
async function guarded<T>(answer: () => Promise<T>): Promise<T> {
  try {
    return await answer();
  } catch (error) {
    const known = error instanceof LcowError ? error : undefined;
    const detail = packDetail(ControlErrorSchema, { code: known?.code ?? 'IO_FAILED', hint: known?.hint ?? '' });
    // The code that matters is in the details.
    throw new TtrpcError(StatusCode.UNKNOWN, errorMessage(error), [detail]);
  }
}
