import type { Readable, Writable } from 'node:stream';
import { errorMessage, LcowError } from '../errors/index.js';
import type { ConsoleSize, Container, Process } from '../gcs/index.js';
import { createContainer, defaultLinuxSpec, releaseResources } from '../hcsoci/index.js';
import { addNamespaceEndpoint, createNamespace, createNatEndpoint, removeNamespace } from '../hns/index.js';
import { Scope, settledWithin, throwIfAborted, timeoutMs } from '../lifetime/index.js';
import { ownIdentity, type StateFolders } from '../state/index.js';
import type { Logger } from '../hcs/index.js';
import { createUtilityVM, type UtilityVM } from '../uvm/index.js';
import type { Driver } from '../graphdriver/index.js';
import { isActive, type ContainerConfig, type ContainerState } from './container-record.js';
import type { ContainerStore } from './container-store.js';
import { ControlServer, type RunningContainer, type Supervised } from './control-server.js';
import { LogWriter } from './log-file.js';
import { OutputPump } from './output-pump.js';
import { signalNumber } from './signals.js';
import { startFailureExitCode } from './start-failure.js';

/** Streams of the command that runs a container in the foreground. */
export interface AttachedStreams {
  readonly stdin?: Readable;
  readonly stdout?: Writable;
  readonly stderr?: Writable;
  readonly consoleSize?: ConsoleSize;
}

export interface SupervisorOptions {
  readonly folders: StateFolders;
  readonly store: ContainerStore;
  readonly driver: Driver;
  readonly config: ContainerConfig;
  readonly attach?: AttachedStreams;
  readonly signal?: AbortSignal;
  readonly log?: Logger;
  /** The last act, when the container has exited and everything it used is released. */
  readonly onEnded: () => Promise<void>;
}

/** Memory of a utility VM beside what the container may use: kernel, agent, page tables. */
const GUEST_OVERHEAD_MB = 192;
const DEFAULT_MEMORY_MB = 1024;
const DISKS_PER_CONTROLLER = 64;
/** Exit code of a container that ended without one: that of SIGKILL, as docker has it. */
const KILLED = 137;

/**
 * Owns one container's utility VM from start to end: the process that holds a Supervisor is the one whose death ends the
 * container. Other processes reach it by its control socket.
 */
export class Supervisor implements Supervised {
  readonly #options: SupervisorOptions;
  readonly #scope = new Scope();
  readonly #abandoned = new AbortController();
  #vm: UtilityVM | undefined;
  #container: Container | undefined;
  #running = false;
  #terminated = false;
  readonly #pumps: OutputPump[] = [];
  #log: LogWriter | undefined;
  readonly #exitCode: Promise<number>;
  #tellExitCode!: (exitCode: number) => void;
  #ended: Promise<ContainerState> | undefined;

  private constructor(options: SupervisorOptions) {
    this.#options = options;
    this.#exitCode = new Promise((resolve) => (this.#tellExitCode = resolve));
  }

  /**
   * Starts a created container: VM, layers, network, process.
   * @throws LcowError of whatever failed; nothing is left behind and the container is "created" again.
   */
  static async start(options: SupervisorOptions): Promise<Supervisor> {
    const supervisor = new Supervisor(options);
    const { store, config } = options;
    await store.update(config.id, (state) => {
      if (isActive(state)) throw new LcowError('INVALID_STATE', `The container ${config.name} is already running.`);
      if (state.status === 'removing')
        throw new LcowError('INVALID_STATE', `The container ${config.name} is being removed.`);
      return { status: 'starting', supervisor: ownIdentity() };
    });
    try {
      await supervisor.#start();
      return supervisor;
    } catch (error) {
      supervisor.#tellExitCode(startFailureExitCode(error));
      // The record comes last: "created" says that nothing is left of the attempt.
      const recorded = new Scope();
      recorded.defer(() =>
        store.update(config.id, () => ({
          status: 'created',
          exitCode: startFailureExitCode(error),
          error: errorMessage(error),
        })),
      );
      recorded.defer(() => supervisor.#scope.release());
      return await recorded.undo(error);
    }
  }

  get init(): Process {
    return this.#container!.init;
  }

  /** Runs a further process in the container. */
  get container(): Container {
    return this.#container!;
  }

  get vm(): UtilityVM {
    return this.#vm!;
  }

  get containerId(): string {
    return this.#options.config.id;
  }

  /** @throws LcowError CONTAINER_NOT_RUNNING. */
  running(): RunningContainer {
    const { name } = this.#options.config;
    if (!this.#running) throw new LcowError('CONTAINER_NOT_RUNNING', `Container ${name} is not running.`);
    return this;
  }

  /** As the container left it, or what stands for a container that ended otherwise. Known before anything is released. */
  exitCode(): Promise<number> {
    return this.#exitCode;
  }

  /**
   * Settles when the container has exited and everything it used is released. What failed on the way, as a log that could
   * not be written, is the `error` of the state.
   * @throws LcowError GUEST_PANIC, VM_EXITED and others when there is no exit code.
   */
  wait(): Promise<ContainerState> {
    return this.#ended!;
  }

  async #start(): Promise<void> {
    const { config, folders, store, driver, attach, log } = this.#options;
    const scope = this.#scope;
    const abandoned = this.#abandoned.signal;
    const signal = this.#options.signal ? AbortSignal.any([this.#options.signal, abandoned]) : abandoned;
    const server = await ControlServer.listen(store.controlSocket(config.id), this);
    scope.defer(() => server.close());

    const endpoint = createNatEndpoint({ hostname: config.hostname });
    const namespace = createNamespace();
    scope.defer(() => removeNamespace(namespace));
    addNamespaceEndpoint(namespace, endpoint);

    this.#vm = await createUtilityVM({
      id: config.id.slice(0, 32),
      owner: 'lcow',
      runtimeFolder: folders.runtime,
      cacheFolder: folders.cache,
      memorySizeInMB: utilityVmMemory(config.memoryBytes),
      ...(config.nanoCpus > 0 ? { processorCount: Math.ceil(config.nanoCpus / 1e9) } : {}),
      networkAdapters: [endpoint],
      // Each costs time at the boot: as many as the layers and the scratch need.
      scsiControllerCount: Math.ceil((config.layerIds.length + 1) / DISKS_PER_CONTROLLER),
      signal,
      ...(log ? { log } : {}),
    });
    const vm = this.#vm;
    scope.defer(() => vm.close());
    await vm.start({ signal });

    const layerFolders: string[] = [];
    for (const id of [...config.layerIds, config.id]) layerFolders.push(await driver.getLayerPath(id));
    const { container, resources } = await createContainer({
      id: config.id.slice(0, 32),
      owner: 'lcow',
      spec: {
        ...defaultLinuxSpec({
          args: config.args,
          env: config.env,
          cwd: config.workingDir,
          terminal: config.tty,
          hostname: config.hostname,
          memoryBytes: config.memoryBytes,
          nanoCpus: config.nanoCpus,
        }),
        windows: { layerFolders },
      },
      // Root, too, is looked up: its groups are those that list it, as docker has it.
      user: config.user || '0',
      hostingSystem: vm,
      networkNamespace: namespace,
      stdio: { stdin: config.openStdin, stdout: true, stderr: !config.tty },
      ...(attach?.consoleSize ? { consoleSize: attach.consoleSize } : {}),
      signal,
    });
    // The VM is about to go, and takes all of it along; only a writable layer that is kept has to be unmounted first.
    if (!config.autoRemove) scope.defer(() => releaseResources(resources, vm, false));
    this.#container = container;
    this.#log = await LogWriter.open(store.logFile(config.id));
    scope.defer(() => this.#log!.close());

    this.#relay(container.init, attach);
    await container.start({ signal });
    // From here on a request to end is for the container.
    throwIfAborted(signal);
    this.#running = true;
    // Before the VM goes: exec processes end with their container, and their last output is still to be sent.
    scope.defer(() => server.close());
    await store.update(config.id, (state) => ({
      ...state,
      status: 'running',
      pid: container.init.pid,
      startedAt: new Date().toISOString(),
    }));
    this.#ended = this.#untilExit(container);
    // The caller asks for the end by wait(); until then a failure is not unhandled.
    this.#ended.catch(() => undefined);
  }

  #relay(init: Process, attach: AttachedStreams | undefined): void {
    const { stdin, stdout, stderr } = init.stdio();
    // Who wanted the output has gone (`lcow run … | head`), and this process owns the container: it ends as it would by
    // SIGPIPE without a VM in between.
    const end = (): void => void init.kill().catch(() => undefined);
    const log = this.#log!;
    if (stdout) this.#pumps.push(new OutputPump(stdout, 'stdout', { log, attached: attach?.stdout, onBroken: end }));
    if (stderr) this.#pumps.push(new OutputPump(stderr, 'stderr', { log, attached: attach?.stderr, onBroken: end }));
    if (!stdin) return;
    // A process that exits without reading its input resets the stream; that is no failure of the container.
    stdin.on('error', () => undefined);
    stdin.once('close', () => attach?.stdin?.unpipe(stdin));
    if (attach?.stdin) attach.stdin.pipe(stdin);
    else if (!this.#options.config.detached) stdin.end();
  }

  async #untilExit(container: Container): Promise<ContainerState> {
    const { store, config, onEnded } = this.#options;
    let outcome: Partial<ContainerState>;
    let failure: unknown;
    const troubles: unknown[] = [];
    const noting = async (work: Promise<unknown>): Promise<void> => {
      await work.catch((error: unknown) => troubles.push(error));
    };
    try {
      const { exitCode, oomKilled, exitedAt } = await container.init.wait();
      this.#running = false;
      this.#tellExitCode(exitCode);
      await Promise.all(this.#pumps.map((pump) => noting(pump.finish(timeoutMs('guestShutdown')))));
      outcome = { exitCode, oomKilled, finishedAt: exitedAt.toISOString() };
    } catch (error) {
      this.#running = false;
      this.#tellExitCode(KILLED);
      outcome = { exitCode: KILLED, finishedAt: new Date().toISOString() };
      if (!this.#terminated) troubles.push((failure = await this.#explain(error)));
    }
    // With the VM gone, what it held cannot be released in order; that is told by the failure above.
    await noting(this.#scope.release());
    const [trouble] = troubles;
    const state = await store.update(config.id, (before) => ({
      ...(before.startedAt ? { startedAt: before.startedAt } : {}),
      // Says to those who wait that its owner is still to remove it.
      ...(config.autoRemove && before.supervisor ? { supervisor: before.supervisor } : {}),
      ...(trouble === undefined ? {} : { error: errorMessage(trouble) }),
      ...outcome,
      status: 'exited',
    }));
    await onEnded();
    if (failure) throw failure;
    return state;
  }

  /** Why the connection to the container broke: the VM knows better than the broken stream. */
  async #explain(error: unknown): Promise<unknown> {
    const exit = await Promise.race([
      this.vm.wait(),
      new Promise<undefined>((resolve) => setTimeout(resolve, 2000, undefined).unref()),
    ]);
    if (!exit) return error;
    return new LcowError(
      exit.kind === 'panic' ? 'GUEST_PANIC' : 'VM_EXITED',
      exit.kind === 'panic'
        ? 'The kernel of the utility VM panicked while the container ran.'
        : `The utility VM ended while the container ran${exit.reason ? `: ${exit.reason}` : ''}.`,
      { cause: error, details: { consoleTail: exit.consoleTail } },
    );
  }

  /**
   * Stop signal, SIGKILL after the grace; a guest that does not carry even that out loses its VM. Gives up a start under
   * way. Settles as {@link wait} does.
   */
  async stop(graceMs: number, signal = signalNumber(this.#options.config.stopSignal)): Promise<void> {
    if (!this.#running && !this.#ended) {
      const { name } = this.#options.config;
      this.#abandoned.abort(new LcowError('CANCELLED', `The container ${name} was stopped before it had started.`));
      return;
    }
    const exited = this.init.wait();
    exited.catch(() => undefined);
    if (graceMs > 0) {
      const until = performance.now() + graceMs;
      // An init that does not handle the signal never will: the kernel drops it.
      const delivered = this.init.signal(signal).catch(() => false);
      if ((await settledWithin(delivered, graceMs)) && (await delivered))
        await settledWithin(exited, until - performance.now());
    }
    const killed = this.init.kill().then(() => exited);
    if (!(await settledWithin(killed, timeoutMs('guestShutdown'))) || !(await settledWithin(exited, 0))) {
      this.#terminated = true;
      await this.vm.terminate();
    }
    await this.wait();
  }
}

function utilityVmMemory(limitBytes: number): number {
  if (limitBytes === 0) return DEFAULT_MEMORY_MB;
  return Math.ceil(limitBytes / 2 ** 20) + GUEST_OVERHEAD_MB;
}
