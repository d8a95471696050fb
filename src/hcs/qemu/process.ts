import { execFile, spawn, type ChildProcess, type StdioOptions } from 'node:child_process';
import { once } from 'node:events';
import { open } from 'node:fs/promises';
import type { Socket } from 'node:net';
import { finished } from 'node:stream/promises';
import { LcowError, errorMessage } from '../../errors/index.js';
import { identityOf, type ProcessIdentity } from '../../state/index.js';
import { MONITOR_FD } from './arguments.js';
import type { QemuBinary } from './binary.js';
import { TailBuffer, printable } from './console.js';

const STDERR_TAIL_BYTES = 16 << 10;

/** How a QEMU process ended. */
export interface QemuExit {
  readonly exitCode: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly stderr: string;
}

/** A running QEMU. */
export interface QemuProcess {
  readonly identity: ProcessIdentity;
  /** QMP, over a socket pair made at the start: it is there before QEMU runs, and nobody else has it. */
  readonly monitor: Socket;
  /** Resolves when the process has ended and all it wrote has been read. */
  readonly exited: Promise<QemuExit>;
  kill(): void;
  /** Lets this process end without waiting for QEMU. */
  release(): void;
}

/**
 * Starts QEMU. Where the kernel can do it, QEMU dies with its owner: `setpriv --pdeathsig` asks for SIGKILL when the
 * thread that spawned it ends, so this must not be called from a worker thread that ends early.
 * @param detachedLog When given, QEMU lives on without its owner, and logs to this file.
 * @throws LcowError QEMU_FAILED.
 */
export async function startQemu(
  binary: QemuBinary,
  args: readonly string[],
  detachedLog?: string,
): Promise<QemuProcess> {
  const detached = detachedLog !== undefined;
  const prefix = detached ? [] : await deathSignalPrefix();
  const [command = binary.path, ...rest] = [...prefix, binary.path, ...args];
  const log = detached ? await open(detachedLog, 'wx', 0o600) : undefined;
  try {
    const stdio: StdioOptions = ['ignore', 'ignore', log ? log.fd : 'pipe', 'pipe'];
    const child = spawn(command, rest, {
      stdio,
      // A session of its own, so that Ctrl-C and a closing terminal reach the owner alone: QEMU would end the guest at once.
      detached: true,
      // Messages in English, since some are understood; nothing else of the caller's environment is QEMU's business.
      env: {
        PATH: process.env['PATH'] ?? '',
        LC_ALL: 'C',
        ...(process.env['TMPDIR'] ? { TMPDIR: process.env['TMPDIR'] } : {}),
      },
    });
    const stderr = new TailBuffer(STDERR_TAIL_BYTES);
    child.stderr?.on('data', (chunk: Buffer) => stderr.push(chunk));
    const exited = endOf(child, async () => printable(detached ? await tailOf(detachedLog) : stderr.bytes()));
    try {
      await once(child, 'spawn');
    } catch (cause) {
      throw new LcowError('QEMU_FAILED', `${command} cannot be started: ${errorMessage(cause)}.`, { cause });
    }
    const pid = child.pid ?? 0;
    return {
      identity: identityOf(pid) ?? { pid, startTime: 0 },
      monitor: child.stdio[MONITOR_FD] as Socket,
      exited,
      kill: () => {
        child.kill('SIGKILL');
      },
      release: () => {
        child.unref();
      },
    };
  } finally {
    await log?.close();
  }
}

async function endOf(child: ChildProcess, stderr: () => Promise<string>): Promise<QemuExit> {
  const [exitCode, signal] = await new Promise<[number | null, NodeJS.Signals | null]>((resolve) => {
    child.once('exit', (code, by) => resolve([code, by]));
    child.once('error', () => resolve([null, null]));
  });
  // The pipes end with the process; what is still in them counts.
  const pipes = child.stdio.filter((pipe) => pipe !== null && pipe !== undefined);
  await Promise.allSettled(pipes.map((pipe) => finished(pipe)));
  return { exitCode, signal, stderr: await stderr() };
}

async function tailOf(path: string): Promise<Buffer> {
  try {
    const file = await open(path, 'r');
    try {
      const { size } = await file.stat();
      const length = Math.min(size, STDERR_TAIL_BYTES);
      const { buffer, bytesRead } = await file.read(Buffer.alloc(length), 0, length, size - length);
      return buffer.subarray(0, bytesRead);
    } finally {
      await file.close();
    }
  } catch {
    // Only words for an error report: its loss must not hide the exit itself.
    return Buffer.alloc(0);
  }
}

let prefix: Promise<string[]> | undefined;

/** util-linux' setpriv in front of a command; nothing where there is none that knows --pdeathsig (busybox, other systems). */
export function deathSignalPrefix(): Promise<string[]> {
  if (process.platform !== 'linux') return Promise.resolve([]);
  prefix ??= new Promise((resolve) => {
    const words = ['setpriv', '--pdeathsig', 'KILL', '--'];
    execFile(words[0]!, [...words.slice(1), 'true'], { timeout: 5000 }, (error) => resolve(error ? [] : words));
  });
  return prefix;
}
