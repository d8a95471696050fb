import { rm } from 'node:fs/promises';
import { isLcowError, LcowError } from '../errors/index.js';
import type { OciProcess } from '../gcs/index.js';
import { initDriver, type Driver } from '../graphdriver/index.js';
import { sweepComputeSystems, type Logger } from '../hcs/index.js';
import {
  formatPlatform,
  ImageStore,
  parsePlatform,
  type Image,
  type PullOptions,
  type RemovedImage,
} from '../images/index.js';
import { delay, Scope, throwIfAborted, timeoutMs } from '../lifetime/index.js';
import { isAlive, ownIdentity, stateFolders, type StateFolders } from '../state/index.js';
import { containerConfig, mergeEnv, userEnv, type ContainerOptions } from './container-options.js';
import { isActive, type ContainerConfig, type ContainerRecord, type ContainerState } from './container-record.js';
import { ContainerStore } from './container-store.js';
import { ControlClient } from './control-client.js';
import { startDetached } from './detached.js';
import { readLog, type LogEntry } from './log-file.js';
import type { AttachedStreams, Supervisor } from './supervisor.js';

/** What {@link Engine.create} takes. */
export interface CreateOptions extends ContainerOptions {
  /** How a missing image is pulled; absent: it is an error. */
  readonly pull?: PullOptions;
  readonly signal?: AbortSignal;
}

/** What {@link Engine.execProcess} takes. */
export interface ExecOptions {
  readonly args: readonly string[];
  /** "K=V", or "K" to take the value from `hostEnv`. */
  readonly env?: readonly string[];
  readonly hostEnv?: NodeJS.ProcessEnv;
  readonly terminal?: boolean;
  readonly workingDir?: string;
}

/** What {@link Engine.logs} takes. */
export interface LogOptions {
  /** Go on until the container has exited. */
  readonly follow?: boolean;
  /** Only so many entries from the end. */
  readonly tail?: number;
  readonly since?: Date;
  readonly signal?: AbortSignal;
}

/** How often the state of a container is looked at by those who wait for it to change. */
const STATE_INTERVAL_MS = 20;

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
      if (isActive(state) || !state.supervisor || isAlive(state.supervisor)) continue;
      try {
        if (config.autoRemove || state.status === 'removing') {
          await this.#discard(config.id);
          continue;
        }
        await this.#store.update(config.id, (now) => {
          if (isActive(now) || !now.supervisor || isAlive(now.supervisor)) return now;
          const { supervisor: _dead, ...ended } = now;
          return ended;
        });
        await rm(this.#store.controlSocket(config.id), { force: true });
      } catch (error) {
        // Another command sweeps or removes as well.
        if (!isLcowError(error, 'CONTAINER_NOT_FOUND', 'IN_USE')) throw error;
      }
    }
  }

  /**
   * The image of that name or id, pulled when it is missing, or is there for another platform than the wanted one, and
   * `pull` says how.
   * @throws LcowError IMAGE_NOT_FOUND and what {@link ImageStore.pull} throws.
   */
  async image(nameOrId: string, pull?: PullOptions): Promise<Image> {
    const wanted = pull?.platform === undefined ? undefined : formatPlatform(parsePlatform(pull.platform));
    try {
      const image = await this.images.resolve(nameOrId);
      if (wanted === undefined || formatPlatform(image.platform) === wanted) return image;
    } catch (error) {
      if (!pull || !isLcowError(error, 'IMAGE_NOT_FOUND')) throw error;
    }
    return this.images.pull(nameOrId, pull);
  }

  /** Makes a container with its writable layer; it is "created", not started. */
  async create(options: CreateOptions): Promise<ContainerConfig> {
    const image = await this.image(options.image, options.pull);
    const layerIds = image.layers.map(({ chainId }) => chainId.replace(/^sha256:/, '')).reverse();
    const config = containerConfig(options, image, layerIds);
    await this.#store.create(config);
    try {
      const { signal } = options;
      await this.driver.createReadWrite(config.id, layerIds[0] ?? '', signal ? { signal } : {});
      throwIfAborted(signal);
    } catch (error) {
      await this.#discardAfter(error, config.id);
    }
    return config;
  }

  /**
   * Starts a created container in this process, which owns it from now on. One that is to be removed is gone when
   * {@link Supervisor.wait} settles, and when the start fails.
   * @throws LcowError of whatever made the start fail.
   */
  async supervise(
    id: string,
    options: { attach?: AttachedStreams; signal?: AbortSignal; log?: Logger } = {},
  ): Promise<Supervisor> {
    const { config } = await this.#store.get(id);
    const { folders, driver } = this;
    const onEnded = async (): Promise<void> => {
      if (config.autoRemove) await this.#discard(id);
    };
    // Only who runs a container needs the rooms that a VM needs.
    const { Supervisor } = await import('./supervisor.js');
    try {
      return await Supervisor.start({ folders, store: this.#store, driver, config, onEnded, ...options });
    } catch (error) {
      if (!config.autoRemove) throw error;
      return await this.#discardAfter(error, id);
    }
  }

  /**
   * Starts a created container in a process of its own that outlives this one.
   * @throws as {@link supervise}.
   */
  async startDetached(id: string, signal?: AbortSignal): Promise<void> {
    const { config } = await this.#store.get(id);
    try {
      await startDetached(this.folders, this.#store, id, signal);
    } catch (error) {
      if (!config.autoRemove) throw error;
      // The supervisor has done so, unless it was killed.
      await this.#discardAfter(error, id);
    }
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
    const { config } = await this.#store.resolve(nameOrId);
    await this.#whileActive(config, (client) => client.stop(graceMs));
    await this.#untilOver(config.id);
  }

  /** Sends a signal to a container's init. @throws LcowError CONTAINER_NOT_RUNNING. */
  async kill(nameOrId: string, signal: number): Promise<void> {
    await using client = await this.connect(nameOrId);
    await client.signal(signal);
  }

  /**
   * Waits for a container to exit.
   * @returns its exit code; of one that was never started 0, as docker has it.
   * @throws LcowError CONTAINER_NOT_FOUND.
   */
  async wait(nameOrId: string): Promise<number> {
    const { config } = await this.#store.resolve(nameOrId);
    // Asked of its owner: with --rm there is nothing left to read the code from afterwards.
    const exitCode = await this.#whileActive(config, (client) => client.wait());
    if (exitCode === undefined) return (await this.#store.get(config.id)).state.exitCode ?? 0;
    await this.#untilOver(config.id);
    return exitCode;
  }

  /**
   * Removes a container and its writable layer.
   * @throws LcowError IN_USE when it runs and `force` is not given.
   */
  async remove(nameOrId: string, force = false): Promise<void> {
    const { config } = await this.#store.resolve(nameOrId);
    if (force) await this.stop(config.id, 0);
    await this.#discard(config.id);
  }

  /** Yields the container's output. */
  async *logs(nameOrId: string, options: LogOptions = {}): AsyncGenerator<LogEntry> {
    const { config } = await this.#store.resolve(nameOrId);
    const over = async (): Promise<boolean> => {
      // The state is read before the file, so that what was written before the end is seen.
      const state = await this.#state(config.id);
      if (state && isActive(state)) {
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
        const users = (await this.#store.list()).filter(({ config }) => config.imageId === image.id);
        return users.map(({ config }) => config.id.slice(0, 12));
      },
    });
  }

  /** Asks the owner of a container that runs or is starting; undefined when it does neither. */
  async #whileActive<T>(config: ContainerConfig, ask: (client: ControlClient) => Promise<T>): Promise<T | undefined> {
    for (;;) {
      const state = await this.#state(config.id);
      if (!state || !isActive(state)) return undefined;
      try {
        await using client = await ControlClient.connect(this.#store.controlSocket(config.id), config.name);
        return await ask(client);
      } catch (error) {
        if (!isLcowError(error, 'CONTAINER_NOT_RUNNING')) throw error;
        // Its owner does not listen yet, or no longer; the state will tell.
        await delay(STATE_INTERVAL_MS);
      }
    }
  }

  async #state(id: string): Promise<ContainerState | undefined> {
    try {
      return (await this.#store.get(id)).state;
    } catch (error) {
      if (isLcowError(error, 'CONTAINER_NOT_FOUND')) return undefined;
      throw error;
    }
  }

  /** Waits until the supervisor has released everything, and with --rm until the container is gone. */
  async #untilOver(id: string): Promise<void> {
    for (;;) {
      const record = await this.#store.get(id).catch((error: unknown) => {
        if (isLcowError(error, 'CONTAINER_NOT_FOUND')) return undefined;
        throw error;
      });
      if (!record) return;
      const { config, state } = record;
      const goes = config.autoRemove || state.status === 'removing';
      const removing = goes && state.supervisor !== undefined && isAlive(state.supervisor);
      if (!isActive(state) && !removing) return;
      await delay(STATE_INTERVAL_MS);
    }
  }

  /**
   * Removes everything of a container that does not run; one that is gone is fine. What a killed remover leaves is
   * "removing" and is finished by the next sweep.
   * @throws LcowError IN_USE when it runs.
   */
  async #discard(id: string): Promise<void> {
    try {
      await this.#store.update(id, (state) => {
        if (isActive(state))
          throw new LcowError('IN_USE', `You cannot remove a running container ${id}.`, {
            hint: 'Stop the container before attempting removal or force remove.',
          });
        return { ...state, status: 'removing', supervisor: ownIdentity() };
      });
    } catch (error) {
      if (isLcowError(error, 'CONTAINER_NOT_FOUND')) return;
      // Of a damaged record nothing is kept, but the way to be rid of it.
      if (!isLcowError(error, 'BAD_RECORD')) throw error;
    }
    await this.driver.remove(id);
    await rm(this.#store.controlSocket(id), { force: true });
    await this.#store.remove(id);
  }

  /** Removes a container whose creation or start failed, and throws that failure. */
  async #discardAfter(failure: unknown, id: string): Promise<never> {
    const scope = new Scope();
    scope.defer(() => this.#discard(id));
    return scope.undo(failure);
  }
}
