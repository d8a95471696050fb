import { finished } from 'node:stream/promises';
import type { Readable, Writable } from 'node:stream';
import { errorMessage, LcowError } from '../errors/index.js';
import type { ConsoleSize, Container, Process } from '../gcs/index.js';
import { createContainer, defaultLinuxSpec, releaseResources } from '../hcsoci/index.js';
import { addNamespaceEndpoint, createNamespace, createNatEndpoint, removeNamespace } from '../hns/index.js';
import { Scope, timeoutMs } from '../lifetime/index.js';
import { ownIdentity, type StateFolders } from '../state/index.js';
import type { Logger } from '../hcs/index.js';
import { createUtilityVM, type UtilityVM } from '../uvm/index.js';
import type { Driver } from '../graphdriver/index.js';
import type { ContainerConfig, ContainerState } from './container-record.js';
import type { ContainerStore } from './container-store.js';
import { ControlServer } from './control-server.js';
import { LogWriter } from './log-file.js';
import { pumpOutput } from './output-pump.js';
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
}

/** Memory of a utility VM beside what the container may use: kernel, agent, page tables. */
const GUEST_OVERHEAD_MB = 192;
const DEFAULT_MEMORY_MB = 1024;
const DISKS_PER_CONTROLLER = 64;

/**
 * Owns one container's utility VM from start to end: the process that holds a Supervisor is the one whose death ends the
 * container. Other processes reach it by its control socket.
 */
export class Supervisor {
  readonly #options: SupervisorOptions;
  readonly #scope = new Scope();
  #vm: UtilityVM | undefined;
  #container: Container | undefined;
  #pumps: Promise<void>[] = [];
  #log: LogWriter | undefined;
  #ended: Promise<ContainerState> | undefined;

  private constructor(options: SupervisorOptions) {
    this.#options = options;
  }

  /**
   * Starts a created container: VM, layers, network, process.
   * @throws LcowError of whatever failed; nothing is left behind and the container is "created" again.
   */
  static async start(options: SupervisorOptions): Promise<Supervisor> {
    const supervisor = new Supervisor(options);
    const { store, config } = options;
    await store.update(config.id, (state) => {
      if (state.status === 'starting' || state.status === 'running')
        throw new LcowError('INVALID_STATE', `The container ${config.name} is already running.`);
      return { status: 'starting', supervisor: ownIdentity() };
    });
    try {
      await supervisor.#start();
      return supervisor;
    } catch (error) {
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

  /** Settles when the container has exited and everything it used is released. */
  wait(): Promise<ContainerState> {
    return this.#ended!;
  }

  async #start(): Promise<void> {
    const { config, folders, store, driver, attach, signal, log } = this.#options;
    const scope = this.#scope;
    const abort = signal ? { signal } : {};

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
      ...(log ? { log } : {}),
    });
    const vm = this.#vm;
    scope.defer(() => vm.close());
    await vm.start(abort);

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
      ...abort,
    });
    // The VM is about to go, and takes all of it along; only a writable layer that is kept has to be unmounted first.
    if (!config.autoRemove) scope.defer(() => releaseResources(resources, vm, false));
    this.#container = container;
    this.#log = await LogWriter.open(store.logFile(config.id));
    scope.defer(() => this.#log!.close());

    this.#relay(container.init, attach);
    await container.start(abort);
    const server = await ControlServer.listen(store.controlSocket(config.id), this);
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
    if (stdout) this.#pumps.push(pumpOutput(stdout, 'stdout', this.#log!, attach?.stdout, end));
    if (stderr) this.#pumps.push(pumpOutput(stderr, 'stderr', this.#log!, attach?.stderr, end));
    for (const pump of this.#pumps) pump.catch(() => undefined);
    if (!stdin) return;
    // A process that exits without reading its input resets the stream; that is no failure of the container.
    stdin.on('error', () => attach?.stdin?.unpipe(stdin));
    if (attach?.stdin) attach.stdin.pipe(stdin);
    else if (!this.#options.config.detached) stdin.end();
  }

  async #untilExit(container: Container): Promise<ContainerState> {
    const { store, config } = this.#options;
    let outcome: Partial<ContainerState>;
    let failure: unknown;
    try {
      const exit = await container.init.wait();
      await this.#drain();
      outcome = { exitCode: exit.exitCode, oomKilled: exit.oomKilled, finishedAt: exit.exitedAt.toISOString() };
    } catch (error) {
      failure = await this.#explain(error);
      outcome = { exitCode: 137, finishedAt: new Date().toISOString(), error: errorMessage(failure) };
    }
    try {
      await this.#scope.release();
    } catch (error) {
      // With the VM gone, what it held cannot be released in order; that is told by the failure above.
      if (!failure) failure = error;
    }
    const state = await store.update(config.id, (before) => ({
      ...(before.startedAt ? { startedAt: before.startedAt } : {}),
      // Says to those who wait that its owner is still to remove it.
      ...(config.autoRemove && before.supervisor ? { supervisor: before.supervisor } : {}),
      ...outcome,
      status: 'exited',
    }));
    if (failure) throw failure;
    return state;
  }

  /** The process has exited; its last output may still be under way. */
  async #drain(): Promise<void> {
    const timer = setTimeout(() => {
      const { stdout, stderr } = this.init.stdio();
      stdout?.destroy();
      stderr?.destroy();
    }, timeoutMs('guestShutdown'));
    const results = await Promise.allSettled(this.#pumps);
    clearTimeout(timer);
    const { stdout, stderr } = this.#options.attach ?? {};
    for (const writer of [stdout, stderr])
      if (writer && writer.writableNeedDrain && !writer.destroyed) await finished(writer, { writable: true });
    const failed = results.find((result) => result.status === 'rejected');
    if (failed) throw failed.reason;
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

  /** Stop signal, SIGKILL after the grace. Answers with the final state. */
  async stop(graceMs: number, signal = signalNumber(this.#options.config.stopSignal)): Promise<ContainerState> {
    const exited = this.#container!.init.wait().then(
      () => true,
      () => true,
    );
    if (graceMs > 0) {
      const delivered = await this.init.signal(signal);
      // An init that does not handle the signal never will: the kernel drops it.
      if (delivered) {
        let timer: NodeJS.Timeout | undefined;
        const late = new Promise<boolean>((resolve) => (timer = setTimeout(resolve, graceMs, false)));
        const done = await Promise.race([exited, late]);
        clearTimeout(timer);
        if (done) return this.wait();
      }
    }
    await this.init.kill();
    return this.wait();
  }
}

function utilityVmMemory(limitBytes: number): number {
  if (limitBytes === 0) return DEFAULT_MEMORY_MB;
  return Math.ceil(limitBytes / 2 ** 20) + GUEST_OVERHEAD_MB;
}
