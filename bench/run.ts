/**
 * `npm run bench [-- --write] [names…]`: measures, beside a floor or a peer in the same rounds, and prints one table. With --write the
 * table goes into docs/benchmarks.md, with the machine and the date.
 */
import { readFile, writeFile } from 'node:fs/promises';
import { cpus, totalmem } from 'node:os';
import Table from 'cli-table3';
import { benchDisk } from './disk.js';
import { benchRun } from './container.js';
import { benchScratch } from './scratch.js';
import { benchStart } from './start.js';
import type { BenchRow } from './table.js';

const BENCHES: Readonly<Record<string, () => Promise<BenchRow[]>>> = {
  start: benchStart,
  run: benchRun,
  disk: benchDisk,
  scratch: benchScratch,
};

const write = process.argv.includes('--write');
const names = process.argv.slice(2).filter((argument) => !argument.startsWith('--'));
const unknown = names.find((name) => !(name in BENCHES));
if (unknown !== undefined) throw new Error(`There is no benchmark "${unknown}": ${Object.keys(BENCHES).join(', ')}.`);

const rows: BenchRow[] = [];
for (const [name, bench] of Object.entries(BENCHES)) {
  if (names.length > 0 && !names.includes(name)) continue;
  console.error(`bench: ${name}`);
  rows.push(...(await bench()));
}

const figure = (value: number): string => (value >= 100 ? value.toFixed(0) : value.toPrecision(3));
const cells = rows.map((row) => [
  row.name,
  `${figure(row.value)} ${row.unit}`,
  row.floorName,
  `${figure(row.floorValue)} ${row.unit}`,
  `${row.ratio.toFixed(2)}×`,
]);
const heads = ['what', 'ours', 'beside', 'that', 'ratio'];
const table = new Table({ head: heads, style: { head: [], border: [] } });
table.push(...cells);
console.log(table.toString());

if (write) {
  const page = new URL('../docs/benchmarks.md', import.meta.url);
  const text = await readFile(page, 'utf8');
  const machine = `${cpus().length} × ${cpus()[0]?.model.trim() ?? '?'}, ${Math.round(totalmem() / 2 ** 30)} GiB, Node ${process.versions.node}`;
  const markdown = [
    `Measured ${new Date().toISOString().slice(0, 10)} on ${machine}, emulation (TCG) unless the host has a working accelerator.`,
    '',
    `| ${heads.join(' | ')} |`,
    `|${'---|'.repeat(heads.length)}`,
    ...cells.map((row) => `| ${row.join(' | ')} |`),
  ].join('\n');
  const marks = /<!-- figures -->[\s\S]*<!-- \/figures -->/;
  await writeFile(page, text.replace(marks, `<!-- figures -->\n${markdown}\n<!-- /figures -->`));
}
