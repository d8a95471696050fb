/** What a compute system is to those above, whichever engine runs it. */
import type { Duplex } from 'node:stream';
import type { ModifySettingRequest } from './schema/index.js';

/** HCS' states of a compute system, without those this engine never reaches. */
export type SystemState = 'Created' | 'Running' | 'Paused' | 'Stopped';

/** Names of hcsshim's notifications (internal/hcs notificationNames). */
export type NotificationName =
  | 'SystemExited'
  | 'SystemStartCompleted'
  | 'SystemPauseCompleted'
  | 'SystemResumeCompleted'
  | 'SystemCrashReport'
  | 'SystemCrashInitiated'
  | 'SystemModifyCompleted'
  | 'SystemGetPropertiesCompleted';

/** How a compute system ended. */
export interface SystemExit {
  /**
   * graceful: the guest powered off or reset; forced: by terminate or a cancelled start; panic: the guest's kernel gave up;
   * unexpected: QEMU ended for a reason of its own or was killed.
   */
  readonly kind: 'graceful' | 'forced' | 'panic' | 'unexpected';
  /** QEMU's shutdown reason, e.g. "guest-shutdown", "guest-reset", "guest-panic", "host-qmp-quit"; undefined when it told none. */
  readonly reason: string | undefined;
  /** Exit code of the QEMU process; null when a signal ended it or it never started. */
  readonly exitCode: number | null;
  readonly signal: NodeJS.Signals | null;
  /** Last 16 KiB of what QEMU wrote to its standard error. */
  readonly stderr: string;
  /** Last 64 KiB of the guest's console, without control characters. */
  readonly consoleTail: string;
}

/** schema2.Properties with Statistics, and `Engine`, which is ours. */
export interface ComputeSystemProperties {
  readonly Id: string;
  readonly Owner: string | undefined;
  readonly SystemType: 'VirtualMachine';
  readonly RuntimeOsType: 'Linux';
  readonly State: SystemState;
  /** Of the QEMU process and its disks; undefined when it does not run. Processor and Memory need /proc. */
  readonly Statistics:
    | {
        readonly Timestamp: string;
        /** Since start, in units of 100 ns. */
        readonly Uptime100ns: number;
        readonly Processor?: {
          readonly TotalRuntime100ns: number;
          readonly RuntimeUser100ns: number;
          readonly RuntimeKernel100ns: number;
        };
        readonly Memory?: {
          readonly MemoryUsageCommitBytes: number;
          readonly MemoryUsageCommitPeakBytes: number;
          readonly MemoryUsagePrivateWorkingSetBytes: number;
        };
        readonly Storage: {
          readonly ReadCountNormalized: number;
          readonly ReadSizeBytes: number;
          readonly WriteCountNormalized: number;
          readonly WriteSizeBytes: number;
        };
      }
    | undefined;
  readonly Engine: {
    readonly Name: 'qemu';
    readonly Version: string;
    readonly Accelerator: string;
    readonly ProcessId: number | undefined;
    readonly Attachments: readonly {
      readonly controller: number;
      readonly lun: number;
      readonly path: string;
      readonly readOnly: boolean;
    }[];
  };
}

/** A virtual machine made from a compute system document (hcsshim hcs.System). */
export interface ComputeSystem extends AsyncDisposable {
  readonly id: string;
  readonly state: SystemState;
  /** What runs the guest: "kvm", "tcg", … */
  readonly accelerator: string;

  /**
   * Starts the guest. On failure the system is stopped and nothing of it is left.
   * @throws LcowError INVALID_STATE, QEMU_FAILED (with QEMU's own words), TIMED_OUT (limit `systemStart`), CANCELLED, and
   * for the document's disks as {@link modify}.
   */
  start(options?: { signal?: AbortSignal }): Promise<void>;
  /** @throws LcowError INVALID_STATE, VM_EXITED, QEMU_FAILED, TIMED_OUT, CANCELLED. */
  pause(options?: { signal?: AbortSignal }): Promise<void>;
  /** @throws as {@link pause}. */
  resume(options?: { signal?: AbortSignal }): Promise<void>;
  /** Ends the system at once; one that has ended already is a success. Resolves when nothing of it is left. */
  terminate(): Promise<void>;
  /** @throws LcowError VM_EXITED when the system ends meanwhile. */
  properties(): Promise<ComputeSystemProperties>;
  /**
   * Changes a running system: adds or removes a SCSI attachment.
   * @throws LcowError INVALID_ARGUMENT, NOT_SUPPORTED, INVALID_STATE, ALREADY_EXISTS, NOT_ATTACHED, NOT_FOUND, IN_USE,
   * QEMU_FAILED, VM_EXITED, TIMED_OUT, CANCELLED.
   */
  modify(request: ModifySettingRequest, options?: { signal?: AbortSignal }): Promise<void>;
  /**
   * Several requests of the same type in one go. Adds are all or nothing; of removals every one is tried and the first
   * failure thrown.
   * @throws as {@link modify}.
   */
  modifyMany(requests: readonly ModifySettingRequest[], options?: { signal?: AbortSignal }): Promise<void>;
  /** Resolves once the system has ended, for any number of callers. */
  wait(): Promise<SystemExit>;
  on(event: 'notification', listener: (name: NotificationName) => void): this;
  off(event: 'notification', listener: (name: NotificationName) => void): this;
  /**
   * Connects to a port of the document's VirtioSerial. One connection at a time; the next waits for the end of the one before.
   * @throws LcowError NOT_FOUND (no such port), INVALID_STATE, VM_EXITED, CANCELLED.
   */
  connect(port: string, options?: { signal?: AbortSignal }): Promise<Duplex>;
  /** Last 64 KiB of the guest's console, without control characters. */
  consoleTail(): string;
}
