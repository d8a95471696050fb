import { chmod, mkdir, rm } from 'node:fs/promises';
import { createServer, type Server, type Socket } from 'node:net';
import { dirname } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { errorMessage, LcowError } from '../errors/index.js';
import type { Container, OciProcess, Process } from '../gcs/index.js';
import { settledWithin } from '../lifetime/index.js';
import { asIoError, checkSocketPath } from '../state/index.js';
import { Multiplexer, packDetail, StatusCode, TtrpcError, TtrpcServer } from '../ttrpc/index.js';
import type { UtilityVM } from '../uvm/index.js';
import { ControlErrorSchema, Supervisor as SupervisorService, type ExecRequest } from './control_pb.js';

/** What there is of a container while it runs. */
export interface RunningContainer {
  readonly vm: Pick<UtilityVM, 'properties'>;
  readonly container: Pick<Container, 'createProcess'>;
  readonly init: Process;
}

/** What the server needs of the supervisor it speaks for. */
export interface Supervised {
  readonly containerId: string;
  /** @throws LcowError CONTAINER_NOT_RUNNING before the container's start and after its exit. */
  running(): RunningContainer;
  /** The exit code of the container, known before anything is released. */
  exitCode(): Promise<number>;
  /** Stop signal, SIGKILL after the grace; settles when everything is released. Gives a start under way up. */
  stop(graceMs: number, signal?: number): Promise<unknown>;
}

/** How long clients have, at the end, for the last output of their exec processes and for answers. */
const FAREWELL_MS = 2000;

/** Answers other lcow commands about one container, from the beginning of its start, on a unix socket in a private folder. */
export class ControlServer {
  readonly #server: Server;
  readonly #supervised: Supervised;
  readonly #path: string;
  readonly #farewellMs: number;
  readonly #connections = new Set<Multiplexer>();
  readonly #execs = new Map<string, Process>();
  /** Calls and copies of output under way. */
  readonly #busy = new Set<Promise<unknown>>();
  #closed: Promise<void> | undefined;

  private constructor(path: string, supervised: Supervised, farewellMs: number) {
    this.#path = path;
    this.#supervised = supervised;
    this.#farewellMs = farewellMs;
    this.#server = createServer({ allowHalfOpen: true }, (socket) => this.#serve(socket));
  }

  /** @throws LcowError INVALID_ARGUMENT when the path is too long, IO_FAILED when the socket cannot be made. */
  static async listen(path: string, supervised: Supervised, farewellMs = FAREWELL_MS): Promise<ControlServer> {
    checkSocketPath(path);
    const control = new ControlServer(path, supervised, farewellMs);
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

  /**
   * Removes the socket and ends every connection, when callers have their answers and the output of exec processes, which
   * end with their container, is with those who read it. Idempotent.
   */
  close(): Promise<void> {
    this.#closed ??= this.#closeOnce();
    return this.#closed;
  }

  async #closeOnce(): Promise<void> {
    const closed = new Promise((resolve) => this.#server.close(resolve));
    await rm(this.#path, { force: true });
    await settledWithin(this.#idle(), this.#farewellMs);
    for (const connection of this.#connections) connection.close();
    await closed;
  }

  async #idle(): Promise<void> {
    while (this.#busy.size > 0) await Promise.allSettled(this.#busy);
    // The answers of the last calls are written right behind them.
    await new Promise((resolve) => setImmediate(resolve));
  }

  #serve(socket: Socket): void {
    const mux = new Multiplexer(socket, { side: 'guest' });
    this.#connections.add(mux);
    void mux.closed.then(() => this.#connections.delete(mux));
    void this.#answer(mux);
  }

  async #answer(mux: Multiplexer): Promise<void> {
    const server = new TtrpcServer();
    const supervised = this.#supervised;
    const guarded = <T>(answer: () => Promise<T>): Promise<T> => this.#track(withCode(answer));
    server.addService(SupervisorService, {
      state: () =>
        guarded(async () => {
          const { vm, init } = supervised.running();
          const { processId } = await vm.properties();
          const { pid } = init;
          return {
            containerId: supervised.containerId,
            status: 'running',
            pid,
            supervisorPid: process.pid,
            qemuPid: processId ?? 0,
          };
        }),
      wait: () => guarded(async () => ({ exitCode: await supervised.exitCode() })),
      signal: ({ execId, signal }) => guarded(async () => ({ delivered: await this.#process(execId).signal(signal) })),
      stop: ({ graceMs, signal }) =>
        guarded(async () => {
          // How it failed, if it does, is what the exit code tells.
          void supervised.stop(graceMs, signal || undefined).catch(() => undefined);
          return { exitCode: await supervised.exitCode() };
        }),
      exec: (request) => guarded(() => this.#exec(mux, request)),
      waitExec: ({ execId }) => guarded(async () => ({ exitCode: (await this.#process(execId).wait()).exitCode })),
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

  #track<T>(work: Promise<T>): Promise<T> {
    this.#busy.add(work);
    const done = (): void => void this.#busy.delete(work);
    work.then(done, done);
    return work;
  }

  #process(execId: string): Process {
    if (execId === '') return this.#supervised.running().init;
    const found = this.#execs.get(execId);
    if (!found) throw new LcowError('NOT_FOUND', `No such exec process: ${execId}.`);
    return found;
  }

  /** A failure to delete it in the guest is of no consequence: it goes with the container. */
  async #forget(exec: Process): Promise<void> {
    this.#execs.delete(exec.execId);
    await exec.close().catch(() => undefined);
  }

  async #exec(mux: Multiplexer, request: ExecRequest): Promise<{ execId: string }> {
    const { container } = this.#supervised.running();
    const [input, output, errors] = [request.stdinStream, request.stdoutStream, request.stderrStream].map((id) =>
      id === 0 ? undefined : mux.claim(id),
    );
    let exec: Process;
    try {
      exec = await container.createProcess({
        process: JSON.parse(Buffer.from(request.processJson).toString('utf8')) as OciProcess,
        user: request.user,
        stdin: input !== undefined,
        stdout: output !== undefined,
        stderr: errors !== undefined,
        ...(request.rows > 0 ? { consoleSize: { rows: request.rows, columns: request.columns } } : {}),
      });
    } catch (error) {
      for (const stream of [input, output, errors]) stream?.destroy();
      throw error;
    }
    this.#execs.set(exec.execId, exec);
    const { stdin, stdout, stderr } = exec.stdio();
    // The process may exit without reading its input, and the client may leave: both are ordinary ends.
    if (input && stdin) pipeline(input, stdin).catch(() => undefined);
    // A silent process would not notice that its client has gone.
    void mux.closed.then(() => [output, errors].forEach((stream) => stream?.destroy()));
    const relays: Promise<void>[] = [];
    if (output && stdout) relays.push(this.#track(pipeline(stdout, output)));
    if (errors && stderr) relays.push(this.#track(pipeline(stderr, errors)));
    // Kept until the client has gone: it asks for the exit code after the last output.
    void Promise.allSettled([...relays, exec.wait(), mux.closed]).then(() => this.#forget(exec));
    return { execId: exec.execId };
  }
}

/** Turns a failure into a status that carries our code, so that the command prints what it would print in-process. */
async function withCode<T>(answer: () => Promise<T>): Promise<T> {
  try {
    return await answer();
  } catch (error) {
    const known = error instanceof LcowError ? error : undefined;
    const detail = packDetail(ControlErrorSchema, { code: known?.code ?? 'IO_FAILED', hint: known?.hint ?? '' });
    // The code that matters is in the details.
    throw new TtrpcError(StatusCode.UNKNOWN, errorMessage(error), [detail]);
  }
}
