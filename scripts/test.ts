// Runs every check, then every test, and ends with the line "N passed, N failed", with ", N skipped" when there are some.
import { spawnSync, type SpawnSyncOptions } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { goEnvironment, goToolchain, requiredGo } from '../guest/image/go-toolchain.js';

const root = new URL('..', import.meta.url).pathname;
const bin = (name: string): string => join(root, 'node_modules/.bin', name);
let passed = 0;
let failed = 0;
let skipped = 0;

function check(title: string, command: string, args: string[], options: SpawnSyncOptions = {}): void {
  console.error(`\n== ${title}`);
  const begin = Date.now();
  const { status } = spawnSync(command, args, { cwd: root, stdio: 'inherit', ...options });
  console.error(`   ${status === 0 ? 'ok' : 'FAILED'} (${((Date.now() - begin) / 1000).toFixed(1)} s)`);
  if (status === 0) passed += 1;
  else failed += 1;
}

interface VitestReport {
  readonly numPassedTests: number;
  readonly numFailedTests: number;
  readonly numPendingTests: number;
}

function vitest(project: string): void {
  console.error(`\n== vitest: ${project}`);
  const folder = mkdtempSync(join(tmpdir(), 'lcow-vitest-'));
  const report = join(folder, 'report.json');
  const { status } = spawnSync(
    bin('vitest'),
    [
      ...['run', '--project', project, '--reporter=default', '--reporter=./scripts/skips-reporter.ts'],
      ...['--reporter=json', `--outputFile.json=${report}`],
    ],
    { cwd: root, stdio: 'inherit' },
  );
  try {
    const result = JSON.parse(readFileSync(report, 'utf8')) as VitestReport;
    passed += result.numPassedTests;
    failed += result.numFailedTests;
    skipped += result.numPendingTests;
    // A file that fails to load, or an error outside a test, counts as well.
    if (status !== 0 && result.numFailedTests === 0) failed += 1;
  } catch (error) {
    console.error(`vitest left no report: ${String(error)}`);
    failed += 1;
  }
  rmSync(folder, { recursive: true });
}

interface GoEvent {
  readonly Action: string;
  readonly Package: string;
  readonly Test?: string;
  readonly Output?: string;
}

async function goTest(): Promise<void> {
  console.error('\n== go test');
  const agent = join(root, 'guest/agent');
  const { program: go } = await goToolchain(await requiredGo(join(agent, 'go.mod')), console.error);
  const env = goEnvironment();
  check('go vet', go, ['vet', './...'], { cwd: agent, env });
  const result = spawnSync(go, ['test', '-json', './...'], { cwd: agent, env, encoding: 'utf8', maxBuffer: 256 << 20 });
  const outputs = new Map<string, string>();
  let failedTests = 0;
  for (const line of result.stdout.split('\n')) {
    if (!line.startsWith('{')) continue;
    const event = JSON.parse(line) as GoEvent;
    const key = `${event.Package} ${event.Test ?? ''}`;
    if (event.Action === 'output') outputs.set(key, (outputs.get(key) ?? '') + (event.Output ?? ''));
    if (!event.Test) continue;
    if (event.Action === 'pass') passed += 1;
    if (event.Action === 'skip') skipped += 1;
    if (event.Action === 'fail') {
      failedTests += 1;
      console.error(`--- ${key}\n${outputs.get(key) ?? ''}`);
    }
  }
  if (result.status !== 0 && failedTests === 0) {
    failedTests = 1;
    console.error(`go test failed:\n${[...outputs.values()].join('')}${result.stderr}`);
  }
  failed += failedTests;
}

const only = process.argv[2];
if (!only || only === 'checks') {
  check('format', bin('prettier'), ['--check', '--log-level=warn', '.']);
  check('types', bin('tsc'), ['-p', 'tsconfig.json']);
  check('lint', bin('eslint'), ['.']);
  check('layers', bin('depcruise'), ['--config', '.dependency-cruiser.mjs', 'src', 'guest/image', 'bench']);
  check('generated messages', process.execPath, ['scripts/proto.mjs', '--check']);
}
if (!only || only === 'agent') await goTest();
if (!only || only === 'unit') vitest('unit');
if (!only || only === 'vm') vitest('vm');

console.log(`\n${passed} passed, ${failed} failed${skipped > 0 ? `, ${skipped} skipped` : ''}`);
process.exitCode = failed === 0 && passed > 0 ? 0 : 1;
