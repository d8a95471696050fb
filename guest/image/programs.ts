import { spawn } from 'node:child_process';
import type { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';

/** What a program is needed for and where to get it, for the message when it is not there. */
const PACKAGE_OF: Readonly<Record<string, string>> = { xz: 'xz-utils' };

export interface RunOptions {
  readonly env?: NodeJS.ProcessEnv;
  readonly cwd?: string;
  /** Fed to the program's standard input; nothing when absent. */
  readonly input?: Readable;
}

/**
 * Starts a program (an argument vector, never a shell) and hands its standard output to `take`.
 * @throws Error when it is missing or fails, with what it wrote to standard error.
 */
export async function pipeThrough<T>(
  program: string,
  args: readonly string[],
  take: (output: Readable) => Promise<T>,
  options: RunOptions = {},
): Promise<T> {
  const child = spawn(program, args, {
    stdio: ['pipe', 'pipe', 'pipe'],
    env: options.env ?? process.env,
    cwd: options.cwd,
  });
  let complaints = '';
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    complaints = (complaints + text).slice(-8192);
  });
  const ended = new Promise<void>((resolve, reject) => {
    child.once('error', (error: NodeJS.ErrnoException) => {
      if (error.code !== 'ENOENT') {
        reject(error);
        return;
      }
      const where = PACKAGE_OF[program];
      reject(new Error(`The program ${program} is not installed${where ? ` (Debian package ${where})` : ''}.`));
    });
    child.once('close', (code, signal) => {
      if (code === 0) resolve();
      else reject(new Error(`${program} ended with ${signal ?? `exit code ${code}`}: ${complaints.trim()}`));
    });
  });
  // A reader that ends early closes the pipe: the failure of the program itself is the better story.
  const fed = options.input ? pipeline(options.input, child.stdin).catch(() => {}) : Promise.resolve(child.stdin.end());
  const taken = take(child.stdout);
  taken.catch(() => child.kill());
  const [endedResult, takenResult] = await Promise.allSettled([ended, taken, fed]);
  if (takenResult.status === 'rejected' && child.killed) throw takenResult.reason;
  if (endedResult.status === 'rejected') throw endedResult.reason;
  if (takenResult.status === 'rejected') throw takenResult.reason;
  return takenResult.value;
}

/** Runs a program and returns its standard output. */
export async function run(program: string, args: readonly string[], options: RunOptions = {}): Promise<Buffer> {
  return pipeThrough(program, args, collect, options);
}

/** The whole of a stream in memory. */
export async function collect(stream: AsyncIterable<unknown>): Promise<Buffer> {
  const chunks: Buffer[] = [];
  for await (const chunk of stream) chunks.push(chunk as Buffer);
  return Buffer.concat(chunks);
}
