import { readFile } from 'node:fs/promises';
import { z } from 'zod';
import { LcowError } from '../../errors/index.js';
import type { ComputeSystemProperties } from '../compute-system.js';
import type { QmpClient } from './qmp-client.js';

type Statistics = NonNullable<ComputeSystemProperties['Statistics']>;

const Counters = z.object({
  rd_operations: z.number(),
  rd_bytes: z.number(),
  wr_operations: z.number(),
  wr_bytes: z.number(),
});
const BlockStats = z.array(z.object({ stats: Counters }));

/** Linux reports times in 1/100 s to user space on every architecture it runs QEMU on (USER_HZ). */
const TICK_100NS = 100_000;

/**
 * Figures of a running QEMU, in the form of schema2.Statistics.
 * @param startedAt performance.now() at the start.
 * @throws LcowError QEMU_FAILED, VM_EXITED, TIMED_OUT.
 */
export async function readStatistics(qmp: QmpClient, pid: number, startedAt: number): Promise<Statistics> {
  const [blocks, processor, memory] = await Promise.all([
    qmp.execute('query-blockstats'),
    processorOf(pid),
    memoryOf(pid),
  ]);
  const parsed = BlockStats.safeParse(blocks);
  if (!parsed.success)
    throw new LcowError('QEMU_FAILED', 'QEMU answered query-blockstats in an unknown form.', { cause: parsed.error });
  const sum = (counter: keyof z.infer<typeof Counters>): number =>
    parsed.data.reduce((total, { stats }) => total + stats[counter], 0);
  return {
    Timestamp: new Date().toISOString(),
    Uptime100ns: Math.round((performance.now() - startedAt) * 10_000),
    ...(processor ? { Processor: processor } : {}),
    ...(memory ? { Memory: memory } : {}),
    Storage: {
      ReadCountNormalized: sum('rd_operations'),
      ReadSizeBytes: sum('rd_bytes'),
      WriteCountNormalized: sum('wr_operations'),
      WriteSizeBytes: sum('wr_bytes'),
    },
  };
}

async function processorOf(pid: number): Promise<Statistics['Processor']> {
  try {
    const stat = await readFile(`/proc/${pid}/stat`, 'latin1');
    // Fields 14 and 15, counted from behind the command name, which may hold anything.
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    const user = Number(fields[11]) * TICK_100NS;
    const kernel = Number(fields[12]) * TICK_100NS;
    return { TotalRuntime100ns: user + kernel, RuntimeUser100ns: user, RuntimeKernel100ns: kernel };
  } catch {
    return undefined;
  }
}

async function memoryOf(pid: number): Promise<Statistics['Memory']> {
  try {
    const status = await readFile(`/proc/${pid}/status`, 'latin1');
    const bytes = (name: string): number =>
      Number(new RegExp(`^${name}:\\s+(\\d+) kB`, 'm').exec(status)?.[1] ?? 0) * 1024;
    return {
      MemoryUsageCommitBytes: bytes('VmRSS'),
      MemoryUsageCommitPeakBytes: bytes('VmHWM'),
      MemoryUsagePrivateWorkingSetBytes: bytes('RssAnon'),
    };
  } catch {
    return undefined;
  }
}
