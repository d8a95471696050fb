import { execFile } from 'node:child_process';
import { mkdtemp, rm, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { copySparse, createScratch, DEFAULT_SCRATCH_BYTES } from '../src/disk/index.js';
import { median, type BenchRow } from './table.js';

const run = promisify(execFile);
const ROUNDS = 15;

/**
 * Times the writable layer of a container: making the blank 20 GiB scratch in this process against mke2fs and qemu-img
 * convert, and copying it against cp. Each round does all of them in turn. Ours are synced to the disk, the tools' are not.
 */
export async function benchScratch(): Promise<BenchRow[]> {
  const folder = await mkdtemp(join(tmpdir(), 'lcow-bench-scratch-'));
  const times = { create: [] as number[], tools: [] as number[], copy: [] as number[], cp: [] as number[] };
  try {
    for (let round = 0; round < ROUNDS; round++) {
      const here = (name: string): string => join(folder, `${round}-${name}`);
      times.create.push(await timed(() => createScratch(here('scratch.vhdx'))));
      times.tools.push(await timed(() => makeWithTools(here('tools.raw'), here('tools.vhdx'))));
      times.copy.push(await timed(() => copySparse(here('scratch.vhdx'), here('copy.vhdx'))));
      times.cp.push(await timed(() => run('cp', ['--sparse=always', here('scratch.vhdx'), here('cp.vhdx')])));
    }
  } finally {
    await rm(folder, { recursive: true });
  }
  return [
    row('blank 20 GiB scratch', times.create, 'mke2fs + qemu-img convert', times.tools),
    row('copy of the blank scratch', times.copy, 'cp --sparse=always', times.cp),
  ];
}

function row(name: string, ours: readonly number[], floorName: string, floor: readonly number[]): BenchRow {
  const ratio = median(ours.map((value, round) => value / floor[round]!));
  return { name, value: median(ours), unit: 'ms', floorName, floorValue: median(floor), ratio };
}

async function makeWithTools(raw: string, vhdx: string): Promise<void> {
  await writeFile(raw, '');
  await truncate(raw, DEFAULT_SCRATCH_BYTES);
  await run('mke2fs', ['-q', '-t', 'ext4', '-O', '^has_journal', raw]);
  await run('qemu-img', ['convert', '-f', 'raw', '-O', 'vhdx', '-o', 'block_size=1M', raw, vhdx]);
}

async function timed(operation: () => Promise<unknown>): Promise<number> {
  const start = performance.now();
  await operation();
  return performance.now() - start;
}
