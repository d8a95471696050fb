import { randomBytes } from 'node:crypto';
import { LcowError } from '../errors/index.js';
import { abortable, throwIfAborted } from '../lifetime/index.js';
import { Multiplexer, StreamResetError, TransportError, TtrpcClient } from '../ttrpc/index.js';
import type { ConsoleSize, GuestStats, ProcessConfig, ProcessHost } from './cow.js';
import { guestClient, type GuestClient } from './guest-client.js';
import { GuestContainer, toStats } from './guest-container.js';
import { fromReset, fromTransport } from './guest-errors.js';
import { logLines, type GuestLogLine } from './guest-log.js';
import { GuestProcess, type ProcessAddress } from './guest-process.js';
import type { OciSpec } from './oci.js';
import { StdioStreams, type StdioOffsets, type StdioWish } from './stdio-streams.js';

/** What the guest told of itself at the beginning of the session. */
export interface GuestCapabilities {
  readonly protocolMajor: number;
  readonly protocolMinor: number;
  readonly agentVersion: string;
  readonly kernelRelease: string;
  readonly runtimeVersion: string;
  /** Of this start of the agent: a host that comes back compares it with the one it knew. */
  readonly bootId: string;
  readonly uptimeNanos: bigint;
  readonly features: ReadonlySet<string>;
}

/** What a container is created from. */
export interface CreateContainerOptions {
  /** 1 to 128 letters, digits, and after the first `_.-`. */
  readonly id: string;
  /** OCI runtime specification; paths are of the utility VM. */
  readonly spec: OciSpec;
  /** As docker's --user; overrides the user of the spec. */
  readonly user?: string | undefined;
  readonly stdio?: StdioWish | undefined;
  readonly consoleSize?: ConsoleSize | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** What {@link GuestConnection.attachProcess} needs to go on where a broken connection left off. */
export interface AttachOptions {
  readonly stdio?: StdioWish;
  readonly terminal?: boolean;
  /** Bytes of each output taken before, {@link GuestProcess.consumed}; 0 when there was no connection before. */
  readonly offsets?: StdioOffsets;
  /** As it was known; 0 otherwise. */
  readonly pid?: number;
  readonly signal?: AbortSignal;
}

/** What {@link GuestConnection.renew} sets beside clock and random pool. */
export interface RenewOptions {
  readonly hostname?: string;
  /** 32 hexadecimal digits. */
  readonly machineId?: string;
  readonly signal?: AbortSignal;
}

/** Host random bytes sent to the guest: several times what its pool takes for a reseed. */
const ENTROPY_BYTES = 256;

/**
 * A session with the guest agent (hcsshim internal/gcs GuestConnection): its calls, and the processes, containers and log
 * that need streams beside them. A call that the caller gives up goes on in the guest; where it would leave something
 * behind, that is removed when the guest has answered.
 *
 * When one of the two connections breaks both are closed: every waiter and every stream fails with the same LcowError,
 * GUEST_UNREACHABLE or, when the guest broke the protocol, GUEST_PROTOCOL. Processes in the guest live on; a new session
 * takes them up with {@link GuestConnection.attachProcess}.
 */
export class GuestConnection implements ProcessHost, AsyncDisposable {
  readonly os = 'linux';
  readonly isOci = false;
  readonly capabilities: GuestCapabilities;
  /** Every call of proto/guest.proto. */
  readonly client: GuestClient;
  /** Resolves when the session is over: with the failure, or undefined after {@link GuestConnection.close}. Never rejects. */
  readonly closed: Promise<LcowError | undefined>;
  readonly #session: Session;

  /** Made by `connectGuest`. */
  constructor(session: Session, capabilities: GuestCapabilities) {
    this.#session = session;
    this.client = session.client;
    this.closed = session.closed;
    this.capabilities = capabilities;
  }

  /**
   * Creates a container whose init waits to be started.
   * @throws LcowError as the guest says: ALREADY_EXISTS, NO_SUCH_USER, COMMAND_NOT_FOUND...; CANCELLED; INVALID_ARGUMENT
   *   for a stderr beside a terminal. Nothing is left behind.
   */
  async createContainer(options: CreateContainerOptions): Promise<GuestContainer> {
    const { id, spec } = options;
    if (id === '') throw new LcowError('INVALID_ARGUMENT', 'A container needs an id.');
    const init = await this.#start({ containerId: id, execId: '' }, options.stdio ?? {}, spec.process?.terminal, {
      request: (stdio) =>
        this.client.createContainer({
          containerId: id,
          specJson: toJson(spec),
          user: options.user ?? '',
          stdio,
          ...(options.consoleSize && { consoleSize: options.consoleSize }),
        }),
      undo: () => this.client.deleteContainer({ containerId: id, force: true }),
      signal: options.signal,
    });
    return this.#container(id, init);
  }

  /**
   * Takes up a container of an earlier session.
   * @throws LcowError CONTAINER_NOT_FOUND.
   */
  async attachContainer(id: string, options: AttachOptions = {}): Promise<GuestContainer> {
    const { containers } = await this.client.listContainers({}, options.signal ? { signal: options.signal } : {});
    const found = containers.find(({ containerId }) => containerId === id);
    if (!found) throw new LcowError('CONTAINER_NOT_FOUND', `The guest has no container ${id}.`);
    const { process } = await this.attachProcess(id, '', { ...options, pid: found.pid });
    return this.#container(id, process);
  }

  /** Starts a process in the utility VM itself. */
  async createProcess(config: ProcessConfig, options: { signal?: AbortSignal } = {}): Promise<GuestProcess> {
    return this.#exec('', config, options.signal);
  }

  /**
   * Joins streams to a running process of an earlier session. The outputs go on at the offsets.
   * @param execId Empty for the init of the container.
   * @returns The process, and how many bytes of its standard input it has taken: the caller goes on from there.
   * @throws LcowError NOT_FOUND, CONTAINER_NOT_FOUND; INVALID_STATE when the guest no longer has the bytes after an offset.
   */
  async attachProcess(
    containerId: string,
    execId: string,
    options: AttachOptions = {},
  ): Promise<{ process: GuestProcess; stdinBytes: number }> {
    const { stdio = {}, terminal = false, offsets, pid = 0, signal } = options;
    const streams = this.#session.openStdio(stdio, terminal, offsets);
    try {
      const { stdinOffset } = await this.client.attachProcess(
        {
          containerId,
          execId,
          stdio: streams.message,
          stdoutOffset: BigInt(offsets?.stdoutBytes ?? 0),
          stderrOffset: BigInt(offsets?.stderrBytes ?? 0),
        },
        { signal },
      );
      const process = new GuestProcess(this.client, { containerId, execId }, pid, streams);
      return { process, stdinBytes: Number(stdinOffset) };
    } catch (error) {
      streams.destroy();
      throw error;
    }
  }

  /** Gives the guest the host's wall clock and random bytes, and, when given, an identity. */
  async renew(options: RenewOptions = {}): Promise<void> {
    const { hostname = '', machineId = '', signal } = options;
    // Taken last: every moment between here and the guest is the guest's lag.
    const entropy = randomBytes(ENTROPY_BYTES);
    const wallClockUnixNanos = BigInt(Math.round((performance.timeOrigin + performance.now()) * 1000)) * 1000n;
    await this.client.renew({ wallClockUnixNanos, entropy, hostname, machineId }, { signal });
  }

  /** Counters of the utility VM. */
  async stats(): Promise<GuestStats> {
    return toStats(await this.client.stats({}));
  }

  /**
   * The agent's log, kept lines first, until the session is over or the loop is left. Lines are at most 64 KiB.
   * @throws LcowError from the iteration when the session breaks.
   */
  async *readLog(signal?: AbortSignal): AsyncGenerator<GuestLogLine, void> {
    const stream = this.#session.openStream();
    const stop = (): void => {
      stream.destroy();
    };
    signal?.addEventListener('abort', stop, { once: true });
    try {
      // Lines are read meanwhile: they may be there before the answer.
      this.client
        .streamLog({ stream: stream.id }, { signal })
        .catch((error: unknown) => stream.destroy(error as Error));
      yield* logLines(stream);
    } catch (error) {
      if (!signal?.aborted) throw error;
    } finally {
      signal?.removeEventListener('abort', stop);
      stream.destroy();
    }
  }

  /** Ends the session. The guest and its processes go on; what waits here fails with CLOSED. Idempotent. */
  async close(): Promise<void> {
    this.#session.close();
    await this.closed;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  #container(id: string, init: GuestProcess): GuestContainer {
    return new GuestContainer(this.client, id, init, (config, signal) => this.#exec(id, config, signal));
  }

  async #exec(containerId: string, config: ProcessConfig, signal: AbortSignal | undefined): Promise<GuestProcess> {
    const address = { containerId, execId: randomBytes(16).toString('hex') };
    return this.#start(address, config, config.process.terminal, {
      request: (stdio) =>
        this.client.exec({
          ...address,
          processJson: toJson(config.process),
          user: config.user ?? '',
          stdio,
          ...(config.consoleSize && { consoleSize: config.consoleSize }),
        }),
      undo: async () => {
        await this.client.signalProcess({ ...address, signal: 9 });
        await this.client.waitProcess(address);
        await this.client.deleteProcess(address);
      },
      signal,
    });
  }

  async #start(
    address: ProcessAddress,
    wish: StdioWish,
    terminal: boolean | undefined,
    call: {
      request: (stdio: StdioStreams['message']) => Promise<{ pid: number }>;
      undo: () => Promise<unknown>;
      signal: AbortSignal | undefined;
    },
  ): Promise<GuestProcess> {
    throwIfAborted(call.signal);
    const streams = this.#session.openStdio(wish, terminal ?? false);
    // Not given up together with the caller: only its answer tells whether there is something to undo.
    const reply = call.request(streams.message);
    try {
      const { pid } = await abortable(reply, call.signal);
      return new GuestProcess(this.client, address, pid, streams);
    } catch (error) {
      streams.destroy();
      void reply
        .then(call.undo, (failure: unknown) =>
          failure instanceof LcowError && failure.code === 'TIMED_OUT' ? call.undo() : undefined,
        )
        .catch(() => {});
      throw error;
    }
  }
}

/** The two connections of a session, and the one failure they share. */
export class Session {
  readonly client: GuestClient;
  readonly closed: Promise<LcowError | undefined>;
  readonly #rpc: TtrpcClient;
  readonly #mux: Multiplexer;
  #failure: LcowError | undefined;

  constructor(rpc: ConstructorParameters<typeof TtrpcClient>[0], mux: ConstructorParameters<typeof Multiplexer>[0]) {
    this.#rpc = new TtrpcClient(rpc);
    this.#mux = new Multiplexer(mux, {
      side: 'host',
      mapError: (error) => (error instanceof StreamResetError ? fromReset(error) : this.fail(error)),
    });
    this.client = guestClient(this.#rpc, (error) => this.fail(error));
    this.closed = Promise.race([this.#rpc.closed, this.#mux.closed]).then((error) => {
      if (error) this.fail(error);
      return this.#failure?.code === 'CLOSED' ? undefined : this.#failure;
    });
  }

  /** The failure of the session: the first one, for everybody. */
  fail(error: TransportError): LcowError {
    return this.#end(fromTransport(error));
  }

  close(): void {
    this.#end(new LcowError('CLOSED', 'The guest connection was closed.'));
  }

  #end(error: LcowError): LcowError {
    if (this.#failure) return this.#failure;
    this.#failure = error;
    this.#rpc.close();
    this.#mux.close(error);
    return error;
  }

  /** @throws LcowError the session's failure; INVALID_ARGUMENT, INVALID_STATE. */
  openStdio(wish: StdioWish, terminal: boolean, before?: StdioOffsets): StdioStreams {
    return this.#orFailure(() => new StdioStreams(this.#mux, wish, terminal, before));
  }

  openStream(): ReturnType<Multiplexer['open']> {
    return this.#orFailure(() => this.#mux.open());
  }

  #orFailure<T>(open: () => T): T {
    try {
      return open();
    } catch (error) {
      throw error instanceof TransportError ? this.fail(error) : error;
    }
  }
}

function toJson(value: object): Uint8Array {
  return Buffer.from(JSON.stringify(value));
}
