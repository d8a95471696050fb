import type { OciProcess } from '../gcs/index.js';

/**
 * The OCI runtime specification 1.0.2, config.json, as far as this room reads or writes it. Fields that are not named
 * here may be present and go to the guest's runtime as they are.
 */
export interface Spec {
  ociVersion: string;
  process?: OciProcess;
  root?: { path?: string; readonly?: boolean };
  hostname?: string;
  domainname?: string;
  mounts?: Mount[];
  annotations?: Record<string, string>;
  hooks?: Record<string, unknown>;
  linux?: Linux;
  windows?: Windows;
}

/** One mount, in the order in which they are made. */
export interface Mount {
  destination: string;
  type?: string;
  source?: string;
  options?: string[];
}

/** The Linux part of a {@link Spec}. */
export interface Linux {
  namespaces?: LinuxNamespace[];
  resources?: LinuxResources;
  cgroupsPath?: string;
  sysctl?: Record<string, string>;
  devices?: unknown[];
  seccomp?: unknown;
  maskedPaths?: string[];
  readonlyPaths?: string[];
  rootfsPropagation?: string;
}

export interface LinuxNamespace {
  type: 'pid' | 'network' | 'ipc' | 'uts' | 'mount' | 'cgroup' | 'user' | 'time';
  /** A namespace to join, as a path of the utility VM; a new one when absent. */
  path?: string;
}

export interface LinuxResources {
  devices?: { allow: boolean; type?: string; major?: number; minor?: number; access?: string }[];
  memory?: { limit?: number; reservation?: number; swap?: number };
  /** Quota and period in microseconds. */
  cpu?: { shares?: number; quota?: number; period?: number; cpus?: string; mems?: string };
  pids?: { limit: number };
}

/** What hcsshim reads of the Windows part of a Linux container's {@link Spec}. */
export interface Windows {
  /** Top-most read-only layer first, base next to last, scratch last. */
  layerFolders?: string[];
  network?: {
    /** Endpoints to put in a new network namespace, by id. */
    endpointList?: string[];
    networkNamespace?: string;
  };
}
