import { availableParallelism } from 'node:os';
import { LcowError } from '../errors/index.js';
import { formatPlatform, type Image, type Platform } from '../images/index.js';
import type { ContainerConfig } from './container-record.js';
import { newContainerId } from './container-store.js';
import { randomContainerName } from './container-names.js';
import { signalNumber } from './signals.js';

/** What `lcow run` takes, with docker's meaning for each. */
export interface ContainerOptions {
  /** Image reference or id. */
  readonly image: string;
  /** Replaces the image's command. */
  readonly command?: readonly string[];
  /** Replaces the image's entrypoint, and drops its command; an empty string clears it. */
  readonly entrypoint?: string;
  /** "K=V", or "K" to take the value from `hostEnv`. */
  readonly env?: readonly string[];
  readonly hostEnv?: NodeJS.ProcessEnv;
  readonly workingDir?: string;
  /** name|uid[:group|gid] */
  readonly user?: string;
  readonly hostname?: string;
  /** Made up when absent or empty. */
  readonly name?: string;
  readonly tty?: boolean;
  readonly openStdin?: boolean;
  /** Bytes; at least 6 MiB, as docker has it. */
  readonly memoryBytes?: number;
  readonly nanoCpus?: number;
  readonly autoRemove?: boolean;
  readonly detached?: boolean;
}

const MINIMUM_MEMORY_BYTES = 6 * 2 ** 20;
/** What /etc/hosts and sethostname(2) take; names with an underscore are common, if no DNS names. */
const HOSTNAME = /^[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,62}$/;

/**
 * Puts an image's defaults and the user's options together.
 * @throws LcowError INVALID_ARGUMENT; NO_MATCHING_PLATFORM when the guest cannot execute the image's programs.
 */
export function containerConfig(options: ContainerOptions, image: Image, layerIds: readonly string[]): ContainerConfig {
  const id = newContainerId();
  const defaults = image.config.config ?? {};
  const memoryBytes = options.memoryBytes ?? 0;
  if (memoryBytes !== 0 && memoryBytes < MINIMUM_MEMORY_BYTES)
    throw new LcowError('INVALID_ARGUMENT', 'Minimum memory limit allowed is 6MB.');
  checkPlatform(options.image, image.platform);
  const nanoCpus = options.nanoCpus ?? 0;
  const hostCpus = availableParallelism();
  if (nanoCpus > hostCpus * 1e9)
    throw new LcowError(
      'INVALID_ARGUMENT',
      `Range of CPUs is from 0.01 to ${hostCpus}.00, as there are only ${hostCpus} CPUs available.`,
    );
  const workingDir = options.workingDir || defaults.WorkingDir || '/';
  if (!workingDir.startsWith('/'))
    throw new LcowError(
      'INVALID_ARGUMENT',
      `The working directory '${workingDir}' is invalid, it needs to be an absolute path.`,
    );
  const stopSignal = defaults.StopSignal || 'SIGTERM';
  signalNumber(stopSignal);
  const tty = options.tty ?? false;
  const hostname = options.hostname || id.slice(0, 12);
  if (!HOSTNAME.test(hostname))
    throw new LcowError('INVALID_ARGUMENT', `Invalid hostname: ${hostname} (at most 63 of [a-zA-Z0-9_.-]).`);
  return {
    id,
    name: options.name?.replace(/^\//, '') || randomContainerName(),
    image: options.image,
    imageId: image.id,
    createdAt: new Date().toISOString(),
    args: commandLine(options, defaults),
    env: mergeEnv([...(defaults.Env ?? []), ...userEnv(options.env ?? [], options.hostEnv)]),
    workingDir,
    user: options.user || defaults.User || '',
    hostname,
    tty,
    openStdin: options.openStdin ?? false,
    stopSignal,
    memoryBytes,
    nanoCpus,
    autoRemove: options.autoRemove ?? false,
    detached: options.detached ?? false,
    layerIds: [...layerIds],
  };
}

/** What the kernel of the utility VM can execute. */
const ARCHITECTURES: readonly string[] = ['amd64', '386'];

function checkPlatform(name: string, platform: Platform): void {
  if (platform.os !== 'linux' || !ARCHITECTURES.includes(platform.architecture))
    throw new LcowError(
      'NO_MATCHING_PLATFORM',
      `The image ${name} is for ${formatPlatform(platform)}; utility VMs run linux/amd64.`,
    );
}

interface ImageDefaults {
  readonly Entrypoint?: readonly string[] | null | undefined;
  readonly Cmd?: readonly string[] | null | undefined;
}

function commandLine(options: ContainerOptions, defaults: ImageDefaults): string[] {
  const given = options.command ?? [];
  const args =
    options.entrypoint === undefined
      ? [...(defaults.Entrypoint ?? []), ...(given.length > 0 ? given : (defaults.Cmd ?? []))]
      : [...(options.entrypoint === '' ? [] : [options.entrypoint]), ...given];
  if (args.length === 0)
    throw new LcowError('INVALID_ARGUMENT', 'No command specified: the image has none, give one behind its name.');
  return args;
}

/**
 * What -e gives: "K=V" as it is, "K" with the host's value, or as it is when the host has none: then it takes the image's
 * value away.
 * @throws LcowError INVALID_ARGUMENT.
 */
export function userEnv(items: readonly string[], hostEnv: NodeJS.ProcessEnv | undefined): string[] {
  return items.map((item) => {
    if (item === '' || item.startsWith('='))
      throw new LcowError('INVALID_ARGUMENT', `Invalid environment variable: '${item}'.`);
    const value = item.includes('=') ? undefined : hostEnv?.[item];
    return value === undefined ? item : `${item}=${value}`;
  });
}

/** Later values win, at the place of the first; a key without a value takes away what was before it. */
export function mergeEnv(items: readonly string[]): string[] {
  const merged = new Map<string, string>();
  for (const item of items) {
    const equals = item.indexOf('=');
    if (equals === -1) merged.delete(item);
    else merged.set(item.slice(0, equals), item);
  }
  return [...merged.values()];
}
