import { benchBareBoot } from './boot.js';
import { Sandbox } from '../test/vm/lcow.js';
import { median, type BenchRow } from './table.js';

const ROUNDS = 5;

/** Whole commands as a user types them, beside a bare boot of the same kernel in the same round. */
export async function benchRun(): Promise<BenchRow[]> {
  const lcow = await Sandbox.make('busybox');
  const bare: number[] = [];
  const runs: number[] = [];
  const execs: number[] = [];
  const copies: number[] = [];
  const megabytes = 64;
  const input = Buffer.alloc(megabytes << 20, 'lcow');
  try {
    // The first run also tries the accelerators and makes the blank scratch.
    await lcow.ok('run', '--rm', 'busybox', 'true');
    await lcow.ok('run', '-d', '--name', 'target', 'busybox', 'sleep', '100000');
    await lcow.ok('exec', 'target', 'true');
    for (let round = 0; round < ROUNDS; round++) {
      bare.push(...(await benchBareBoot(1)));
      runs.push(await timed(() => lcow.ok('run', '--rm', 'busybox', 'true')));
      execs.push(await timed(() => lcow.ok('exec', 'target', 'true')));
      copies.push(await timed(() => lcow.run(['exec', '-i', 'target', 'cat'], { input })));
    }
    await lcow.ok('rm', '-f', 'target');
  } finally {
    await lcow.remove();
  }
  const beside = (name: string, values: number[]): BenchRow => ({
    name,
    value: median(values),
    unit: 'ms',
    floorName: 'bare QEMU boot of the same kernel, to init',
    floorValue: median(bare),
    ratio: median(values.map((value, round) => value / bare[round]!)),
  });
  return [
    beside('lcow run --rm busybox true, whole command', runs),
    beside('lcow exec CONTAINER true, whole command', execs),
    beside(`lcow exec -i CONTAINER cat, ${megabytes} MiB in and out`, copies),
  ];
}

async function timed(work: () => Promise<unknown>): Promise<number> {
  const begin = performance.now();
  await work();
  return performance.now() - begin;
}
