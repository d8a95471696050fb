/**
 * The parts of the OCI runtime specification's config.json (1.0.2, 1.1) that this room reads. Everything else in a spec
 * goes to the guest's runtime as it is.
 */
export interface OciSpec {
  ociVersion: string;
  process?: OciProcess;
}

/** The `process` of a specification, and what an exec is made of. */
export interface OciProcess {
  args: string[];
  /** NAME=value. */
  env?: string[];
  /** Absolute path. */
  cwd: string;
  terminal?: boolean;
  consoleSize?: { height: number; width: number };
  user?: { uid: number; gid: number; umask?: number; additionalGids?: number[] };
  capabilities?: {
    bounding?: string[];
    effective?: string[];
    inheritable?: string[];
    permitted?: string[];
    ambient?: string[];
  };
  rlimits?: { type: string; soft: number; hard: number }[];
  noNewPrivileges?: boolean;
  apparmorProfile?: string;
  selinuxLabel?: string;
  oomScoreAdj?: number;
}
