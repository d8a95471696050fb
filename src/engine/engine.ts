import { rm } from 'node:fs/promises';
import { isLcowError, LcowError } from '../errors/index.js';
import type { OciProcess } from '../gcs/index.js';
import { initDriver, type Driver } from '../graphdriver/index.js';
import { sweepComputeSystems, type Logger } from '../hcs/index.js';
import { ImageStore, topLayerId, type Image, type PullOptions, type RemovedImage } from '../images/index.js';
import { delay, timeoutMs } from '../lifetime/index.js';
import { isAlive, stateFolders, type StateFolders } from '../state/index.js';
import { containerConfig, mergeEnv, userEnv, type ContainerOptions } from './container-options.js';
import type { ContainerConfig, ContainerRecord } from './container-record.js';
import { ContainerStore } from './container-store.js';
import { ControlClient } from './control-client.js';
import { startDetached } from './detached.js';
import { readLog, type LogEntry } from './log-file.js';
import type { AttachedStreams, Supervisor } from './supervisor.js';

export interface CreateOptions extends ContainerOptions {
  /** How a missing image is pulled; absent: it is an error. */
  readonly pull?: PullOptions;
  readonly signal?: AbortSignal;
}

export interface ExecOptions {
  readonly args: readonly string[];
  /** "K=V", or "K" to take the value from `hostEnv`. */
  readonly env?: readonly string[];
  readonly hostEnv?: NodeJS.ProcessEnv;
  readonly terminal?: boolean;
  readonly workingDir?: string;
}

export interface LogOptions {
  readonly follow?: boolean;
  readonly tail?: number;
  readonly since?: Date;
  readonly signal?: AbortSignal;
}

/** How often a follower looks for more: Node's file watching differs from host to host. */
const FOLLOW_INTERVAL_MS = 100;

/** Images and containers of one data root. Several processes may have one open at once. */
export class Engine {
  readonly folders: StateFolders;
  readonly images: ImageStore;
  readonly driver: Driver;
  readonly #store: ContainerStore;

  private constructor(folders: StateFolders, images: ImageStore, driver: Driver) {
    this.folders = folders;
    this.images = images;
    this.driver = driver;
    this.#store = new ContainerStore(folders);
  }

  /**
   * Opens the data root and cleans up what killed processes left: VMs, sockets, half-made files, containers of dead
   * supervisors that were to be removed.
   */
  static async open(env: NodeJS.ProcessEnv = process.env): Promise<Engine> {
    const folders = stateFolders(env);
    const driver = await initDriver(folders.root);
    const engine = new Engine(folders, await ImageStore.open(folders, driver), driver);
    await engine.#sweep();
    return engine;
  }

  /** Grace between the stop signal and SIGKILL when none is given, ms. */
  get stopGraceMs(): number {
    return timeoutMs('containerStop');
  }

  async #sweep(): Promise<void> {
    await sweepComputeSystems(this.folders.runtime);
    await this.#store.sweep();
    for (const { config, state } of await this.#store.list()) {
      if (state.status !== 'exited' || !state.supervisor || isAlive(state.supervisor)) continue;
      const { supervisor: _dead, ...ended } = state;
      await this.#store.update(config.id, () => ended);
      await rm(this.#store.controlSocket(config.id), { force: true });
      if (config.autoRemove) await this.#discard(config.id);
    }
  }

  /**
   * The image of that name or id, pulled when it is missing and `pull` says how.
   * @throws LcowError IMAGE_NOT_FOUND and what {@link ImageStore.pull} throws.
   */
  async image(nameOrId: string, pull?: PullOptions): Promise<Image> {
    try {
      return await this.images.resolve(nameOrId);
    } catch (error) {
      if (!pull || !isLcowError(error, 'IMAGE_NOT_FOUND')) throw error;
      return this.images.pull(nameOrId, pull);
    }
  }

  /** Makes a container with its writable layer; it is "created", not started. */
  async create(options: CreateOptions): Promise<ContainerConfig> {
    const image = await this.image(options.image, options.pull);
    const layerIds = image.layers.map(({ chainId }) => chainId.replace(/^sha256:/, '')).reverse();
    const config = containerConfig(options, image, layerIds);
    await this.#store.create(config);
    try {
      await this.driver.createReadWrite(config.id, layerIds[0] ?? '');
    } catch (error) {
      await this.#discard(config.id);
      throw error;
    }
    return config;
  }

  /** Starts a created container in this process, which owns it from now on. */
  async supervise(
    id: string,
    options: { attach?: AttachedStreams; signal?: AbortSignal; log?: Logger } = {},
  ): Promise<Supervisor> {
    const { config } = await this.#store.get(id);
    // Only who runs a container needs the rooms that a VM needs.
    const { Supervisor } = await import('./supervisor.js');
    return Supervisor.start({ folders: this.folders, store: this.#store, driver: this.driver, config, ...options });
  }

  /** Starts a created container in a process of its own that outlives this one. */
  async startDetached(id: string, signal?: AbortSignal): Promise<void> {
    await startDetached(this.#store, id, signal);
  }

  /** What remains to do when a supervised container has exited: remove it if it was to be removed. */
  async afterExit(id: string): Promise<void> {
    const { config } = await this.#store.get(id);
    if (config.autoRemove) await this.#discard(id);
  }

  /** @throws LcowError CONTAINER_NOT_FOUND. */
  async container(nameOrId: string): Promise<ContainerRecord> {
    return this.#store.resolve(nameOrId);
  }

  /** All containers, or only the running ones; the newest first. */
  async containers(all: boolean): Promise<ContainerRecord[]> {
    const records = await this.#store.list();
    return all ? records : records.filter(({ state }) => state.status === 'running');
  }

  /**
   * A connection to the supervisor of a running container.
   * @throws LcowError CONTAINER_NOT_FOUND, CONTAINER_NOT_RUNNING.
   */
  async connect(nameOrId: string): Promise<ControlClient> {
    const { config, state } = await this.#store.resolve(nameOrId);
    if (state.status !== 'running')
      throw new LcowError('CONTAINER_NOT_RUNNING', `Container ${config.name} is not running.`);
    return ControlClient.connect(this.#store.controlSocket(config.id), config.name);
  }

  /** The OCI process of an exec: the container's environment and folder, unless others are given, as docker has it. */
  async execProcess(nameOrId: string, options: ExecOptions): Promise<OciProcess> {
    const { config } = await this.#store.resolve(nameOrId);
    const env = mergeEnv([...config.env, ...userEnv(options.env ?? [], options.hostEnv)]);
    const { hostname, workingDir } = config;
    const terminal = options.terminal ?? false;
    const { containerEnv } = await import('../hcsoci/index.js');
    return {
      terminal,
      user: { uid: 0, gid: 0 },
      args: [...options.args],
      env: containerEnv(env, { hostname, terminal }),
      cwd: options.workingDir ?? workingDir,
    };
  }

  /** Stops a container and waits until it is over. One that does not run is left alone, as docker does. */
  async stop(nameOrId: string, graceMs = this.stopGraceMs): Promise<void> {
    const { config, state } = await this.#store.resolve(nameOrId);
    if (state.status === 'starting') {
      // It has no process to stop yet: its owner gives the start up.
      if (state.supervisor && isAlive(state.supervisor)) process.kill(state.supervisor.pid, 'SIGTERM');
    } else if (state.status === 'running') {
      await using client = await this.connect(config.id);
      await client.stop(graceMs);
    }
    await this.#untilOver(config.id);
  }

  /** Sends a signal to a container's init. @throws LcowError CONTAINER_NOT_RUNNING. */
  async kill(nameOrId: string, signal: number): Promise<void> {
    await using client = await this.connect(nameOrId);
    await client.signal(signal);
  }

  /**
   * Waits for a container to exit.
   * @returns its exit code.
   */
  async wait(nameOrId: string): Promise<number> {
    const { config, state } = await this.#store.resolve(nameOrId);
    if (state.status !== 'running') return this.#untilOver(config.id);
    // Asked of its owner: with --rm there is nothing left to read the code from afterwards.
    await using client = await this.connect(config.id);
    const exitCode = await client.wait();
    await this.#untilOver(config.id);
    return exitCode;
  }

  /**
   * Removes a container and its writable layer.
   * @throws LcowError IN_USE when it runs and `force` is not given.
   */
  async remove(nameOrId: string, force = false): Promise<void> {
    const { config, state } = await this.#store.resolve(nameOrId);
    if (state.status === 'running' || state.status === 'starting') {
      if (!force)
        throw new LcowError('IN_USE', `You cannot remove a running container ${config.id}.`, {
          hint: 'Stop the container before attempting removal or force remove.',
        });
      await this.stop(config.id, 0);
    }
    await this.#discard(config.id);
  }

  /** Yields the container's output. */
  async *logs(nameOrId: string, options: LogOptions = {}): AsyncGenerator<LogEntry> {
    const { config } = await this.#store.resolve(nameOrId);
    const over = async (): Promise<boolean> => {
      // The state is read before the file, so that what was written before the end is seen.
      const status = await this.#status(config.id);
      if (status === 'running' || status === 'starting') {
        await delay(FOLLOW_INTERVAL_MS, options.signal);
        return false;
      }
      return true;
    };
    yield* readLog(this.#store.logFile(config.id), {
      ...(options.tail === undefined ? {} : { tail: options.tail }),
      ...(options.since ? { since: options.since } : {}),
      ...(options.signal ? { signal: options.signal } : {}),
      ...(options.follow ? { follow: over } : {}),
    });
  }

  /** Removes an image. @throws LcowError IN_USE when a container was made from it. */
  async removeImage(nameOrId: string, force = false): Promise<RemovedImage> {
    return this.images.remove(nameOrId, {
      force,
      usedBy: async (image) => {
        const top = topLayerId(image);
        const users = (await this.#store.list()).filter(({ config }) => top && config.layerIds.includes(top));
        return users.map(({ config }) => config.id.slice(0, 12));
      },
    });
  }

  async #status(id: string): Promise<string> {
    try {
      return (await this.#store.get(id)).state.status;
    } catch (error) {
      if (isLcowError(error, 'CONTAINER_NOT_FOUND')) return 'removed';
      throw error;
    }
  }

  /** Waits until the supervisor has released everything, and with --rm until the container is gone. */
  async #untilOver(id: string): Promise<number> {
    for (;;) {
      let record: ContainerRecord;
      try {
        record = await this.#store.get(id);
      } catch (error) {
        if (isLcowError(error, 'CONTAINER_NOT_FOUND')) return 0;
        throw error;
      }
      const { status, supervisor, exitCode } = record.state;
      const removing = record.config.autoRemove && supervisor && isAlive(supervisor);
      if (status !== 'starting' && status !== 'running' && !removing) return exitCode ?? 0;
      await delay(20);
    }
  }

  async #discard(id: string): Promise<void> {
    await this.driver.remove(id);
    await rm(this.#store.controlSocket(id), { force: true });
    await this.#store.remove(id);
  }
}
