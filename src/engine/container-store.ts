import { randomBytes } from 'node:crypto';
import { mkdir, readFile, readdir, rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import type { z } from 'zod';
import { isLcowError, LcowError } from '../errors/index.js';
import { asIoError, isAlive, withLock, writeFileAtomic, type StateFolders } from '../state/index.js';
import {
  containerConfigSchema,
  containerStateSchema,
  isActive,
  type ContainerConfig,
  type ContainerRecord,
  type ContainerState,
} from './container-record.js';

const ID = /^[0-9a-f]{64}$/;
const NAME = /^[a-zA-Z0-9][a-zA-Z0-9_.-]+$/;

/** A new container id: 64 hexadecimal digits, the first twelve of them not all decimal, so that it is no number. */
export function newContainerId(): string {
  for (;;) {
    const id = randomBytes(32).toString('hex');
    if (/[a-f]/.test(id.slice(0, 12))) return id;
  }
}

/**
 * Containers on disk: `<root>/containers/<id>/{config.json,state.json,<id>-json.log}`. Every file is written atomically,
 * a folder appears whole by rename, and changes of one container are made under its lock.
 */
export class ContainerStore {
  readonly #folders: StateFolders;

  constructor(folders: StateFolders) {
    this.#folders = folders;
  }

  folder(id: string): string {
    return join(this.#folders.containers, id);
  }

  logFile(id: string): string {
    return join(this.folder(id), `${id}-json.log`);
  }

  /** The log of the supervisor process itself. */
  supervisorLogFile(id: string): string {
    return join(this.folder(id), 'supervisor.log');
  }

  /** The unix socket on which the supervisor answers. */
  controlSocket(id: string): string {
    return join(this.#folders.runtime, 'c', `${id.slice(0, 24)}.sock`);
  }

  /**
   * Adds a container in state "created".
   * @throws LcowError ALREADY_EXISTS when the name is taken, INVALID_ARGUMENT when it is not a name.
   */
  async create(config: ContainerConfig): Promise<void> {
    if (!NAME.test(config.name))
      throw new LcowError(
        'INVALID_ARGUMENT',
        `Invalid container name (${config.name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed.`,
      );
    await withLock(this.#folders.locks, 'container-names', async () => {
      const holder = (await this.list()).find((other) => other.config.name === config.name);
      if (holder)
        throw new LcowError(
          'ALREADY_EXISTS',
          `Conflict. The container name "/${config.name}" is already in use by container "${holder.config.id}".`,
          { hint: 'Remove or rename that container to be able to reuse the name.' },
        );
      const staging = join(this.#folders.containers, `.new-${config.id}`);
      try {
        await mkdir(staging, { mode: 0o700 });
        await writeFileAtomic(join(staging, 'config.json'), JSON.stringify(config, null, 1));
        await writeFileAtomic(join(staging, 'state.json'), JSON.stringify({ status: 'created' }));
        await rename(staging, this.folder(config.id));
      } catch (error) {
        await rm(staging, { recursive: true, force: true });
        throw asIoError(error, `The container ${config.id} cannot be stored`);
      }
    });
  }

  /** Replaces the state of a container, as {@link get} gives it, by what `change` makes of it. */
  async update(id: string, change: (state: ContainerState) => ContainerState): Promise<ContainerState> {
    return withLock(this.#folders.locks, `container ${id}`, async () => {
      const state = change((await this.get(id)).state);
      await writeFileAtomic(join(this.folder(id), 'state.json'), JSON.stringify(state));
      return state;
    });
  }

  /**
   * One container. A "running" one whose supervisor is dead has exited: its VM died with it.
   * @throws LcowError CONTAINER_NOT_FOUND, BAD_RECORD.
   */
  async get(id: string): Promise<ContainerRecord> {
    const config = await this.#read(id, 'config.json', containerConfigSchema);
    const state = await this.#read(id, 'state.json', containerStateSchema);
    if (!isActive(state) || (state.supervisor && isAlive(state.supervisor))) return { config, state };
    const error = 'The process that owned the utility VM was killed.';
    return { config, state: { ...state, status: 'exited', exitCode: 137, error } };
  }

  /**
   * All containers, the newest first. One whose folder is going away is left out, and so is a damaged one, which must not
   * stand in the way of all others: {@link resolve} tells of it when it is asked for by its id.
   */
  async list(): Promise<ContainerRecord[]> {
    const records: ContainerRecord[] = [];
    for (const name of await readdir(this.#folders.containers)) {
      if (!ID.test(name)) continue;
      try {
        records.push(await this.get(name));
      } catch (error) {
        if (!isLcowError(error, 'CONTAINER_NOT_FOUND', 'BAD_RECORD')) throw error;
      }
    }
    return records.sort((a, b) => b.config.createdAt.localeCompare(a.config.createdAt));
  }

  /**
   * Finds a container by name, id, or unambiguous beginning of an id, in this order, as docker does.
   * @throws LcowError CONTAINER_NOT_FOUND, INVALID_ARGUMENT when the beginning fits several.
   */
  async resolve(nameOrId: string): Promise<ContainerRecord> {
    const all = await this.list();
    const exact = all.find(({ config }) => config.name === nameOrId.replace(/^\//, '') || config.id === nameOrId);
    if (exact) return exact;
    const matches = nameOrId === '' ? [] : all.filter(({ config }) => config.id.startsWith(nameOrId));
    if (matches.length > 1)
      throw new LcowError('INVALID_ARGUMENT', `Multiple IDs found with provided prefix: ${nameOrId}.`);
    const [only] = matches;
    if (only) return only;
    if (ID.test(nameOrId)) return this.get(nameOrId);
    throw new LcowError('CONTAINER_NOT_FOUND', `No such container: ${nameOrId}`);
  }

  /** Removes a container's folder: by rename first, so that it vanishes at once. */
  async remove(id: string): Promise<void> {
    const tombstone = join(this.#folders.containers, `.removing-${id}`);
    try {
      await rename(this.folder(id), tombstone);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT')
        throw asIoError(error, `The container ${id} cannot be removed`);
    }
    await rm(tombstone, { recursive: true, force: true });
  }

  /** Finishes removals that a crash cut short. Half-made containers (`.new-`) belong to dead creators when the name lock is free. */
  async sweep(): Promise<void> {
    const leftovers = (await readdir(this.#folders.containers)).filter((name) => /^\.(removing|new)-/.test(name));
    if (leftovers.length === 0) return;
    await withLock(this.#folders.locks, 'container-names', async () => {
      for (const name of leftovers) await rm(join(this.#folders.containers, name), { recursive: true, force: true });
    });
  }

  async #read<T>(id: string, file: string, schema: z.ZodType<T>): Promise<T> {
    const path = join(this.folder(id), file);
    let text: string;
    try {
      text = await readFile(path, 'utf8');
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT')
        throw new LcowError('CONTAINER_NOT_FOUND', `No such container: ${id}`, { cause: error });
      throw asIoError(error, `${path} cannot be read`);
    }
    const parsed = schema.safeParse(parseJson(text));
    if (!parsed.success)
      throw new LcowError('BAD_RECORD', `${path} is damaged: ${parsed.error.issues[0]?.message ?? 'not JSON'}.`, {
        hint: `Remove the folder ${this.folder(id)} to forget this container.`,
        cause: parsed.error,
      });
    return parsed.data;
  }
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
