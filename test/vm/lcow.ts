/** Runs the built `lcow` command as a user would, on a data root of its own. */
import { spawn, type ChildProcess } from 'node:child_process';
import { mkdtemp, readdir, rm } from 'node:fs/promises';
import { existsSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { buffer } from 'node:stream/consumers';
import { processesNaming, runningProcesses } from '../support/processes.js';

const repository = new URL('../..', import.meta.url).pathname;
/** The built command. */
export const program = join(repository, 'dist/cli/main.js');

/** The folder of a test image, an OCI layout. */
export const imageFolder = (name: string): string => join(repository, 'test/images/out', name);

export interface Result {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly stdout: string;
  readonly stderr: string;
}

export interface RunOptions {
  readonly input?: string | Uint8Array;
  readonly env?: NodeJS.ProcessEnv;
}

/** A data root with the command bound to it. */
export class Sandbox {
  readonly folder: string;
  readonly env: NodeJS.ProcessEnv;

  private constructor(folder: string) {
    this.folder = folder;
    this.env = {
      ...process.env,
      LCOW_ROOT: join(folder, 'root'),
      LCOW_RUNTIME_DIR: join(folder, 'run'),
      NO_COLOR: '1',
    };
  }

  /** @param images names of test images to import */
  static async make(...images: string[]): Promise<Sandbox> {
    const sandbox = new Sandbox(await mkdtemp(join(tmpdir(), 'lcow-vm-')));
    for (const name of images) await sandbox.ok('image', 'import', '--name', name, imageFolder(name));
    return sandbox;
  }

  start(args: readonly string[], options: RunOptions & { stdio?: 'pipe' } = {}): ChildProcess {
    return spawn(process.execPath, [program, ...args], { env: { ...this.env, ...options.env }, stdio: 'pipe' });
  }

  async run(args: readonly string[], options: RunOptions = {}): Promise<Result> {
    const child = this.start(args, options);
    // A command that exits without reading its input breaks the pipe; its exit code tells the story.
    child.stdin!.on('error', () => undefined);
    child.stdin!.end(options.input ?? '');
    return finished(child);
  }

  /** Runs a command that must succeed; answers its standard output. */
  async ok(...args: string[]): Promise<string> {
    const result = await this.run(args);
    if (result.code !== 0) throw new Error(`lcow ${args.join(' ')} failed: ${JSON.stringify(result, null, 1)}`);
    return result.stdout;
  }

  /** QEMU processes, sockets, partial files that are left of this data root. */
  async leftovers(): Promise<string[]> {
    const left = (await processesNaming(this.folder)).map((command) => `process ${command}`);
    const visit = async (folder: string): Promise<void> => {
      for (const entry of await readdir(folder, { withFileTypes: true })) {
        const path = join(folder, entry.name);
        if (entry.isSocket() || /\.partial$|-removing$|^\.(new|removing)-|\.lock(\.|$)/.test(entry.name))
          left.push(path);
        if (entry.isDirectory()) await visit(path);
      }
    };
    await visit(this.folder);
    for (const folder of ['vm', 'c'])
      if (existsSync(join(this.folder, 'run', folder)))
        left.push(...(await readdir(join(this.folder, 'run', folder))).map((name) => `run/${folder}/${name}`));
    return left;
  }

  async remove(): Promise<void> {
    await rm(this.folder, { recursive: true, force: true });
  }
}

/** Waits for a child and gathers its outputs. */
export async function finished(child: ChildProcess): Promise<Result> {
  const exit = new Promise<Pick<Result, 'code' | 'signal'>>((resolve) =>
    child.once('close', (code, signal) => resolve({ code, signal })),
  );
  const [stdout, stderr] = await Promise.all([buffer(child.stdout!), buffer(child.stderr!)]);
  return { ...(await exit), stdout: stdout.toString(), stderr: stderr.toString() };
}

/** Pids of the QEMUs of a data root. */
export async function qemuPids(sandbox: Sandbox): Promise<number[]> {
  const running = await runningProcesses(sandbox.folder);
  return running.filter(({ command }) => command.includes('qemu-system')).map(({ pid }) => pid);
}

/** Looks again and again until something is so; for what has no event to wait on. */
export async function eventually<T>(
  look: () => Promise<T | undefined | false>,
  what: string,
  limitMs = 60_000,
): Promise<T> {
  const limit = Date.now() + limitMs;
  for (;;) {
    const seen = await look();
    if (seen) return seen;
    if (Date.now() > limit) throw new Error(`${what} did not happen within ${limitMs / 1000} s`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}
