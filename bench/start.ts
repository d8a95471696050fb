import { benchBareBoot } from './boot.js';
import { benchColdStart } from './cold-start.js';
import { median, type BenchRow } from './table.js';

const ROUNDS = 7;

/** A utility VM's cold start to "agent ready", beside a bare boot of the same kernel to init; one of each in a round. */
export async function benchStart(): Promise<BenchRow[]> {
  const bare: number[] = [];
  const ours: number[] = [];
  for (let round = 0; round < ROUNDS; round++) {
    bare.push(...(await benchBareBoot(1)));
    ours.push(...(await benchColdStart(1)));
  }
  return [
    {
      name: 'cold start of a utility VM, to agent ready',
      value: median(ours),
      unit: 'ms',
      floorName: 'bare QEMU boot of the same kernel, to init',
      floorValue: median(bare),
      ratio: median(ours.map((value, round) => value / bare[round]!)),
    },
  ];
}
