import { Readable, Writable } from 'node:stream';
import { LcowError } from '../errors/index.js';
import type { Container, OciProcess, Process, ProcessConfig, ProcessHost } from '../gcs/index.js';
import { copyBytes, CopyError } from '../lcow/index.js';
import { throwIfAborted } from '../lifetime/index.js';
import { ExitError, ExitState } from './exit.js';

/** What {@link Cmd.output} keeps of a process' output; more is an error. */
const MAXIMUM_OUTPUT_BYTES = 64 * 2 ** 20;

/** What a {@link Cmd} is made of. */
export interface CmdOptions {
  /** Where the process is started: a container or a utility VM. */
  host: ProcessHost;
  /** The OCI process; undefined starts the init process of a container that has been created. */
  spec?: OciProcess | undefined;
  /** As docker's --user, resolved in the guest; overrides the user of the spec. */
  user?: string | undefined;
  /** Read in the background; its end closes the stdin of the process. */
  stdin?: Readable | AsyncIterable<Uint8Array | string> | undefined;
  /** Written to and not ended. */
  stdout?: Writable | undefined;
  /** Written to and not ended. With a terminal everything comes by stdout. */
  stderr?: Writable | undefined;
  /** Kills the process when it fires. */
  signal?: AbortSignal | undefined;
  /**
   * How long the relays of stdout and stderr may go on after the process has exited, in milliseconds; then they are cut.
   * A process left in the background may hold them open for ever. 0 waits without limit.
   */
  copyAfterExitTimeoutMs?: number | undefined;
}

/**
 * A process to be started or running in a container or utility VM, with its streams relayed (seed: hcsoci.Cmd).
 *
 * Relays run at the same time with back-pressure. A reader that goes away breaks the pipe of the process, as on one
 * machine, and is no error of the command; so is a process that does not read its stdin to the end.
 */
export class Cmd {
  readonly host: ProcessHost;
  spec: OciProcess | undefined;
  user: string | undefined;
  stdin: CmdOptions['stdin'];
  stdout: Writable | undefined;
  stderr: Writable | undefined;
  readonly signal: AbortSignal | undefined;
  copyAfterExitTimeoutMs: number;

  /** The process, once {@link start} has returned. */
  process: Process | undefined;
  /** How the process ended, once {@link wait} has returned or thrown. */
  exitState: ExitState | undefined;

  #relays: Promise<void>[] = [];
  #stdinRelay: Promise<void> = Promise.resolve();
  readonly #stopStdin = new AbortController();
  readonly #cutRelays = new AbortController();
  #onAbort: (() => void) | undefined;
  #waited = false;

  constructor(options: CmdOptions) {
    this.host = options.host;
    this.spec = options.spec;
    this.user = options.user;
    this.stdin = options.stdin;
    this.stdout = options.stdout;
    this.stderr = options.stderr;
    this.signal = options.signal;
    this.copyAfterExitTimeoutMs = options.copyAfterExitTimeoutMs ?? 0;
  }

  /**
   * Starts the process and the relays. After it {@link wait} must be called.
   * @throws LcowError CANCELLED when the signal had fired, with nothing started; INVALID_STATE when called twice; what
   * the guest says, e.g. COMMAND_NOT_FOUND.
   */
  async start(): Promise<void> {
    if (this.process) throw new LcowError('INVALID_STATE', 'A command can be started only once.');
    throwIfAborted(this.signal);
    const process = this.spec ? await this.#launch(this.spec) : initOf(this.host);
    this.process = process;
    this.#relay(process);
    if (this.signal) {
      this.#onAbort = () => {
        // What became of the process is known from wait; a guest that is gone has killed it as well.
        process.kill().catch(() => {});
      };
      this.signal.addEventListener('abort', this.#onAbort);
      if (this.signal.aborted) this.#onAbort();
    }
    if (!this.spec) {
      try {
        await (this.host as Container).start();
      } catch (error) {
        await this.#abandon(process);
        throw error;
      }
    }
  }

  /**
   * Waits for the process and its output, and closes it. May be called once.
   * @throws The first of: why the exit code is not known; {@link ExitError}; the first failed relay of an output;
   * the failed relay of the input.
   */
  async wait(): Promise<void> {
    const process = this.process;
    if (!process) throw new LcowError('INVALID_STATE', 'A command that was not started cannot be waited for.');
    if (this.#waited) throw new LcowError('INVALID_STATE', 'A command can be waited for only once.');
    this.#waited = true;

    const failures: unknown[] = [];
    let state = new ExitState(-1);
    try {
      const { exitCode, oomKilled } = await process.wait();
      state = new ExitState(exitCode, oomKilled);
      if (exitCode !== 0) failures.push(new ExitError(state));
    } catch (error) {
      failures.push(error);
      // Without its end known, nothing says that the output will end.
      this.#cutRelays.abort();
    }
    if (this.#onAbort) this.signal?.removeEventListener('abort', this.#onAbort);
    this.#stopStdin.abort();

    const timer =
      this.copyAfterExitTimeoutMs > 0
        ? setTimeout(() => {
            this.#cutRelays.abort();
          }, this.copyAfterExitTimeoutMs)
        : undefined;
    const relays = [...this.#relays, this.#stdinRelay];
    for (const relay of await Promise.allSettled(relays)) if (relay.status === 'rejected') failures.push(relay.reason);
    clearTimeout(timer);

    await process.close().catch((error: unknown) => failures.push(error));
    this.exitState = state;
    if (failures.length > 0) throw failures[0];
  }

  /** {@link start}, then {@link wait}. */
  async run(): Promise<void> {
    await this.start();
    await this.wait();
  }

  /**
   * Runs the process and returns its stdout, at most 64 MiB. An {@link ExitError} has in `stdout` what came before.
   * @throws As {@link run}; LcowError INVALID_STATE when stdout is set, or for more output.
   */
  async output(): Promise<Buffer> {
    if (this.stdout) throw new LcowError('INVALID_STATE', 'The output of a command with a stdout cannot be captured.');
    const chunks: Buffer[] = [];
    let bytes = 0;
    let tooMuch: LcowError | undefined;
    this.stdout = new Writable({
      write(chunk: Buffer, _encoding, done) {
        bytes += chunk.length;
        if (bytes > MAXIMUM_OUTPUT_BYTES)
          tooMuch = new LcowError('INVALID_STATE', `The command wrote more than ${MAXIMUM_OUTPUT_BYTES} bytes.`);
        else chunks.push(chunk);
        done(tooMuch);
      },
    });
    try {
      await this.run();
    } catch (error) {
      // The pipe of the process broke because of it, so that its exit code says nothing more.
      if (tooMuch) throw tooMuch;
      if (error instanceof ExitError) error.stdout = Buffer.concat(chunks);
      throw error;
    }
    return Buffer.concat(chunks);
  }

  async #launch(spec: OciProcess): Promise<Process> {
    const config: ProcessConfig = {
      process: spec,
      stdin: this.stdin !== undefined,
      stdout: this.stdout !== undefined,
      stderr: this.stderr !== undefined && !spec.terminal,
    };
    if (this.user !== undefined) config.user = this.user;
    if (spec.terminal && spec.consoleSize)
      config.consoleSize = { rows: spec.consoleSize.height, columns: spec.consoleSize.width };
    return this.host.createProcess(config, this.signal ? { signal: this.signal } : {});
  }

  #relay(process: Process): void {
    const { stdin, stdout, stderr } = process.stdio();
    // An error that comes when no relay listens any more has been told by wait.
    for (const stream of [stdin, stdout, stderr]) stream?.on('error', () => {});
    if (stdin) this.#stdinRelay = this.#relayInput(this.stdin ?? Readable.from([]), stdin);
    if (stdout) this.#relays.push(this.#relayOutput(stdout, this.stdout ?? nowhere()));
    if (stderr) this.#relays.push(this.#relayOutput(stderr, this.stderr ?? nowhere()));
    // Failures are looked at in wait; until then they must not count as unhandled.
    for (const relay of [...this.#relays, this.#stdinRelay]) relay.catch(() => {});
  }

  async #relayInput(from: NonNullable<CmdOptions['stdin']>, to: Writable): Promise<void> {
    const source = from instanceof Readable ? from : Readable.from(from);
    try {
      await copyBytes(source, to, { signal: this.#stopStdin.signal });
    } catch (error) {
      // Only the caller's own stream can fail a command: a process need not read its stdin to the end, and a broken
      // connection is told by its wait.
      if (error instanceof CopyError && error.side === 'source') throw error.cause;
    } finally {
      if (source !== from) source.destroy();
      if (!to.destroyed && !to.writableEnded) to.end();
    }
  }

  async #relayOutput(from: Readable, to: Writable): Promise<void> {
    try {
      await copyBytes(from, to, { signal: this.#cutRelays.signal });
    } catch (error) {
      // With an error: the process then gets SIGPIPE, as from a pipe whose reader has gone. Without one it would go on.
      from.destroy(new Error('The reader of the output has gone.'));
      if (this.#cutRelays.signal.aborted) throw lateRelay(this.copyAfterExitTimeoutMs);
      if (!(error instanceof CopyError)) throw error;
      if (error.side === 'sink' && isBrokenPipe(error.cause)) return;
      throw error.cause;
    }
  }

  /** Ends the relays of a process that never ran. */
  async #abandon(process: Process): Promise<void> {
    if (this.#onAbort) this.signal?.removeEventListener('abort', this.#onAbort);
    this.#stopStdin.abort();
    this.#cutRelays.abort();
    await Promise.allSettled([...this.#relays, this.#stdinRelay]);
    await process.close().catch(() => {});
  }
}

function initOf(host: ProcessHost): Process {
  if (!('init' in host))
    throw new LcowError('INVALID_ARGUMENT', 'A command in a utility VM needs a process specification.');
  return (host as Container).init;
}

function nowhere(): Writable {
  return new Writable({
    write(_chunk, _encoding, done) {
      done();
    },
  });
}

function lateRelay(limitMs: number): LcowError {
  return new LcowError(
    'TIMED_OUT',
    `The output of the process was still open ${limitMs} ms after its exit and was cut: another process holds it.`,
  );
}

function isBrokenPipe(error: unknown): boolean {
  const code = (error as NodeJS.ErrnoException | undefined)?.code;
  return (
    code === 'EPIPE' ||
    code === 'ECONNRESET' ||
    code === 'ERR_STREAM_DESTROYED' ||
    code === 'ERR_STREAM_PREMATURE_CLOSE'
  );
}
