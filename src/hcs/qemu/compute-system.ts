import { EventEmitter } from 'node:events';
import { access, constants, rm } from 'node:fs/promises';
import { createConnection, type Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import { LcowError, errorMessage, isLcowError } from '../../errors/index.js';
import { Scope, abortable, throwIfAborted, timeoutMs, withDeadline } from '../../lifetime/index.js';
import { asIoError, checkSocketPath, ownIdentity, stateFolders } from '../../state/index.js';
import type {
  ComputeSystem,
  ComputeSystemProperties,
  NotificationName,
  SystemExit,
  SystemState,
} from '../compute-system.js';
import { NO_LOG, type Logger } from '../logger.js';
import {
  parseModification,
  validateDocument,
  type ComputeSystemDocument,
  type ModifySettingRequest,
} from '../schema/index.js';
import { chooseAccelerator } from './accelerator.js';
import { buildArguments } from './arguments.js';
import { findQemu, type QemuBinary } from './binary.js';
import { GuestConsole, lastLine, showsPanic } from './console.js';
import { blockNode, diskDeviceId, inspectDisk, type BlockNode } from './disk-image.js';
import { claimFolder, recordOwner, type OwnerRecord } from './owner.js';
import { startQemu, type QemuExit, type QemuProcess } from './process.js';
import { QmpClient, QmpError, type QmpEvent } from './qmp-client.js';
import { ScsiDisks, type DiskToAdd } from './scsi-disks.js';
import { readStatistics } from './statistics.js';
import type { Accelerator } from './verdict-cache.js';
import { vmFolder, type VmFolder } from './vm-folder.js';

/** Options of {@link createComputeSystem}. */
export interface CreateOptions {
  /** Folder for sockets; the system gets a private folder below its `vm`. */
  runtimeFolder: string;
  /** Where accelerator verdicts are kept; the cache of the state folders when not given. */
  cacheFolder?: string;
  log?: Logger;
  /** Whether QEMU lives on when its owner dies. Not together with ShouldTerminateOnLastHandleClosed. */
  detached?: boolean;
  /** Forces an accelerator, untried. */
  accelerator?: Accelerator;
  signal?: AbortSignal;
}

/**
 * Makes a compute system from a document; nothing runs yet (HcsCreateComputeSystem).
 * @param id 1 to 128 characters; one live system per id and runtime folder.
 * @throws LcowError INVALID_ARGUMENT, NOT_SUPPORTED (the document), ALREADY_EXISTS, GUEST_IMAGE_MISSING, QEMU_MISSING,
 * NO_ACCELERATOR, IO_FAILED, TIMED_OUT (limit `systemCreate`), CANCELLED.
 */
export async function createComputeSystem(
  id: string,
  document: unknown,
  options: CreateOptions,
): Promise<ComputeSystem> {
  if (!/^[\w.-]{1,128}$/.test(id))
    throw new LcowError(
      'INVALID_ARGUMENT',
      `The compute system id ${JSON.stringify(id)} is not 1 to 128 of A-Z, a-z, 0-9, "_", "." and "-".`,
    );
  const checked = validateDocument(document);
  const detached = options.detached ?? false;
  if (detached && checked.ShouldTerminateOnLastHandleClosed === true)
    throw new LcowError('INVALID_ARGUMENT', 'A detached compute system cannot have ShouldTerminateOnLastHandleClosed.');
  const { Devices = {}, Chipset } = checked.VirtualMachine;
  const folder = vmFolder(options.runtimeFolder, id, Object.keys(Devices.VirtioSerial?.Ports ?? {}));
  for (const port of Object.values(Devices.ComPorts ?? {})) checkSocketPath(port.NamedPipe);
  const { qemu, accelerator } = await withDeadline(
    'systemCreate',
    `The creation of compute system ${id}`,
    options.signal,
    (signal) => chooseEngine(Chipset.LinuxKernelDirect, options, signal),
  );
  const record: OwnerRecord = { id, owner: ownIdentity(), detached };
  await claimFolder(options.runtimeFolder, folder, record);
  return new QemuComputeSystem({ document: checked, folder, record, qemu, accelerator, log: options.log ?? NO_LOG });
}

async function chooseEngine(
  boot: ComputeSystemDocument['VirtualMachine']['Chipset']['LinuxKernelDirect'],
  options: CreateOptions,
  signal: AbortSignal,
): Promise<{ qemu: QemuBinary; accelerator: Accelerator }> {
  await checkBootFiles([boot.KernelFilePath, boot.InitRdPath]);
  const qemu = await findQemu();
  if (options.accelerator) return { qemu, accelerator: options.accelerator };
  const accelerator = await chooseAccelerator({
    qemu,
    kernelFilePath: boot.KernelFilePath,
    cacheFolder: options.cacheFolder ?? stateFolders().cache,
    signal,
    log: options.log,
  });
  return { qemu, accelerator };
}

async function checkBootFiles(paths: readonly string[]): Promise<void> {
  for (const path of paths) {
    try {
      await access(path, constants.R_OK);
    } catch (cause) {
      if ((cause as NodeJS.ErrnoException).code === 'ENOENT')
        throw new LcowError('GUEST_IMAGE_MISSING', `The boot file ${path} does not exist.`, { cause });
      throw asIoError(cause, `The boot file ${path} cannot be read`);
    }
  }
}

interface Parts {
  readonly document: ComputeSystemDocument;
  readonly folder: VmFolder;
  readonly record: OwnerRecord;
  readonly qemu: QemuBinary;
  readonly accelerator: Accelerator;
  readonly log: Logger;
}

/** What exists while QEMU runs. */
interface Running {
  readonly process: QemuProcess;
  readonly qmp: QmpClient;
  readonly disks: ScsiDisks;
  readonly startedAt: number;
}

type State = SystemState | 'Starting';

class QemuComputeSystem extends EventEmitter<{ notification: [NotificationName] }> implements ComputeSystem {
  readonly #parts: Parts;
  /** Everything acquired so far, the folder first. */
  readonly #scope = new Scope();
  readonly #console = new GuestConsole();
  readonly #exit: Promise<SystemExit>;
  #resolveExit!: (exit: SystemExit) => void;
  #state: State = 'Created';
  #running: Running | undefined;
  #process: QemuProcess | undefined;
  /** terminate has been called. */
  #termination: Promise<void> | undefined;
  /** We sent SIGKILL. */
  #killed = false;
  #shutdownReason: string | undefined;
  #panicked = false;
  readonly #startAbort = new AbortController();

  constructor(parts: Parts) {
    super();
    this.#parts = parts;
    this.#exit = new Promise((resolve) => (this.#resolveExit = resolve));
    this.#scope.defer(() => rm(parts.folder.path, { recursive: true, force: true }));
    this.#scope.use(this.#console);
  }

  get id(): string {
    return this.#parts.record.id;
  }

  get state(): SystemState {
    return this.#state === 'Starting' ? 'Created' : this.#state;
  }

  get accelerator(): string {
    return this.#parts.accelerator;
  }

  async start({ signal }: { signal?: AbortSignal } = {}): Promise<void> {
    this.#expect('start', 'Created');
    throwIfAborted(signal);
    this.#state = 'Starting';
    const either = signal ? AbortSignal.any([signal, this.#startAbort.signal]) : this.#startAbort.signal;
    const begin = performance.now();
    // Kept, because a deadline ends the waiting and not the work: nothing may be made after the undoing.
    let work: Promise<void> | undefined;
    try {
      await withDeadline('systemStart', `The start of compute system ${this.id}`, either, (limit) => {
        work = this.#boot(limit);
        return work;
      });
    } catch (error) {
      await work?.catch(() => {});
      throw await this.#failedStart(error);
    }
    this.#parts.log.debug(
      { id: this.id, accelerator: this.accelerator, ms: Math.round(performance.now() - begin) },
      'compute system started',
    );
    this.emit('notification', 'SystemStartCompleted');
  }

  async #boot(limit: AbortSignal): Promise<void> {
    const { args, disks } = await this.#prepare();
    throwIfAborted(limit);
    const { document, folder, record, qemu } = this.#parts;
    const process = await startQemu(qemu, args, record.detached ? folder.logFile : undefined);
    this.#process = process;
    this.#scope.defer(async () => {
      process.kill();
      await process.exited;
    });
    const controllers = Object.keys(document.VirtualMachine.Devices?.Scsi ?? {}).map(Number);
    const qmp = await this.#firstContact(process, limit);
    await qmp.execute('cont', {}, limit);
    this.#running = { process, qmp, disks: new ScsiDisks(qmp, controllers, disks), startedAt: performance.now() };
    this.#state = 'Running';
    void process.exited.then((exit) => this.#ended(exit));
  }

  /** Looks at the document's own disks and makes the command line. */
  async #prepare(): Promise<{ args: string[]; disks: DiskToAdd[] }> {
    const { document, accelerator, folder } = this.#parts;
    const disks: DiskToAdd[] = [];
    const nodes = new Map<string, BlockNode>();
    for (const [controllerKey, controller] of Object.entries(document.VirtualMachine.Devices?.Scsi ?? {})) {
      for (const [lunKey, attachment] of Object.entries(controller.Attachments ?? {})) {
        const disk = { controller: Number(controllerKey), lun: Number(lunKey), attachment };
        const image = await inspectDisk(attachment.Path);
        nodes.set(diskDeviceId(disk.controller, disk.lun), blockNode(disk.controller, disk.lun, attachment, image));
        disks.push(disk);
      }
    }
    return { args: buildArguments(document, { id: this.id, accelerator, folder, nodes }), disks };
  }

  /** From a fresh QEMU to one whose monitor answers and whose console is read; the guest has not run yet. */
  async #firstContact(process: QemuProcess, limit: AbortSignal): Promise<QmpClient> {
    const { document, folder, record } = this.#parts;
    const qmp = await QmpClient.connect(process.monitor, limit);
    qmp.on('event', (event) => this.#onEvent(event));
    // QEMU made its sockets before it greeted.
    this.#console.attach(await connectSocket(folder.consoleSocket, limit));
    for (const port of Object.values(document.VirtualMachine.Devices?.ComPorts ?? {}))
      await this.#console.serve(port.NamedPipe);
    await recordOwner(folder, { ...record, qemu: process.identity });
    return qmp;
  }

  #onEvent({ event, data }: QmpEvent): void {
    if (event === 'SHUTDOWN') this.#shutdownReason = typeof data['reason'] === 'string' ? data['reason'] : undefined;
    if (event === 'GUEST_PANICKED' || event === 'GUEST_CRASHLOADED') {
      this.#panicked = true;
      this.emit('notification', 'SystemCrashInitiated');
    }
  }

  /** Undoes a start that failed. @returns What to throw. */
  async #failedStart(error: unknown): Promise<unknown> {
    const lost = isLcowError(error, 'VM_EXITED');
    // QEMU closes its monitor when it ends: its own exit then says why. In every other case it still runs.
    const exit = lost ? await this.#process?.exited : undefined;
    await this.#stopped({
      kind: this.#termination !== undefined || isLcowError(error, 'CANCELLED') ? 'forced' : 'unexpected',
      reason: this.#shutdownReason,
      exitCode: exit?.exitCode ?? null,
      signal: exit?.signal ?? null,
      stderr: exit?.stderr ?? '',
      consoleTail: this.consoleTail(),
    });
    if (this.#termination)
      return new LcowError('VM_EXITED', `Compute system ${this.id} was terminated during its start.`, { cause: error });
    if (exit) return this.#endedAtStart(exit, error);
    if (error instanceof QmpError)
      return new LcowError('QEMU_FAILED', `Compute system ${this.id} cannot be started: ${error.message}.`, {
        cause: error,
      });
    return asIoError(error, `Compute system ${this.id} cannot be started`);
  }

  #endedAtStart(exit: QemuExit, cause: unknown): LcowError {
    const words = lastLine(exit.stderr) || 'it said nothing';
    const how = exit.signal ? `signal ${exit.signal}` : `exit code ${exit.exitCode ?? '?'}`;
    return new LcowError('QEMU_FAILED', `QEMU ended at the start of compute system ${this.id} (${how}): ${words}.`, {
      cause,
      details: { stderr: exit.stderr, exitCode: exit.exitCode, signal: exit.signal },
    });
  }

  /** The last step of every life: what was acquired is released, then waiters are told. */
  async #stopped(exit: SystemExit): Promise<void> {
    this.#state = 'Stopped';
    this.#running = undefined;
    try {
      await this.#scope.release();
    } catch (error) {
      // The exit itself must be told; what is left is swept at the next start.
      this.#parts.log.warn({ id: this.id, error: errorMessage(error) }, 'an ended compute system could not be removed');
    }
    this.#resolveExit(exit);
    this.emit('notification', 'SystemExited');
  }

  async #ended(exit: QemuExit): Promise<void> {
    if (this.#state === 'Stopped') return;
    const consoleTail = this.consoleTail();
    const { exitCode, signal, stderr } = exit;
    const kind = this.#kindOf(exit, consoleTail);
    const reason = this.#shutdownReason;
    this.#parts.log.debug({ id: this.id, kind, reason, exitCode, signal }, 'compute system ended');
    if (kind === 'panic') this.emit('notification', 'SystemCrashReport');
    await this.#stopped({ kind, reason, exitCode, signal, stderr, consoleTail });
  }

  #kindOf(exit: QemuExit, consoleTail: string): SystemExit['kind'] {
    // A panic is the guest's own doing, even when we were about to end it.
    if (this.#panicked || this.#shutdownReason === 'guest-panic') return 'panic';
    if (this.#shutdownReason === 'guest-reset' && showsPanic(consoleTail)) return 'panic';
    if (this.#killed || this.#shutdownReason === 'host-qmp-quit') return 'forced';
    const byGuest = this.#shutdownReason === 'guest-shutdown' || this.#shutdownReason === 'guest-reset';
    if (exit.exitCode !== 0) return 'unexpected';
    if (byGuest) return 'graceful';
    // QEMU may end before its last event is out.
    return this.#termination ? 'forced' : 'unexpected';
  }

  async pause({ signal }: { signal?: AbortSignal } = {}): Promise<void> {
    const { qmp } = this.#expectRunning('pause', 'Running');
    await this.#command('pause', () =>
      withDeadline('systemPause', `The pause of compute system ${this.id}`, signal, (limit) =>
        qmp.execute('stop', {}, limit),
      ),
    );
    this.#state = 'Paused';
    this.emit('notification', 'SystemPauseCompleted');
  }

  async resume({ signal }: { signal?: AbortSignal } = {}): Promise<void> {
    const { qmp } = this.#expectRunning('resume', 'Paused');
    await this.#command('resume', () =>
      withDeadline('systemResume', `The resumption of compute system ${this.id}`, signal, (limit) =>
        qmp.execute('cont', {}, limit),
      ),
    );
    this.#state = 'Running';
    this.emit('notification', 'SystemResumeCompleted');
  }

  async #command<T>(operation: string, run: () => Promise<T>): Promise<T> {
    try {
      return await run();
    } catch (cause) {
      if (!(cause instanceof QmpError)) throw cause;
      throw new LcowError('QEMU_FAILED', `QEMU refused to ${operation} compute system ${this.id}: ${cause.message}.`, {
        cause,
      });
    }
  }

  terminate(): Promise<void> {
    this.#termination ??= this.#terminate();
    return this.#termination;
  }

  async #terminate(): Promise<void> {
    if (this.#state === 'Stopped') {
      await this.#exit;
      return;
    }
    if (this.#state === 'Created') {
      const consoleTail = this.consoleTail();
      await this.#stopped({ kind: 'forced', reason: undefined, exitCode: null, signal: null, stderr: '', consoleTail });
      return;
    }
    if (this.#state === 'Starting') {
      this.#startAbort.abort();
      await this.#exit;
      return;
    }
    const { qmp, process } = this.#expectRunning('terminate', 'Running', 'Paused');
    // quit lets QEMU write back what it holds of its disks; one that does not react is killed.
    qmp.execute('quit').catch(() => {});
    const timer = setTimeout(() => {
      this.#killed = true;
      process.kill();
    }, timeoutMs('systemTerminate'));
    try {
      await this.#exit;
    } finally {
      clearTimeout(timer);
    }
  }

  async properties(): Promise<ComputeSystemProperties> {
    const { document, qemu, accelerator } = this.#parts;
    const running = this.#running;
    const result: ComputeSystemProperties = {
      Id: this.id,
      Owner: document.Owner,
      SystemType: 'VirtualMachine',
      RuntimeOsType: 'Linux',
      State: this.state,
      Statistics:
        running &&
        (await this.#command('query', () =>
          readStatistics(running.qmp, running.process.identity.pid, running.startedAt),
        )),
      Engine: {
        Name: 'qemu',
        Version: qemu.version,
        Accelerator: accelerator,
        ProcessId: running?.process.identity.pid,
        Attachments: running?.disks.list() ?? [],
      },
    };
    this.emit('notification', 'SystemGetPropertiesCompleted');
    return result;
  }

  async modify(request: ModifySettingRequest, options: { signal?: AbortSignal } = {}): Promise<void> {
    await this.modifyMany([request], options);
  }

  async modifyMany(
    requests: readonly ModifySettingRequest[],
    { signal }: { signal?: AbortSignal } = {},
  ): Promise<void> {
    const changes = requests.map(parseModification);
    const additions = changes.filter((change) => change.kind === 'addDisk');
    const removals = changes.filter((change) => change.kind === 'removeDisk');
    if (additions.length > 0 && removals.length > 0)
      throw new LcowError('INVALID_ARGUMENT', 'Modify requests sent together must be of one type.');
    const { disks } = this.#expectRunning('modify', 'Running', 'Paused');
    throwIfAborted(signal);
    if (additions.length > 0) await disks.add(additions, signal);
    if (removals.length > 0) await disks.remove(removals);
    this.emit('notification', 'SystemModifyCompleted');
  }

  wait(): Promise<SystemExit> {
    return this.#exit;
  }

  async connect(port: string, { signal }: { signal?: AbortSignal } = {}): Promise<Duplex> {
    const { document, folder } = this.#parts;
    if (!Object.hasOwn(document.VirtualMachine.Devices?.VirtioSerial?.Ports ?? {}, port))
      throw new LcowError('NOT_FOUND', `Compute system ${this.id} has no port ${port}.`);
    this.#expectRunning('connect to', 'Running', 'Paused');
    return connectSocket(folder.portSocket(port), signal);
  }

  consoleTail(): string {
    return this.#console.text();
  }

  /**
   * Closes this handle. Ends the system when ShouldTerminateOnLastHandleClosed says so or it has not been started; else
   * it runs on, until its owner process ends or, when detached, for ever.
   */
  async [Symbol.asyncDispose](): Promise<void> {
    const ends = this.#parts.document.ShouldTerminateOnLastHandleClosed ?? false;
    if (!ends && (this.#state === 'Running' || this.#state === 'Paused')) this.#letGo();
    else await this.terminate();
  }

  /** Drops every connection, so that this process can end and QEMU goes on. */
  #letGo(): void {
    const running = this.#running;
    if (!running) return;
    this.#running = undefined;
    running.qmp.close();
    void this.#console[Symbol.asyncDispose]();
    running.process.release();
  }

  #expect(operation: string, ...states: State[]): void {
    if (states.includes(this.#state)) return;
    if (this.#state === 'Stopped')
      throw new LcowError('VM_EXITED', `Cannot ${operation} compute system ${this.id}: it has ended.`);
    throw new LcowError('INVALID_STATE', `Cannot ${operation} compute system ${this.id}: it is ${this.#state}.`);
  }

  #expectRunning(operation: string, ...states: State[]): Running {
    this.#expect(operation, ...states);
    if (!this.#running)
      throw new LcowError('CLOSED', `Cannot ${operation} compute system ${this.id}: its handle is closed.`);
    return this.#running;
  }
}

/** @throws LcowError VM_EXITED when nobody listens, CANCELLED. */
async function connectSocket(path: string, signal: AbortSignal | undefined): Promise<Socket> {
  const socket = createConnection({ path });
  try {
    await abortable(
      new Promise<void>((resolve, reject) => {
        socket.once('connect', resolve);
        socket.once('error', (cause) =>
          reject(new LcowError('VM_EXITED', `QEMU does not answer at ${path}.`, { cause })),
        );
      }),
      signal,
    );
    return socket;
  } catch (error) {
    socket.destroy();
    throw error;
  }
}
