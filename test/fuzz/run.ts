/**
 * Fuzzes the parsers of disk formats: `npm run fuzz -- --time 60 [--target tar|ext4|vhd|vhdx] [--seed N]`.
 * Good files are damaged at random and parsed. A failure is anything but a result or the library's own error: another
 * error, a hang, or memory out of proportion to the input. Each case follows from its number alone; a failure prints the
 * command that has it again. The cases run in a child process, so that a hang can be ended and told.
 */
import { spawn } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { isLcowError } from '../../src/errors/index.js';
import { interestingLines, mutate } from './mutate.js';
import { Random } from './random.js';
import { inputPath, TARGETS } from './targets.js';

const { values } = parseArgs({
  options: {
    time: { type: 'string', default: '60' },
    target: { type: 'string' },
    seed: { type: 'string' },
    child: { type: 'string' },
  },
});

/** A case takes milliseconds; machines under load take longer. */
const CASE_LIMIT_MS = 15_000;
/** Beyond what is in proportion to the input: caches, pieces of a mebibyte, rubbish that was not collected yet. */
const MEMORY_ALLOWANCE_BYTES = 192 * 2 ** 20;
const MEMORY_FACTOR = 8;

class Failure extends Error {}

async function runCase(name: string, number: number, seeds: readonly Buffer[], folder: string): Promise<void> {
  const target = TARGETS[name]!;
  const random = new Random(number);
  const seed = random.pick(seeds);
  let lines = LINES.get(seed);
  if (!lines) LINES.set(seed, (lines = interestingLines(seed)));
  const damaged = mutate(seed, lines, random);
  const bytes = random.once(4) ? damaged : target.reseal(damaged);
  const path = inputPath(folder, name);
  writeFileSync(path, bytes);
  for (const attempt of target.attempts(bytes, path, random)) {
    const before = process.memoryUsage();
    try {
      await attempt();
    } catch (error) {
      if (!isLcowError(error, ...target.codes)) throw error;
    }
    const after = process.memoryUsage();
    const grown = after.arrayBuffers + after.heapUsed - before.arrayBuffers - before.heapUsed;
    if (grown > MEMORY_ALLOWANCE_BYTES + MEMORY_FACTOR * bytes.length)
      throw new Failure(`it took ${grown} bytes of memory for an input of ${bytes.length}`);
  }
}

const LINES = new Map<Buffer, number[]>();

/** The child: says on stdout which case it is at, and ends at the first failure. */
async function runCases(name: string): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), 'lcow-fuzz-'));
  const until = performance.now() + Number(values.time) * 1000;
  let number = Number(values.seed ?? 1);
  try {
    const seeds = await TARGETS[name]!.seeds(folder);
    do {
      // Not console.log: it must be out before a case that never returns.
      writeSync(1, `${number}\n`);
      await runCase(name, number, seeds, folder);
      number += 1;
    } while (performance.now() < until);
  } catch (error) {
    console.error(error);
    process.exitCode = 1;
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** Resolves to whether all went well. */
async function watch(name: string, seconds: number): Promise<boolean> {
  const args = ['--child', name, '--time', String(seconds), '--seed', values.seed ?? '1'];
  const child = spawn(process.execPath, [...process.execArgv, fileURLToPath(import.meta.url), ...args], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const seen = { last: '', cases: 0, hung: false };
  let timer: NodeJS.Timeout | undefined;
  const expectMore = (): void => {
    clearTimeout(timer);
    timer = setTimeout(() => {
      seen.hung = true;
      child.kill('SIGKILL');
    }, CASE_LIMIT_MS);
  };
  child.stdout.setEncoding('latin1').on('data', (said: string) => {
    const numbers = said.trimEnd().split('\n');
    seen.last = numbers.at(-1)!;
    seen.cases += numbers.length;
    expectMore();
  });
  const code = await new Promise<number | null>((resolve) => child.on('close', resolve));
  clearTimeout(timer);
  const { last, hung } = seen;
  if (code === 0 && !hung) {
    console.log(`${name}: ${seen.cases} cases, no failure`);
    return true;
  }
  console.log(
    `${name}: case ${last} ${hung ? `took longer than ${CASE_LIMIT_MS / 1000} s` : 'failed'}; to have it again:`,
  );
  console.log(`  npm run fuzz -- --time 0 --target ${name} --seed ${last}`);
  return false;
}

if (values.child !== undefined) await runCases(values.child);
else {
  const names = values.target === undefined ? Object.keys(TARGETS) : [values.target];
  const unknown = names.find((name) => !Object.hasOwn(TARGETS, name));
  if (unknown !== undefined) {
    console.error(`There is no target "${unknown}": say ${Object.keys(TARGETS).join(', ')}.`);
    process.exit(2);
  }
  // One after another: times are then those of one parser.
  for (const name of names) if (!(await watch(name, Number(values.time) / names.length))) process.exitCode = 1;
}
