import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { stateFolders } from '../src/state/index.js';
import { createUtilityVM } from '../src/uvm/index.js';

/**
 * Times a cold start: a utility VM made and started until its agent is ready, clock set and random pool fed. The verdict on
 * accelerators is known before.
 * @returns Milliseconds, one per round.
 */
export async function benchColdStart(rounds: number): Promise<number[]> {
  const runtimeFolder = await mkdtemp(join(tmpdir(), 'lcow-cold-'));
  const { cache: cacheFolder } = stateFolders();
  try {
    const warmUp = await createUtilityVM({ runtimeFolder, cacheFolder });
    await warmUp.close();
    const times: number[] = [];
    for (let round = 0; round < rounds; round++) {
      const begin = performance.now();
      const vm = await createUtilityVM({ runtimeFolder, cacheFolder });
      try {
        await vm.start();
        times.push(performance.now() - begin);
      } finally {
        await vm.close();
      }
    }
    return times;
  } finally {
    await rm(runtimeFolder, { recursive: true, force: true });
  }
}
