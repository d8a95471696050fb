import { availableParallelism } from 'node:os';
import { randomUUID } from 'node:crypto';
import { basename } from 'node:path';
import { LcowError } from '../errors/index.js';
import { NO_LOG, SCSI_CONTROLLERS, type Accelerator, type Logger } from '../hcs/index.js';
import { checkBootFiles, guestImageFolder } from './guest-image.js';
import type { NetworkEndpoint } from './network.js';

/** Options of a utility VM (hcsshim uvm.OptionsLCOW). Unknown options are refused. */
export interface UtilityVMOptions {
  /** 1 to 128 of A-Z, a-z, 0-9, "_", "." and "-"; a GUID when not given. */
  id?: string;
  /** Who made it, for lists; the program's name when not given. */
  owner?: string;
  /** MiB, default 1024; rounded up to an even number. Found by the host only when the guest touches it. */
  memorySizeInMB?: number;
  /** Whether memory may be found late; default true. False: all of it before the guest starts. */
  allowOvercommit?: boolean;
  /** Whether memory is not accounted up front; default false. Needs allowOvercommit. */
  enableDeferredCommit?: boolean;
  /**
   * Virtual processors; at most those of the host. The default is 2 as in hcsshim, but 1 under emulation, where a second
   * one makes the guest slower (atomic operations and interrupts between processors), and on a host with one.
   */
  processorCount?: number;
  /** Folder with vmlinux and initrd.img; {@link guestImageFolder} when not given. */
  bootFilesPath?: string;
  /** Added to the kernel's command line as it is. */
  kernelBootOptions?: string;
  /** 0 to 4, default 4; 64 disks each. */
  scsiControllerCount?: number;
  /** Adapters the VM starts with; none can be added later. */
  networkAdapters?: readonly NetworkEndpoint[];
  /** Path of a unix socket at which the guest's console can be seen and typed into. */
  consolePipe?: string;
  /** Whether the VM lives on when this process ends. Default false: it ends with its owner, even one killed by SIGKILL. */
  detached?: boolean;
  /** Folder for sockets; `runtime` of the state folders when not given. */
  runtimeFolder?: string;
  /** Folder for accelerator verdicts; `cache` of the state folders when not given. */
  cacheFolder?: string;
  /** Forces an accelerator, untried. */
  accelerator?: Accelerator;
  log?: Logger;
  signal?: AbortSignal;
}

/** Options with every default filled in. */
export interface ResolvedOptions {
  readonly id: string;
  readonly owner: string;
  readonly memorySizeInMB: number;
  readonly allowOvercommit: boolean;
  readonly enableDeferredCommit: boolean;
  readonly processorCount: number;
  readonly bootFilesPath: string;
  readonly kernelBootOptions: string;
  readonly scsiControllerCount: number;
  readonly networkAdapters: readonly NetworkEndpoint[];
  readonly consolePipe: string | undefined;
  readonly detached: boolean;
}

const NAMES: Record<keyof UtilityVMOptions, true> = {
  id: true,
  owner: true,
  memorySizeInMB: true,
  allowOvercommit: true,
  enableDeferredCommit: true,
  processorCount: true,
  bootFilesPath: true,
  kernelBootOptions: true,
  scsiControllerCount: true,
  networkAdapters: true,
  consolePipe: true,
  detached: true,
  runtimeFolder: true,
  cacheFolder: true,
  accelerator: true,
  log: true,
  signal: true,
};

const DEFAULT_MEMORY_MB = 1024;
const DEFAULT_PROCESSORS = 2;

/**
 * The folder with the boot files, as the options say.
 * @throws LcowError INVALID_ARGUMENT for an unknown option; GUEST_IMAGE_MISSING.
 */
export function bootFilesOf(options: UtilityVMOptions): string {
  const unknown = Object.keys(options).find((name) => !Object.hasOwn(NAMES, name));
  if (unknown !== undefined)
    throw new LcowError('INVALID_ARGUMENT', `Utility VM: the option ${unknown} is unknown.`, {
      details: { field: unknown },
    });
  return options.bootFilesPath === undefined ? guestImageFolder() : checkBootFiles(options.bootFilesPath);
}

/**
 * Fills in the defaults (hcsshim uvm.NewDefaultOptionsLCOW) and checks ranges; too many processors are fewer, with a warning.
 * @throws LcowError INVALID_ARGUMENT naming the option; GUEST_IMAGE_MISSING.
 */
export function resolveOptions(
  options: UtilityVMOptions,
  accelerator: Accelerator,
  hostProcessors: number = availableParallelism(),
): ResolvedOptions {
  const log = options.log ?? NO_LOG;
  const bootFilesPath = bootFilesOf(options);
  const asked = options.memorySizeInMB ?? DEFAULT_MEMORY_MB;
  const memorySizeInMB = wholeNumber('memorySizeInMB', asked, 64, 1_048_576);
  const even = memorySizeInMB + (memorySizeInMB % 2);
  if (even !== asked) log.info({ asked, memorySizeInMB: even }, 'memory rounded up to an even number of MB');
  const wanted = wholeNumber(
    'processorCount',
    options.processorCount ?? (accelerator === 'tcg' ? 1 : Math.min(DEFAULT_PROCESSORS, hostProcessors)),
    1,
    Number.MAX_SAFE_INTEGER,
  );
  const processorCount = Math.min(wanted, hostProcessors);
  if (processorCount < wanted)
    log.warn({ asked: wanted, processorCount }, 'fewer processors than asked for: the host has no more');
  const allowOvercommit = options.allowOvercommit ?? true;
  const enableDeferredCommit = options.enableDeferredCommit ?? false;
  if (enableDeferredCommit && !allowOvercommit)
    throw new LcowError('INVALID_ARGUMENT', 'Utility VM: enableDeferredCommit needs allowOvercommit.');
  return {
    id: options.id ?? randomUUID(),
    owner: options.owner ?? basename(process.argv[1] ?? 'lcow'),
    memorySizeInMB: even,
    allowOvercommit,
    enableDeferredCommit,
    processorCount,
    bootFilesPath,
    kernelBootOptions: options.kernelBootOptions ?? '',
    scsiControllerCount: wholeNumber(
      'scsiControllerCount',
      options.scsiControllerCount ?? SCSI_CONTROLLERS,
      0,
      SCSI_CONTROLLERS,
    ),
    networkAdapters: options.networkAdapters ?? [],
    consolePipe: options.consolePipe,
    detached: options.detached ?? false,
  };
}

function wholeNumber(name: string, value: number, least: number, most: number): number {
  if (Number.isSafeInteger(value) && value >= least && value <= most) return value;
  throw new LcowError(
    'INVALID_ARGUMENT',
    `Utility VM: ${name} is ${value}; it must be a whole number from ${least} to ${most}.`,
    {
      details: { field: name },
    },
  );
}
