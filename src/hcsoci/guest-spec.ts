import { LcowError } from '../errors/index.js';
import type { Mount, Spec } from './spec.js';

/** What the guest gets in place of what only the host knows. */
export interface GuestPaths {
  /** The root file system, a path of the utility VM. */
  rootfs: string;
  /** The container's network namespace, a path of the utility VM; undefined leaves what the spec says. */
  networkNamespace: string | undefined;
}

/** The files that name a container and what is around it, by their places in it. */
export interface NameFiles {
  [destination: string]: string;
}

/** The period that is meant when only a quota is given (hcsshim; the kernel's default), in microseconds. */
const DEFAULT_CPU_PERIOD = 100_000;

/**
 * The specification that the guest's runtime gets (hcsshim createLCOWSpec): a copy without the Windows part, with paths
 * of the utility VM. Device, process and I/O limits stay, where hcsshim dropped them silently.
 * @param spec Not changed; its mounts have been resolved to paths of the utility VM.
 * @throws LcowError NOT_SUPPORTED for hooks: their programs are on the host, where nothing of the container is.
 */
export function guestSpec(spec: Spec, mounts: Mount[], nameFiles: NameFiles, paths: GuestPaths): Spec {
  const hooks = Object.entries(spec.hooks ?? {}).filter(([, list]) => Array.isArray(list) && list.length > 0);
  if (hooks.length > 0)
    throw new LcowError(
      'NOT_SUPPORTED',
      `The specification of the container has hooks (${hooks.map(([name]) => name).join(', ')}), which a utility VM cannot run.`,
    );

  const copy = structuredClone(spec);
  delete copy.windows;
  delete copy.hooks;
  copy.root = { ...copy.root, path: paths.rootfs };
  const destinations = new Set(mounts.map(({ destination }) => destination));
  copy.mounts = [
    ...mounts,
    ...Object.entries(nameFiles)
      .filter(([destination]) => !destinations.has(destination))
      .map(([destination, source]) => ({ destination, type: 'bind', source, options: ['rbind', 'rprivate'] })),
  ];

  if (copy.linux) {
    // A path in the host's hierarchy; the guest has its own.
    delete copy.linux.cgroupsPath;
    const cpu = copy.linux.resources?.cpu;
    if (cpu?.quota && !cpu.period) cpu.period = DEFAULT_CPU_PERIOD;
  }
  if (paths.networkNamespace !== undefined) {
    copy.linux ??= {};
    copy.linux.namespaces = [
      ...(copy.linux.namespaces ?? []).filter(({ type }) => type !== 'network'),
      { type: 'network', path: paths.networkNamespace },
    ];
  }
  return copy;
}
