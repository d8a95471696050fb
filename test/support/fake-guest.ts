// A guest agent in this process: the real protocol over real sockets, and programs that are functions.
import type { Socket } from 'node:net';
import { PassThrough, type Duplex } from 'node:stream';
import { create, type MessageInitShape } from '@bufbuild/protobuf';
import {
  ContainerInfo_State,
  Guest,
  GuestError_Reason as Reason,
  GuestErrorSchema,
  HelloResponseSchema,
  type Stdio,
} from '../../src/gcs/guest_pb.js';
import type { GuestPorts } from '../../src/gcs/index.js';
import {
  handshake,
  Multiplexer,
  packDetail,
  StatusCode,
  TtrpcError,
  TtrpcServer,
  type MuxStream,
  type ServiceImplementation,
} from '../../src/ttrpc/index.js';
import { socketPair } from './socket-pair.js';

/** A status with a GuestError; any number is a reason on the wire. */
export function guestError(reason: number, message: string, subject = ''): TtrpcError {
  const detail = create(GuestErrorSchema, { subject, errno: 2 });
  Object.assign(detail, { reason });
  return new TtrpcError(StatusCode.UNKNOWN, message, [packDetail(GuestErrorSchema, detail)]);
}

class FakeOutput {
  readonly #log: Buffer[] = [];
  #stream: MuxStream | undefined;
  #ended = false;

  /** Waits while the host does not take the bytes, as a pipe would. */
  async write(chunk: Buffer): Promise<void> {
    this.#log.push(chunk);
    const stream = this.#stream;
    if (!stream || stream.destroyed || stream.write(chunk)) return;
    await new Promise<void>((resolve) => {
      const go = (): void => {
        stream.off('drain', go).off('close', go);
        resolve();
      };
      stream.on('drain', go).on('close', go);
    });
  }

  end(): void {
    this.#ended = true;
    this.#stream?.end();
  }

  attach(stream: MuxStream, offset: number): void {
    this.#stream = stream;
    // The other direction: the host's END after it has taken everything.
    stream.resume();
    const rest = Buffer.concat(this.#log).subarray(offset);
    if (rest.length > 0) stream.write(rest);
    if (this.#ended) stream.end();
  }
}

export class FakeProcess {
  readonly stdin = new PassThrough();
  readonly stdout = new FakeOutput();
  readonly stderr = new FakeOutput();
  stdinTaken = 0;
  size: { rows: number; columns: number } | undefined;
  exitCode: number | undefined;
  readonly exited: Promise<number>;
  readonly signals: number[] = [];
  #exit!: (code: number) => void;

  constructor(
    readonly spec: { args: string[]; terminal?: boolean },
    readonly pid: number,
  ) {
    this.exited = new Promise((resolve) => (this.#exit = resolve));
  }

  exit(code: number): void {
    if (this.exitCode !== undefined) return;
    this.exitCode = code;
    this.stdout.end();
    this.stderr.end();
    this.stdin.destroy();
    this.#exit(code);
  }

  signal(signal: number): void {
    this.signals.push(signal);
    if (signal === 9 || signal === 15) this.exit(128 + signal);
  }

  attach(mux: Multiplexer, stdio: Stdio | undefined, offsets: { stdout: number; stderr: number }): void {
    if (stdio?.stdoutStream) this.stdout.attach(mux.claim(stdio.stdoutStream), offsets.stdout);
    if (stdio?.stderrStream) this.stderr.attach(mux.claim(stdio.stderrStream), offsets.stderr);
    if (stdio?.stdinStream) {
      const stream = mux.claim(stdio.stdinStream);
      void this.#feed(stream);
    }
  }

  async #feed(stream: MuxStream): Promise<void> {
    try {
      for await (const chunk of stream as AsyncIterable<Buffer>) {
        this.stdinTaken += chunk.length;
        if (!this.stdin.write(chunk)) await new Promise((resolve) => this.stdin.once('drain', resolve));
      }
      this.stdin.end();
      stream.end();
    } catch {
      // The host has gone: what it sent stays, and another host goes on.
    }
  }
}

export type FakeProgram = (process: FakeProcess) => unknown;

/** Programs by the first argument of a process. Each returns its exit code. */
export const PROGRAMS: Record<string, FakeProgram> = {
  true: () => 0,
  exit: ({ spec }) => Number(spec.args[1]),
  echo: async ({ spec, stdout }) => {
    await stdout.write(Buffer.from(`${spec.args.slice(1).join(' ')}\n`));
    return 0;
  },
  cat: async ({ stdin, stdout }) => {
    for await (const chunk of stdin as AsyncIterable<Buffer>) await stdout.write(chunk);
    return 0;
  },
  /** Writes what it reads to both outputs, blocking on either. */
  tee: async ({ stdin, stdout, stderr }) => {
    for await (const chunk of stdin as AsyncIterable<Buffer>) {
      await stdout.write(chunk);
      await stderr.write(chunk);
    }
    return 0;
  },
  sleep: () => new Promise(() => {}),
};

interface FakeContainer {
  readonly init: FakeProcess;
  readonly execs: Map<string, FakeProcess>;
  state: ContainerInfo_State;
}

/** Outlives its sessions, as the agent does. */
export class FakeGuest {
  readonly containers = new Map<string, FakeContainer>();
  readonly machine = new Map<string, FakeProcess>();
  readonly calls: string[] = [];
  hello: MessageInitShape<typeof HelloResponseSchema> = {
    protocolMajor: 1,
    protocolMinor: 2,
    agentVersion: '0.1.0',
    kernelRelease: '6.1.0',
    runtimeVersion: 'crun 1.8',
    bootId: 'boot',
    uptimeNanos: 5n,
    features: ['pause'],
  };
  /** What a test has the guest do instead. */
  overrides: ServiceImplementation<typeof Guest> = {};
  /** Bytes of an earlier session that a new connection finds first. */
  stale = Buffer.alloc(0);
  /** The guest's ends of the current session. */
  rpc: Socket | undefined;
  mux: Multiplexer | undefined;
  muxSocket: Socket | undefined;
  log = '';
  #nextPid = 100;

  readonly ports: GuestPorts = {
    connectRpc: async () => {
      const [near, far] = await socketPair();
      far.write(this.stale);
      void this.#begin(far, () => {
        this.rpc = far;
        void this.#server()
          .serve(far)
          .catch(() => {});
      });
      return near;
    },
    connectMux: async () => {
      const [near, far] = await socketPair();
      far.write(this.stale);
      void this.#begin(far, () => {
        this.muxSocket = far;
        this.mux = new Multiplexer(far, { side: 'guest' });
      });
      return near;
    },
  };

  async #begin(far: Duplex, session: () => void): Promise<void> {
    try {
      await handshake(far, 'guest');
      session();
    } catch {
      far.destroy();
    }
  }

  /** The connection breaks, as when the host process is killed. */
  drop(): void {
    this.rpc?.destroy();
    this.muxSocket?.destroy();
  }

  #find(containerId: string, execId: string): FakeProcess {
    const container = this.containers.get(containerId);
    if (containerId !== '' && !container) throw guestError(Reason.NO_SUCH_CONTAINER, 'find container', containerId);
    const found = container ? (execId === '' ? container.init : container.execs.get(execId)) : this.machine.get(execId);
    if (!found) throw guestError(Reason.NO_SUCH_PROCESS, 'find process', execId);
    return found;
  }

  #make(json: Uint8Array, stdio: Stdio | undefined): FakeProcess {
    const process = new FakeProcess(JSON.parse(Buffer.from(json).toString()) as FakeProcess['spec'], this.#nextPid++);
    const [name] = process.spec.args;
    if (!name || !(name in PROGRAMS)) throw guestError(Reason.COMMAND_NOT_FOUND, `no such program "${name}"`, name);
    process.attach(this.mux!, stdio, { stdout: 0, stderr: 0 });
    return process;
  }

  #run(process: FakeProcess): void {
    void Promise.resolve(PROGRAMS[process.spec.args[0]!]!(process)).then(
      (code) => process.exit(code as number),
      () => process.exit(1),
    );
  }

  #server(): TtrpcServer {
    const standard: ServiceImplementation<typeof Guest> = {
      hello: () => this.hello,
      renew: () => ({}),
      createContainer: ({ containerId, specJson, stdio }) => {
        if (this.containers.has(containerId)) throw guestError(Reason.ALREADY_EXISTS, 'create container', containerId);
        const spec = JSON.parse(Buffer.from(specJson).toString()) as { process: unknown };
        const init = this.#make(Buffer.from(JSON.stringify(spec.process)), stdio);
        this.containers.set(containerId, { init, execs: new Map(), state: ContainerInfo_State.CREATED });
        return { pid: init.pid };
      },
      startContainer: ({ containerId }) => {
        const container = this.containers.get(containerId);
        if (!container) throw guestError(Reason.NO_SUCH_CONTAINER, 'start container', containerId);
        if (container.state !== ContainerInfo_State.CREATED) throw guestError(Reason.WRONG_STATE, 'start running');
        container.state = ContainerInfo_State.RUNNING;
        this.#run(container.init);
        return {};
      },
      deleteContainer: ({ containerId, force }) => {
        const container = this.containers.get(containerId);
        if (!container) throw guestError(Reason.NO_SUCH_CONTAINER, 'delete container', containerId);
        if (container.init.exitCode === undefined && !force) throw guestError(Reason.WRONG_STATE, 'delete running');
        container.init.exit(137);
        this.containers.delete(containerId);
        return {};
      },
      listContainers: () => ({
        containers: [...this.containers].map(([containerId, { init, execs, state }]) => ({
          containerId,
          state,
          pid: init.pid,
          execIds: [...execs.keys()],
        })),
      }),
      exec: ({ containerId, execId, processJson, stdio, consoleSize }) => {
        if (containerId !== '' && !this.containers.has(containerId))
          throw guestError(Reason.NO_SUCH_CONTAINER, 'exec', containerId);
        const process = this.#make(processJson, stdio);
        process.size = consoleSize;
        (this.containers.get(containerId)?.execs ?? this.machine).set(execId, process);
        this.#run(process);
        return { pid: process.pid };
      },
      attachProcess: ({ containerId, execId, stdio, stdoutOffset, stderrOffset }) => {
        const process = this.#find(containerId, execId);
        process.attach(this.mux!, stdio, { stdout: Number(stdoutOffset), stderr: Number(stderrOffset) });
        return { stdinOffset: BigInt(process.stdinTaken) };
      },
      signalProcess: ({ containerId, execId, signal }) => {
        const process = this.#find(containerId, execId);
        if (process.exitCode !== undefined) throw guestError(Reason.NO_SUCH_PROCESS, 'signal exited', execId);
        process.signal(signal);
        return { delivered: true };
      },
      waitProcess: async ({ containerId, execId }) => ({
        exitCode: await this.#find(containerId, execId).exited,
        exitedAtUnixNanos: 1_700_000_000_123_456_789n,
      }),
      resizeConsole: ({ containerId, execId, size }) => {
        this.#find(containerId, execId).size = size;
        return {};
      },
      deleteProcess: ({ containerId, execId }) => {
        const process = this.#find(containerId, execId);
        if (process.exitCode === undefined) throw guestError(Reason.WRONG_STATE, 'delete running process', execId);
        (this.containers.get(containerId)?.execs ?? this.machine).delete(execId);
        return {};
      },
      stats: () => ({ cpuUsageNanos: 7n, memoryUsageBytes: 4096n, memoryLimitBytes: 2n ** 64n - 1n, pids: 1n }),
      streamLog: ({ stream }) => {
        const to = this.mux!.claim(stream);
        to.resume();
        to.end(this.log);
        return {};
      },
    };
    const counted: Record<string, unknown> = {};
    for (const [name, handler] of Object.entries({ ...standard, ...this.overrides }))
      counted[name] = (...args: unknown[]) => {
        this.calls.push(name);
        return (handler as (...args: unknown[]) => unknown)(...args);
      };
    return new TtrpcServer().addService(Guest, counted);
  }
}
