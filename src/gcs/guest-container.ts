import type { Container, GuestStats, ProcessConfig, ProcessExit } from './cow.js';
import type { GuestClient } from './guest-client.js';
import { hasReason } from './guest-errors.js';
import type { GuestProcess } from './guest-process.js';
import type { StatsResponse } from './guest_pb.js';

const SIGTERM = 15;
const SIGKILL = 9;
/** The kernel's "no limit" of a cgroup is a page short of 2^63; the agent may also say 2^64 - 1 or 0. */
const NO_LIMIT = 2n ** 62n;

/** A {@link Container} behind a guest connection. */
export class GuestContainer implements Container {
  readonly os = 'linux';
  readonly isOci = true;
  readonly #client: GuestClient;
  readonly #exec: (config: ProcessConfig, signal: AbortSignal | undefined) => Promise<GuestProcess>;

  constructor(
    client: GuestClient,
    readonly id: string,
    readonly init: GuestProcess,
    exec: (config: ProcessConfig, signal: AbortSignal | undefined) => Promise<GuestProcess>,
  ) {
    this.#client = client;
    this.#exec = exec;
  }

  async createProcess(config: ProcessConfig, options: { signal?: AbortSignal } = {}): Promise<GuestProcess> {
    return this.#exec(config, options.signal);
  }

  async start(options: { signal?: AbortSignal } = {}): Promise<void> {
    await this.#client.startContainer({ containerId: this.id }, options);
  }

  async shutdown(): Promise<void> {
    await this.init.signal(SIGTERM);
  }

  async terminate(): Promise<void> {
    await this.init.sendSignal(SIGKILL, true);
  }

  async wait(options: { signal?: AbortSignal } = {}): Promise<ProcessExit> {
    return this.init.wait(options);
  }

  async stats(): Promise<GuestStats> {
    return toStats(await this.#client.stats({ containerId: this.id }));
  }

  async delete(options: { force?: boolean } = {}): Promise<void> {
    try {
      await this.#client.deleteContainer({ containerId: this.id, force: options.force ?? false });
    } catch (error) {
      if (!hasReason(error, 'NO_SUCH_CONTAINER')) throw error;
    }
    await this.init.close();
  }
}

/** Counters above 2^53 lose their last digits. */
export function toStats(reply: StatsResponse): GuestStats {
  const limit = reply.memoryLimitBytes;
  return {
    cpuUsageNanos: Number(reply.cpuUsageNanos),
    memoryUsageBytes: Number(reply.memoryUsageBytes),
    memoryLimitBytes: limit === 0n || limit >= NO_LIMIT ? Infinity : Number(limit),
    pids: Number(reply.pids),
    blockReadBytes: Number(reply.blockReadBytes),
    blockWriteBytes: Number(reply.blockWriteBytes),
    networkReceiveBytes: Number(reply.networkReceiveBytes),
    networkTransmitBytes: Number(reply.networkTransmitBytes),
    oomKills: Number(reply.oomKills),
  };
}
