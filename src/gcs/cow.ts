/**
 * What runs processes, in a machine or in a container: hcsshim's internal/cow. Everything above the guest connection is
 * written against these interfaces, so that it can be tested without a guest.
 */
import type { Readable, Writable } from 'node:stream';
import type { OciProcess } from './oci.js';

/** Size of a terminal in characters. */
export interface ConsoleSize {
  readonly rows: number;
  readonly columns: number;
}

/** What a process is started from. */
export interface ProcessConfig {
  process: OciProcess;
  /** As docker's --user: name, uid, name:group, uid:gid. Resolved in the guest; overrides the user of `process`. */
  user?: string;
  /** The standard streams that are wanted; the others are /dev/null in the guest. */
  stdin?: boolean;
  stdout?: boolean;
  /** Not with a terminal, where everything comes by stdout. */
  stderr?: boolean;
  /** First size of the terminal. */
  consoleSize?: ConsoleSize;
}

/** How a process ended. */
export interface ProcessExit {
  /** 0 to 255: its status, or 128 and the number of the signal that ended it. */
  readonly exitCode: number;
  /** By the guest's clock. */
  readonly exitedAt: Date;
  /** The kernel killed a process of the container for want of memory. */
  readonly oomKilled: boolean;
}

/** The standard streams of a process: those that were asked for. */
export interface Stdio {
  /** `end()` closes the standard input of the process. */
  readonly stdin?: Writable;
  /** Ends when the last process that holds it has closed it. */
  readonly stdout?: Readable;
  readonly stderr?: Readable;
}

/** A process in a container or a utility VM (cow.Process). */
export interface Process {
  /** In the guest's own PID namespace; 0 when it is not known. */
  readonly pid: number;
  /** Empty for the init of a container. */
  readonly execId: string;
  /** The same streams at every call. Their errors come as `error` events; without a listener they are dropped. */
  stdio(): Stdio;
  /**
   * Sends a signal by its Linux number (cow.Process.Signal).
   * @returns false when the process has ended, or is an init that does not handle the signal.
   */
  signal(signal: number): Promise<boolean>;
  /** SIGKILL; a process that has ended is no error (cow.Process.Kill). */
  kill(): Promise<void>;
  resizeConsole(rows: number, columns: number): Promise<void>;
  /** Any number of callers get the same answer, also after {@link Process.close} (cow.Process.Wait, ExitCode). */
  wait(): Promise<ProcessExit>;
  /**
   * Releases the streams, and the guest's record of an exec once it has exited. Does not end the process. Idempotent
   * (cow.Process.Close).
   */
  close(): Promise<void>;
}

/** Where processes can be started (cow.ProcessHost). */
export interface ProcessHost {
  createProcess(config: ProcessConfig, options?: { signal?: AbortSignal }): Promise<Process>;
  readonly os: 'linux';
  /** Whether processes are described by an OCI process alone: true for containers. */
  readonly isOci: boolean;
}

/** Counters of a container or a utility VM. Bytes, unless the name says otherwise. */
export interface GuestStats {
  readonly cpuUsageNanos: number;
  readonly memoryUsageBytes: number;
  /** Infinity when there is none. */
  readonly memoryLimitBytes: number;
  readonly pids: number;
  readonly blockReadBytes: number;
  readonly blockWriteBytes: number;
  readonly networkReceiveBytes: number;
  readonly networkTransmitBytes: number;
  readonly oomKills: number;
}

/** A container in the guest (cow.Container). */
export interface Container extends ProcessHost {
  readonly id: string;
  /** Its first process: there from the creation on, running after {@link Container.start}. */
  readonly init: Process;
  start(options?: { signal?: AbortSignal }): Promise<void>;
  /** SIGTERM to the init; one that has ended is no error (cow.Container.Shutdown). */
  shutdown(): Promise<void>;
  /** SIGKILL to every process; a container that has ended is no error (cow.Container.Terminate). */
  terminate(): Promise<void>;
  /** The exit of the init (cow.Container.Wait). */
  wait(): Promise<ProcessExit>;
  stats(): Promise<GuestStats>;
  /** Removes the guest's record and bundle; with `force` it is killed first. Already gone is success. */
  delete(options?: { force?: boolean }): Promise<void>;
}
