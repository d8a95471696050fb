import { LcowError } from '../errors/index.js';
import { DEFAULT_PATH } from '../lcow/index.js';
import type { LinuxResources, Mount, Spec } from './spec.js';

/** Options of {@link defaultLinuxSpec}. */
export interface DefaultSpecOptions {
  /** The program and its arguments. */
  args: readonly string[];
  /** "KEY=value"; of two with one key the later counts. PATH, HOSTNAME and, with a terminal, TERM are added. */
  env?: readonly string[];
  /** Working directory, "/" when empty. */
  cwd?: string;
  terminal?: boolean;
  hostname?: string;
  readonlyRootfs?: boolean;
  /** Memory limit; 0 or undefined is none. */
  memoryBytes?: number;
  /** CPU limit in billionths of a CPU; 0 or undefined is none. */
  nanoCpus?: number;
  /** Most processes; 0 or undefined is no limit. */
  pidsLimit?: number;
  /** Size of /dev/shm, 64 MiB when undefined. */
  shmSizeBytes?: number;
}

// The values below are those of moby's daemon/pkg/oci (defaults.go, caps/defaults.go) and daemon/oci_linux.go.

const DEFAULT_SHM_BYTES = 64 * 2 ** 20;

/** 100 ms, in microseconds. */
const CPU_PERIOD = 100_000;

const CAPABILITIES = [
  'CAP_CHOWN',
  'CAP_DAC_OVERRIDE',
  'CAP_FSETID',
  'CAP_FOWNER',
  'CAP_MKNOD',
  'CAP_NET_RAW',
  'CAP_SETGID',
  'CAP_SETUID',
  'CAP_SETFCAP',
  'CAP_SETPCAP',
  'CAP_NET_BIND_SERVICE',
  'CAP_SYS_CHROOT',
  'CAP_KILL',
  'CAP_AUDIT_WRITE',
] as const;

const MASKED_PATHS = [
  '/proc/acpi',
  '/proc/asound',
  '/proc/interrupts',
  '/proc/kcore',
  '/proc/keys',
  '/proc/latency_stats',
  '/proc/sched_debug',
  '/proc/scsi',
  '/proc/timer_list',
  '/proc/timer_stats',
  '/sys/devices/virtual/powercap',
  '/sys/firmware',
] as const;

const READONLY_PATHS = ['/proc/bus', '/proc/fs', '/proc/irq', '/proc/sys', '/proc/sysrq-trigger'] as const;

/** Character devices a container may use: zero, null, urandom, random, tty, console (kernel devices.txt). */
const DEVICE_NUMBERS = [
  [1, 5],
  [1, 3],
  [1, 9],
  [1, 8],
  [5, 0],
  [5, 1],
] as const;

/**
 * Docker's default specification for a Linux container. The caller adds its layers and mounts.
 *
 * Two differences: no swap limit, since a utility VM has no swap; /dev/fuse is denied by the rule for everything and has
 * no rule of its own.
 * @throws LcowError INVALID_ARGUMENT for no args, a relative working directory, or a limit that is no whole number.
 */
export function defaultLinuxSpec(options: DefaultSpecOptions): Spec {
  const { args, terminal = false, hostname } = options;
  if (args.length === 0) throw new LcowError('INVALID_ARGUMENT', 'A container needs a command.');
  const cwd = options.cwd || '/';
  if (!cwd.startsWith('/'))
    throw new LcowError('INVALID_ARGUMENT', `The working directory ${cwd} is not an absolute path.`);
  const capabilities = [...CAPABILITIES];
  return {
    ociVersion: '1.0.2',
    process: {
      terminal,
      user: { uid: 0, gid: 0 },
      args: [...args],
      env: containerEnv(options.env ?? [], { hostname, terminal }),
      cwd,
      // Inheritable and ambient stay empty: what a container's root can do is not passed on to programs of other users.
      capabilities: { bounding: capabilities, permitted: [...capabilities], effective: [...capabilities] },
      noNewPrivileges: false,
      // The guest's own processes are protected from the out-of-memory killer, a container's must not inherit that.
      oomScoreAdj: 0,
    },
    root: { readonly: options.readonlyRootfs ?? false },
    ...(hostname ? { hostname } : {}),
    mounts: defaultMounts(options.shmSizeBytes ?? DEFAULT_SHM_BYTES),
    linux: {
      namespaces: [
        { type: 'mount' },
        { type: 'network' },
        { type: 'uts' },
        { type: 'pid' },
        { type: 'ipc' },
        { type: 'cgroup' },
      ],
      resources: resources(options),
      // Any user of the container may ping and open ports below 1024: the network is its own.
      sysctl: { 'net.ipv4.ping_group_range': '0 2147483647', 'net.ipv4.ip_unprivileged_port_start': '0' },
      devices: [],
      maskedPaths: [...MASKED_PATHS],
      readonlyPaths: [...READONLY_PATHS],
    },
  };
}

/**
 * The environment of a container's process as docker makes it: PATH, HOSTNAME and TERM first, replaced by values that
 * are given; of two entries with one key the later counts, at the place of the first; an entry without "=" removes its
 * key.
 */
export function containerEnv(
  env: readonly string[],
  { hostname, terminal }: { hostname?: string | undefined; terminal?: boolean },
): string[] {
  const values = new Map<string, string>([['PATH', DEFAULT_PATH]]);
  if (hostname) values.set('HOSTNAME', hostname);
  if (terminal) values.set('TERM', 'xterm');
  for (const entry of env) {
    const equals = entry.indexOf('=');
    if (equals < 0) values.delete(entry);
    else values.set(entry.slice(0, equals), entry.slice(equals + 1));
  }
  return [...values].map(([key, value]) => `${key}=${value}`);
}

function defaultMounts(shmSizeBytes: number): Mount[] {
  const mount = (destination: string, type: string, source: string, options: string[]): Mount => ({
    destination,
    type,
    source,
    options,
  });
  return [
    mount('/proc', 'proc', 'proc', ['nosuid', 'noexec', 'nodev']),
    mount('/dev', 'tmpfs', 'tmpfs', ['nosuid', 'strictatime', 'mode=755', 'size=65536k']),
    mount('/dev/pts', 'devpts', 'devpts', ['nosuid', 'noexec', 'newinstance', 'ptmxmode=0666', 'mode=0620', 'gid=5']),
    mount('/sys', 'sysfs', 'sysfs', ['nosuid', 'noexec', 'nodev', 'ro']),
    mount('/sys/fs/cgroup', 'cgroup', 'cgroup', ['ro', 'nosuid', 'noexec', 'nodev']),
    mount('/dev/mqueue', 'mqueue', 'mqueue', ['nosuid', 'noexec', 'nodev']),
    mount('/dev/shm', 'tmpfs', 'shm', [
      'nosuid',
      'noexec',
      'nodev',
      'mode=1777',
      `size=${limit('size of /dev/shm', shmSizeBytes)}`,
    ]),
  ];
}

function resources({ memoryBytes = 0, nanoCpus = 0, pidsLimit = 0 }: DefaultSpecOptions): LinuxResources {
  const allowed = DEVICE_NUMBERS.map(([major, minor]) => ({ allow: true, type: 'c', major, minor, access: 'rwm' }));
  return {
    devices: [{ allow: false, access: 'rwm' }, ...allowed],
    ...(memoryBytes > 0 ? { memory: { limit: limit('memory limit', memoryBytes) } } : {}),
    ...(nanoCpus > 0
      ? { cpu: { quota: Math.floor((limit('CPU limit', nanoCpus) * CPU_PERIOD) / 1e9), period: CPU_PERIOD } }
      : {}),
    ...(pidsLimit > 0 ? { pids: { limit: limit('limit of processes', pidsLimit) } } : {}),
  };
}

function limit(name: string, value: number): number {
  if (!Number.isSafeInteger(value) || value < 0)
    throw new LcowError('INVALID_ARGUMENT', `The ${name} of a container cannot be ${value}: a whole number from 0 up.`);
  return value;
}
