import type { Readable, Writable } from 'node:stream';
import { LcowError } from '../errors/index.js';
import type { Container, OciProcess, Process, ProcessConfig, ProcessHost } from '../gcs/index.js';
import { copyBytes, CopyError } from './copy.js';

/** Bytes per standard handle (seed: ByteCounts). */
export interface ByteCounts {
  In: number;
  Out: number;
  Err: number;
}

/** Options of {@link createProcess} (seed: ProcessOptions). */
export interface ProcessOptions {
  /** The container, or the utility VM, in which the process is started. */
  hcsSystem: ProcessHost;
  /** The OCI process; undefined starts the init process of a created container. */
  process?: OciProcess;
  /** Sent on to the stdin of the process, which is closed at its end. */
  stdin?: Readable;
  /** Gets the stdout of the process; is not ended. */
  stdout?: Writable;
  /** Gets the stderr of the process; is not ended. */
  stderr?: Writable;
  /** Limit for all the copying, in milliseconds; 0 or undefined is none. */
  copyTimeoutMs?: number;
  /** The host is a utility VM, in which there is no init process to start. */
  createInUtilityVm?: boolean;
  /** How much to copy on each stream that is given; 0 or undefined means to its end. */
  byteCounts?: Partial<ByteCounts>;
}

/** The search path of a process whose environment has none. */
export const DEFAULT_PATH = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin';

/**
 * Starts a process and copies its streams; returns when the copies are done, which is not the exit of the process. The
 * caller waits for that and closes the process (seed: CreateProcess).
 *
 * Deliberate differences from hcsshim v0.8.0: the streams are copied at the same time, so that a full pipe cannot block
 * another; the caps are applied, and what comes after them can still be read from the process' streams; arguments reach
 * the process as they are; empty environment values are kept; no time limit means none; when a copy fails, the process
 * is killed and closed.
 *
 * @throws LcowError INVALID_ARGUMENT; TIMED_OUT after `copyTimeoutMs`; what the guest says; the error of a stream.
 */
export async function createProcess(opts: ProcessOptions): Promise<{ process: Process; byteCounts: ByteCounts }> {
  const { stdin, stdout, stderr } = opts;
  if (opts.createInUtilityVm && !opts.process)
    throw new LcowError('INVALID_ARGUMENT', 'A process in a utility VM needs a process specification.');
  const process = await start(opts);
  const streams = process.stdio();
  for (const stream of [streams.stdin, streams.stdout, streams.stderr]) stream?.on('error', () => {});

  const byteCounts: ByteCounts = { In: 0, Out: 0, Err: 0 };
  const caps = { In: 0, Out: 0, Err: 0, ...opts.byteCounts };
  const stop = new AbortController();
  const inputStop = new AbortController();
  const count =
    (stream: keyof ByteCounts): ((bytes: number) => void) =>
    (bytes) =>
      (byteCounts[stream] += bytes);
  const copyOut = (from: Readable | undefined, to: Writable | undefined, stream: keyof ByteCounts): Promise<unknown> =>
    from && to
      ? copyBytes(from, to, { limitBytes: caps[stream], signal: stop.signal, onBytes: count(stream) })
      : Promise.resolve();
  const copyIn = async (to: Writable, from: Readable): Promise<void> => {
    try {
      const signal = AbortSignal.any([stop.signal, inputStop.signal]);
      await copyBytes(from, to, { limitBytes: caps.In, signal, onBytes: count('In') });
    } catch (error) {
      if (stop.signal.aborted) throw error;
      // A process that does not read to the end, or has ended, is no failure.
      if (!inputStop.signal.aborted && !(error instanceof CopyError && error.side === 'sink')) throw error;
    } finally {
      if (!to.destroyed && !to.writableEnded) to.end();
    }
  };

  const timer = opts.copyTimeoutMs
    ? setTimeout(() => {
        stop.abort(
          new LcowError('TIMED_OUT', `The streams of a process were not copied within ${opts.copyTimeoutMs!} ms.`),
        );
      }, opts.copyTimeoutMs)
    : undefined;
  try {
    const input = streams.stdin && stdin ? copyIn(streams.stdin, stdin) : Promise.resolve();
    const outputs = Promise.all([copyOut(streams.stdout, stdout, 'Out'), copyOut(streams.stderr, stderr, 'Err')]);
    // A process that has exited is not fed any more; why its end is not known is for the caller's own wait to tell.
    const exited = (): void => {
      inputStop.abort();
    };
    process.wait().then(exited, exited);
    await Promise.all([input, outputs]);
    return { process, byteCounts };
  } catch (error) {
    stop.abort();
    await process.kill().catch(() => {});
    await process.close().catch(() => {});
    throw error instanceof CopyError ? error.cause : error;
  } finally {
    clearTimeout(timer);
  }
}

async function start({ hcsSystem, process, stdin, stdout, stderr }: ProcessOptions): Promise<Process> {
  if (!process) {
    if (!('init' in hcsSystem))
      throw new LcowError('INVALID_ARGUMENT', 'A process in a utility VM needs a process specification.');
    const container = hcsSystem as Container;
    await container.start();
    return container.init;
  }
  const env = process.env ?? [];
  const config: ProcessConfig = {
    process: {
      ...process,
      cwd: process.cwd || '/',
      env: env.some((entry) => entry.startsWith('PATH=')) ? env : [...env, `PATH=${DEFAULT_PATH}`],
    },
    stdin: stdin !== undefined,
    stdout: stdout !== undefined,
    stderr: stderr !== undefined,
  };
  return hcsSystem.createProcess(config);
}
