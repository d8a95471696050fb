import { LcowError } from '../errors/index.js';

/** Whether a process has exited, and how (seed: ExitState). */
export class ExitState {
  /** The exit code, 128 + signal number for a process that a signal ended, or -1 when it is not known. */
  readonly exitCode: number;
  /** The kernel killed a process of the container for want of memory. */
  readonly oomKilled: boolean;

  constructor(exitCode: number, oomKilled = false) {
    this.exitCode = exitCode;
    this.oomKilled = oomKilled;
  }
}

/** A process ended with an exit code other than 0 (seed: ExitError). */
export class ExitError extends LcowError {
  readonly state: ExitState;
  /** What the process wrote, when its output was captured. */
  stdout: Buffer | undefined;

  constructor(state: ExitState) {
    super('PROCESS_FAILED', `The process ended with exit code ${state.exitCode}.`, {
      details: { exitCode: state.exitCode, oomKilled: state.oomKilled },
    });
    this.name = 'ExitError';
    this.state = state;
  }

  get exitCode(): number {
    return this.state.exitCode;
  }
}
