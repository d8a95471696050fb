import { LcowError } from '../errors/index.js';
import { abortable } from '../lifetime/index.js';
import type { Process, ProcessExit, Stdio } from './cow.js';
import type { GuestClient } from './guest-client.js';
import { hasReason } from './guest-errors.js';
import type { StdioOffsets, StdioStreams } from './stdio-streams.js';

/** Names a process in the guest. */
export interface ProcessAddress {
  /** Empty: the utility VM. */
  readonly containerId: string;
  /** Empty: the container's init. */
  readonly execId: string;
}

const SIGKILL = 9;
const MAX_SIGNAL = 64;
const MAX_CONSOLE = 0xffff;

/** A {@link Process} behind a guest connection. */
export class GuestProcess implements Process {
  readonly containerId: string;
  readonly execId: string;
  readonly #client: GuestClient;
  readonly #streams: StdioStreams;
  #exit: Promise<ProcessExit> | undefined;
  #exited = false;
  #closed: Promise<void> | undefined;

  constructor(
    client: GuestClient,
    address: ProcessAddress,
    readonly pid: number,
    streams: StdioStreams,
  ) {
    this.#client = client;
    this.containerId = address.containerId;
    this.execId = address.execId;
    this.#streams = streams;
  }

  /** Bytes of each output the readers have taken: what `attachProcess` needs after a broken connection. */
  get consumed(): StdioOffsets {
    return this.#streams.consumed;
  }

  stdio(): Stdio {
    return this.#streams.stdio;
  }

  /** @throws LcowError INVALID_ARGUMENT for a number that is no signal. */
  async signal(signal: number): Promise<boolean> {
    return this.sendSignal(signal, false);
  }

  /** As {@link GuestProcess.signal}; with `all`, to every process of the container. */
  async sendSignal(signal: number, all: boolean): Promise<boolean> {
    if (!Number.isInteger(signal) || signal < 1 || signal > MAX_SIGNAL)
      throw new LcowError('INVALID_ARGUMENT', `${signal} is no signal.`);
    if (this.#exited && !all) return false;
    try {
      const { delivered } = await this.#client.signalProcess({ ...this.#address, signal, all });
      return delivered;
    } catch (error) {
      if (hasReason(error, 'NO_SUCH_PROCESS', 'NO_SUCH_CONTAINER', 'WRONG_STATE')) return false;
      throw error;
    }
  }

  async kill(): Promise<void> {
    await this.signal(SIGKILL);
  }

  /** @throws LcowError INVALID_ARGUMENT for a size that is no whole number from 0 to 65535. */
  async resizeConsole(rows: number, columns: number): Promise<void> {
    for (const size of [rows, columns])
      if (!Number.isInteger(size) || size < 0 || size > MAX_CONSOLE)
        throw new LcowError('INVALID_ARGUMENT', `A console cannot have ${columns} columns and ${rows} rows.`);
    await this.#client.resizeConsole({ ...this.#address, size: { rows, columns } });
  }

  /** With a signal, the waiting is given up when it fires; the process is not touched. */
  async wait(options: { signal?: AbortSignal } = {}): Promise<ProcessExit> {
    this.#exit ??= this.#waitOnce();
    return abortable(this.#exit, options.signal);
  }

  async #waitOnce(): Promise<ProcessExit> {
    const reply = await this.#client.waitProcess(this.#address);
    this.#exited = true;
    return {
      exitCode: reply.exitCode,
      exitedAt: new Date(Number(reply.exitedAtUnixNanos / 1_000_000n)),
      oomKilled: reply.oomKilled,
    };
  }

  async close(): Promise<void> {
    this.#closed ??= this.#closeOnce();
    return this.#closed;
  }

  async #closeOnce(): Promise<void> {
    this.#streams.destroy();
    // The record of an init goes with its container.
    if (this.execId === '') return;
    try {
      await this.#client.deleteProcess(this.#address);
    } catch (error) {
      if (hasReason(error, 'NO_SUCH_PROCESS', 'NO_SUCH_CONTAINER')) return;
      // With the connection the guest's record is out of reach, and goes with the container or the VM.
      if (error instanceof LcowError && (error.code === 'GUEST_UNREACHABLE' || error.code === 'CLOSED')) return;
      if (!hasReason(error, 'WRONG_STATE')) throw error;
      // Still running: deleted when it has exited.
      void this.wait()
        .then(() => this.#client.deleteProcess(this.#address))
        .catch(() => {});
    }
  }

  get #address(): ProcessAddress {
    return { containerId: this.containerId, execId: this.execId };
  }
}
