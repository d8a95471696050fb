import { realpath } from 'node:fs/promises';
import { join } from 'node:path';
import { LcowError, isLcowError } from '../errors/index.js';
import {
  connectGuest,
  type Container,
  type CreateContainerOptions,
  type GuestConnection,
  type GuestStats,
  type Process,
  type ProcessConfig,
  type ProcessHost,
} from '../gcs/index.js';
import {
  NO_LOG,
  chooseAccelerator,
  createComputeSystem,
  findQemu,
  type ComputeSystem,
  type ComputeSystemProperties,
  type Logger,
  type SystemExit,
  type SystemState,
} from '../hcs/index.js';
import { releaseAll, timeoutFactor, timeoutMs, withDeadline } from '../lifetime/index.js';
import { asIoError, stateFolders } from '../state/index.js';
import { MUX_PORT, RPC_PORT, buildDocument } from './document.js';
import { diskGuest, diskHost, networkGuest } from './guest-backends.js';
import { KERNEL_FILE } from './guest-image.js';
import { NetworkManager, type NetworkEndpoint } from './network.js';
import { bootFilesOf, resolveOptions, type ResolvedOptions, type UtilityVMOptions } from './options.js';
import { ScsiManager, type ScsiAttachment } from './scsi-manager.js';

/** The guest powers off when no host has been connected for this long, unless it is detached. Longer under emulation. */
const OWNER_LEASE_MS = 30_000;

/** Options of a SCSI disk. */
export interface AddScsiOptions {
  /** Where to mount it in the utility VM; below /run/mounts/scsi when not given. */
  uvmPath?: string | undefined;
  readOnly: boolean;
  /** An image layer, which is always read-only. */
  isLayer?: boolean;
}

/** State and figures of a utility VM. */
export interface UtilityVMProperties {
  readonly id: string;
  readonly owner: string;
  readonly state: SystemState;
  readonly accelerator: string;
  /** Of QEMU. */
  readonly processId: number | undefined;
  readonly qemuVersion: string;
  readonly memorySizeInMB: number;
  readonly processorCount: number;
  /** Of the host's side: schema2.Statistics. */
  readonly statistics: ComputeSystemProperties['Statistics'];
}

/**
 * Makes a utility VM; it does not run yet (hcsshim uvm.CreateLCOW).
 * @throws LcowError INVALID_ARGUMENT, NOT_SUPPORTED, ALREADY_EXISTS, GUEST_IMAGE_MISSING, QEMU_MISSING, NO_ACCELERATOR,
 * IO_FAILED, TIMED_OUT, CANCELLED. Nothing is left behind then.
 */
export async function createUtilityVM(options: UtilityVMOptions = {}): Promise<UtilityVM> {
  const bootFiles = bootFilesOf(options);
  const log = options.log ?? NO_LOG;
  const cacheFolder = options.cacheFolder ?? stateFolders().cache;
  const accelerator =
    options.accelerator ??
    (await chooseAccelerator({
      qemu: await findQemu(),
      kernelFilePath: join(bootFiles, KERNEL_FILE),
      cacheFolder,
      signal: options.signal,
      log,
    }));
  const resolved = resolveOptions(options, accelerator);
  const system = await createComputeSystem(resolved.id, buildDocument(resolved), {
    runtimeFolder: options.runtimeFolder ?? stateFolders().runtime,
    cacheFolder,
    detached: resolved.detached,
    accelerator,
    log,
    ...(options.signal ? { signal: options.signal } : {}),
  });
  return new UtilityVM(system, resolved, log);
}

/** A utility VM: a compute system with the guest agent in it, its disks, networks, containers and processes. */
export class UtilityVM implements ProcessHost, AsyncDisposable {
  readonly os = 'linux';
  readonly isOci = false;
  readonly #system: ComputeSystem;
  readonly #options: ResolvedOptions;
  readonly #log: Logger;
  readonly #disks: ScsiManager;
  readonly #networks: NetworkManager;
  #guest: GuestConnection | undefined;
  #closing: Promise<void> | undefined;

  /** Made by {@link createUtilityVM}. */
  constructor(system: ComputeSystem, options: ResolvedOptions, log: Logger = NO_LOG) {
    this.#system = system;
    this.#options = options;
    this.#log = log;
    const guest = (): GuestConnection => this.guest;
    const isGone = (): boolean => this.#hasEnded();
    this.#disks = new ScsiManager(diskHost(system), diskGuest(guest), options.scsiControllerCount, isGone, log);
    this.#networks = new NetworkManager(networkGuest(guest), options.networkAdapters);
  }

  get id(): string {
    return this.#system.id;
  }

  /** What runs the guest: "kvm", "tcg", … */
  get accelerator(): string {
    return this.#system.accelerator;
  }

  /** The session with the guest agent. @throws LcowError INVALID_STATE before {@link start} has succeeded. */
  get guest(): GuestConnection {
    if (!this.#guest) throw new LcowError('INVALID_STATE', `The utility VM ${this.id} has not been started.`);
    return this.#guest;
  }

  /**
   * Starts the VM and waits until its agent is ready: clock set, random pool fed. On failure the VM is gone, and the error's
   * `details.consoleTail` holds the end of its console.
   * @throws LcowError GUEST_PANIC, GUEST_UNREACHABLE, VM_EXITED, GUEST_PROTOCOL, QEMU_FAILED, INVALID_STATE, TIMED_OUT
   * (limits `systemStart`, `guestConnection`), CANCELLED.
   */
  async start({ signal }: { signal?: AbortSignal } = {}): Promise<void> {
    const begin = performance.now();
    await this.#system.start(signal ? { signal } : {});
    const exited = new AbortController();
    void this.#system.wait().then(() => exited.abort(new LcowError('VM_EXITED', `The utility VM ${this.id} ended.`)));
    const either = signal ? AbortSignal.any([signal, exited.signal]) : exited.signal;
    try {
      const guest = await connectGuest(
        {
          connectRpc: (limit) => this.#system.connect(RPC_PORT, { signal: limit }),
          connectMux: (limit) => this.#system.connect(MUX_PORT, { signal: limit }),
        },
        { signal: either },
      );
      this.#guest = guest;
      await guest.renew({ signal: either });
      const leaseMs = this.#options.detached ? 0 : OWNER_LEASE_MS * timeoutFactor();
      await guest.client.setOwner({ leaseMs }, { signal: either });
    } catch (error) {
      throw await this.#failedStart(error, signal);
    }
    this.#log.debug({ id: this.id, ms: Math.round(performance.now() - begin) }, 'utility VM ready');
  }

  /** Ends a VM that did not become ready. @returns What to throw. */
  async #failedStart(error: unknown, signal: AbortSignal | undefined): Promise<unknown> {
    await this.#guest?.close();
    await this.#system.terminate();
    const exit = await this.#system.wait();
    if (signal?.aborted) return error;
    const details = { consoleTail: exit.consoleTail, reason: exit.reason, stderr: exit.stderr };
    switch (exit.kind) {
      case 'panic':
        return new LcowError('GUEST_PANIC', `The kernel of the utility VM ${this.id} panicked at its start.`, {
          cause: error,
          details,
        });
      case 'graceful':
      case 'unexpected':
        return new LcowError(
          'VM_EXITED',
          `The utility VM ${this.id} ended before its agent was ready: ${exitReason(exit)}.`,
          { cause: error, details },
        );
      case 'forced':
        return new LcowError(
          isLcowError(error, 'GUEST_PROTOCOL') ? 'GUEST_PROTOCOL' : 'GUEST_UNREACHABLE',
          `The agent of the utility VM ${this.id} did not become ready: ${error instanceof Error ? error.message : String(error)}`,
          { cause: error, details, ...(isLcowError(error) && error.hint !== undefined ? { hint: error.hint } : {}) },
        );
    }
  }

  /** Stops the guest's processors. The guest's clock stands until {@link resume}. @throws as ComputeSystem.pause. */
  async pause(options: { signal?: AbortSignal } = {}): Promise<void> {
    await this.#system.pause(options);
  }

  /** Goes on, with the clock set right and fresh random bytes. @throws as ComputeSystem.resume, and what the guest says. */
  async resume(options: { signal?: AbortSignal } = {}): Promise<void> {
    await this.#system.resume(options);
    await this.guest.renew(options);
  }

  /** Ends the VM at once. One that has ended is a success. */
  async terminate(): Promise<void> {
    await this.#system.terminate();
  }

  /**
   * Ends the VM with everything in it: SIGTERM to containers, their disks unmounted, power off. Past the `guestShutdown`
   * time-out, or when the guest does not answer, it is terminated.
   * @param graceMs How long containers have between SIGTERM and SIGKILL; half the time-out when not given.
   */
  async shutdown({ graceMs = timeoutMs('guestShutdown') / 2 }: { graceMs?: number } = {}): Promise<SystemExit> {
    const guest = this.#guest;
    if (guest && this.#system.state === 'Running') {
      try {
        await withDeadline('guestShutdown', `The shutdown of the utility VM ${this.id}`, undefined, async (signal) => {
          await guest.client.shutdown({ graceMs: Math.round(graceMs) }, { signal });
          // The guest keeps the power on until its answer has been taken or its host has gone.
          await guest.close();
          await this.#system.wait();
        });
      } catch (error) {
        if (!this.#hasEnded())
          this.#log.warn(
            { id: this.id, error: error instanceof Error ? error.message : error },
            'the guest did not shut down; it is terminated',
          );
      }
    }
    await this.#system.terminate();
    return this.#system.wait();
  }

  /** Resolves when the VM has ended, for any number of callers. */
  async wait(): Promise<SystemExit> {
    return this.#system.wait();
  }

  /**
   * Closes the connection and ends the VM, unless it is detached: then it lives on. Idempotent.
   * @throws The single failure, or an AggregateError.
   */
  close(): Promise<void> {
    this.#closing ??= releaseAll([() => this.#guest?.close(), () => this.#system[Symbol.asyncDispose]()]);
    return this.#closing;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  /** @throws LcowError VM_EXITED when it ends meanwhile. */
  async properties(): Promise<UtilityVMProperties> {
    const { State, Statistics, Engine } = await this.#system.properties();
    return {
      id: this.id,
      owner: this.#options.owner,
      state: State,
      accelerator: Engine.Accelerator,
      processId: Engine.ProcessId,
      qemuVersion: Engine.Version,
      memorySizeInMB: this.#options.memorySizeInMB,
      processorCount: this.#options.processorCount,
      statistics: Statistics,
    };
  }

  /** Figures from inside the guest. */
  async stats(): Promise<GuestStats> {
    return this.guest.stats();
  }

  /** Last 64 KiB of the guest's console, without control characters. */
  consoleTail(): string {
    return this.#system.consoleTail();
  }

  /**
   * Attaches a disk and mounts it in the guest, or joins those who did. Release the result exactly once.
   * @param hostPath A fixed VHD, a VHDX, or a raw disk with the ending `.raw`; known by its real path.
   * @throws as {@link addSCSIBatch}.
   */
  async addSCSI(hostPath: string, options: AddScsiOptions & { signal?: AbortSignal }): Promise<ScsiAttachment> {
    const { signal, ...disk } = options;
    const [attachment] = await this.addSCSIBatch([{ hostPath, ...disk }], signal ? { signal } : {});
    return attachment!;
  }

  /**
   * Attaches and mounts disks, all or none, with one round trip to QEMU and one to the guest.
   * @returns One attachment per disk, in their order.
   * @throws LcowError NOT_FOUND, NO_AVAILABLE_LOCATION, IN_USE, ALREADY_EXISTS, INVALID_ARGUMENT, NOT_SUPPORTED, QEMU_FAILED,
   * GUEST_FAILED, VM_EXITED, CANCELLED.
   */
  async addSCSIBatch(
    disks: readonly ({ readonly hostPath: string } & Readonly<AddScsiOptions>)[],
    { signal }: { signal?: AbortSignal } = {},
  ): Promise<ScsiAttachment[]> {
    const requests = await Promise.all(
      disks.map(async ({ hostPath, uvmPath, readOnly, isLayer }) => {
        if (isLayer && !readOnly)
          throw new LcowError('INVALID_ARGUMENT', `The layer ${hostPath} must be attached read-only.`);
        return { hostPath: await realPathOf(hostPath), readOnly, uvmPath };
      }),
    );
    return this.#disks.add(requests, signal);
  }

  /**
   * Mounts an overlay (hcsshim uvm.CombineLayersLCOW).
   * @param layerPaths Mounted layers, top-most first, base last.
   * @param scratchPath Mounted scratch; without one the result is read-only.
   */
  async combineLayers(
    layerPaths: readonly string[],
    scratchPath: string | undefined,
    rootfsPath: string,
  ): Promise<void> {
    await this.guest.client.combineLayers({ layerPaths: [...layerPaths], scratchPath: scratchPath ?? '', rootfsPath });
  }

  /** Unmounts an overlay (hcsshim uvm.RemoveCombinedLayersLCOW). Success when the VM has ended. */
  async removeLayers(rootfsPath: string): Promise<void> {
    await this.#unlessGone(async () => {
      await this.guest.client.removeLayers({ rootfsPath });
    });
  }

  /** Makes a network namespace in the guest. @returns Its path. @throws as {@link NetworkManager.addNetNS}. */
  async addNetNS(id: string): Promise<string> {
    return this.#networks.addNetNS(id);
  }

  /** Moves adapters into a namespace. @throws as {@link NetworkManager.addEndpointsToNS}. */
  async addEndpointsToNS(id: string, endpoints: readonly NetworkEndpoint[]): Promise<void> {
    await this.#networks.addEndpointsToNS(id, endpoints);
  }

  /** Takes adapters out of a namespace. @throws as {@link NetworkManager.removeEndpointsFromNS}. */
  async removeEndpointsFromNS(id: string, endpoints: readonly Pick<NetworkEndpoint, 'id'>[]): Promise<void> {
    await this.#networks.removeEndpointsFromNS(id, endpoints);
  }

  /** Removes a namespace; success when there is none, or the VM has ended. @throws What the guest says. */
  async removeNetNS(id: string): Promise<void> {
    await this.#unlessGone(() => this.#networks.removeNetNS(id));
  }

  /** Creates a container whose init waits to be started. @throws as GuestConnection.createContainer. */
  async createContainer(options: CreateContainerOptions): Promise<Container> {
    return this.guest.createContainer(options);
  }

  /** Starts a process in the utility VM itself. @throws as GuestConnection.createProcess. */
  async createProcess(config: ProcessConfig, options: { signal?: AbortSignal } = {}): Promise<Process> {
    return this.guest.createProcess(config, options);
  }

  #hasEnded(): boolean {
    return this.#system.state === 'Stopped';
  }

  /** What was in a VM that has ended needs no taking away. */
  async #unlessGone(release: () => Promise<void>): Promise<void> {
    if (this.#hasEnded()) return;
    try {
      await release();
    } catch (error) {
      if (!this.#hasEnded()) throw error;
    }
  }
}

function exitReason({ kind, reason, signal, exitCode }: SystemExit): string {
  if (signal) return `QEMU was ended by ${signal}`;
  if (kind === 'graceful') return reason === 'guest-reset' ? 'the guest reset' : 'the guest powered off';
  return `QEMU ended with exit code ${exitCode ?? '?'}`;
}

async function realPathOf(path: string): Promise<string> {
  try {
    return await realpath(path);
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === 'ENOENT')
      throw new LcowError('NOT_FOUND', `The disk ${path} does not exist.`, { cause });
    throw asIoError(cause, `The disk ${path} cannot be looked at`);
  }
}
