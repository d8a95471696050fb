import { once } from 'node:events';
import { PassThrough, Readable, Writable } from 'node:stream';
import { setImmediate } from 'node:timers/promises';
import { describe, expect, it } from 'vitest';
import { LcowError } from '../errors/index.js';
import type { Process, ProcessConfig, ProcessExit, ProcessHost } from '../gcs/index.js';
import { Cmd, command, commandContext, ExitError } from './index.js';

interface Streams {
  stdin: PassThrough;
  stdout: PassThrough;
  stderr: PassThrough;
  /** Settles when the process is killed. */
  killed: Promise<unknown>;
}

/** A process whose program is a function; its exit code is what the function returns. */
class FakeProcess implements Process {
  readonly pid = 1;
  readonly execId = 'fake';
  closed = false;
  readonly #streams = { stdin: new PassThrough(), stdout: new PassThrough(), stderr: new PassThrough() };
  readonly #exit: Promise<ProcessExit>;
  #kill!: () => void;

  constructor(
    readonly config: ProcessConfig,
    program: (streams: Streams) => Promise<number>,
  ) {
    const killed = new Promise<void>((resolve) => (this.#kill = resolve));
    this.#exit = Promise.race([program({ ...this.#streams, killed }), killed.then(() => 137)]).then((exitCode) => ({
      exitCode,
      exitedAt: new Date(0),
      oomKilled: false,
    }));
    this.#exit.catch(() => {});
  }

  stdio(): ReturnType<Process['stdio']> {
    const { stdin, stdout, stderr } = this.#streams;
    return {
      ...(this.config.stdin ? { stdin } : {}),
      ...(this.config.stdout ? { stdout } : {}),
      ...(this.config.stderr ? { stderr } : {}),
    };
  }
  async signal(): Promise<boolean> {
    this.#kill();
    return true;
  }
  async kill(): Promise<void> {
    this.#kill();
    this.#streams.stdout.end();
    this.#streams.stderr.end();
  }
  async resizeConsole(): Promise<void> {}
  wait(): Promise<ProcessExit> {
    return this.#exit;
  }
  async close(): Promise<void> {
    this.closed = true;
  }
}

function hostOf(program: (streams: Streams) => Promise<number>): ProcessHost & { started: FakeProcess[] } {
  const started: FakeProcess[] = [];
  return {
    os: 'linux',
    isOci: true,
    started,
    createProcess: async (config) => {
      const process = new FakeProcess(config, program);
      started.push(process);
      return process;
    },
  };
}

/** Ends both outputs and returns the code, as a process does at its exit. */
function exit({ stdout, stderr }: Streams, code: number): number {
  stdout.end();
  stderr.end();
  return code;
}

/** Waits until the host has broken the pipe, which it says by an error. */
async function broken(stream: PassThrough): Promise<void> {
  await new Promise((resolve) => stream.once('close', resolve));
  expect(stream.errored).not.toBeNull();
}

const cat = async (streams: Streams): Promise<number> => {
  for await (const chunk of streams.stdin) if (!streams.stdout.write(chunk)) await once(streams.stdout, 'drain');
  return exit(streams, 0);
};

const spec = { args: ['program'], cwd: '/', env: [], user: { uid: 0, gid: 0 } };

describe('a command', () => {
  it('gives the program, its arguments as they are, and the default environment', async () => {
    const host = hostOf(async (streams) => exit(streams, 0));
    await command(host, 'echo', 'a b', '"c"', '').run();
    expect(host.started[0]!.config.process).toMatchObject({
      args: ['echo', 'a b', '"c"', ''],
      cwd: '/',
      env: ['PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'],
    });
  });

  it('asks only for the streams it has, and for no stderr with a terminal', async () => {
    const host = hostOf(async (streams) => exit(streams, 0));
    const none = new Cmd({ host, spec });
    await none.run();
    const terminal = new Cmd({
      host,
      spec: { ...spec, terminal: true, consoleSize: { height: 24, width: 80 } },
      stdin: Readable.from([]),
      stdout: new PassThrough(),
      stderr: new PassThrough(),
    });
    await terminal.run();
    expect(
      host.started.map(({ config: { stdin, stdout, stderr, consoleSize } }) => [stdin, stdout, stderr, consoleSize]),
    ).toEqual([
      [false, false, false, undefined],
      [true, true, false, { rows: 24, columns: 80 }],
    ]);
  });

  it('copies stdin to the process, closes it at its end, and returns what the process wrote', async () => {
    const cmd = new Cmd({ host: hostOf(cat), spec, stdin: Readable.from([Buffer.from('some '), Buffer.from('data')]) });
    expect((await cmd.output()).toString()).toBe('some data');
    expect(cmd.exitState).toMatchObject({ exitCode: 0 });
  });

  it('takes any async iterable for stdin', async () => {
    const lines = async function* (): AsyncGenerator<string> {
      yield 'one\n';
      yield 'two\n';
    };
    expect((await new Cmd({ host: hostOf(cat), spec, stdin: lines() }).output()).toString()).toBe('one\ntwo\n');
  });

  it('relays stdout and stderr while stdin is still being fed, whichever pipe is full', async () => {
    const megabyte = Buffer.alloc(1 << 20, 'x');
    const host = hostOf(async (streams) => {
      for (const stream of [streams.stderr, streams.stdout]) if (!stream.write(megabyte)) await once(stream, 'drain');
      let read = 0;
      for await (const chunk of streams.stdin) read += (chunk as Buffer).length;
      return exit(streams, read === 2 * megabyte.length ? 0 : 1);
    });
    let err = 0;
    const stderr = new Writable({
      write(chunk: Buffer, _encoding, done) {
        err += chunk.length;
        done();
      },
    });
    const cmd = new Cmd({ host, spec, stderr, stdin: Readable.from([megabyte, megabyte]) });
    expect((await cmd.output()).length).toBe(megabyte.length);
    expect(err).toBe(megabyte.length);
  });

  it('throws the exit code, with the output that was captured', async () => {
    const host = hostOf(async (streams) => {
      streams.stdout.write('before');
      return exit(streams, 7);
    });
    const cmd = new Cmd({ host, spec });
    const error: unknown = await cmd.output().catch((failure: unknown) => failure);
    expect(error).toBeInstanceOf(ExitError);
    expect(error).toMatchObject({ code: 'PROCESS_FAILED', exitCode: 7, stdout: Buffer.from('before') });
    expect(cmd.exitState).toMatchObject({ exitCode: 7 });
    expect(host.started[0]!.closed).toBe(true);
  });

  it('says -1 when the exit code is not known, and why', async () => {
    const lost = new LcowError('GUEST_UNREACHABLE', 'The guest is gone.');
    const host = hostOf(async () => {
      await setImmediate();
      throw lost;
    });
    const cmd = new Cmd({ host, spec, stdout: new PassThrough() });
    await expect(cmd.run()).rejects.toBe(lost);
    expect(cmd.exitState).toMatchObject({ exitCode: -1 });
  });

  it('does not mind a process that leaves its stdin unread', async () => {
    const endless = new Readable({
      read() {
        void setImmediate().then(() => this.push(Buffer.alloc(4096)));
      },
    });
    const host = hostOf(async (streams) => {
      await once(streams.stdin, 'data');
      streams.stdin.destroy();
      await setImmediate();
      return exit(streams, 0);
    });
    await new Cmd({ host, spec, stdin: endless }).run();
    expect(endless.destroyed).toBe(false);
  });

  it('does not wait for a stdin that never ends', async () => {
    const silent = new PassThrough();
    await new Cmd({ host: hostOf(async (streams) => exit(streams, 0)), spec, stdin: silent }).run();
    expect([silent.destroyed, silent.listenerCount('data')]).toEqual([false, 0]);
  });

  it('fails when the caller’s stdin breaks, after closing the stdin of the process', async () => {
    const broken = new Error('broken');
    const stdin = new Readable({ read() {} });
    stdin.push('half');
    const cmd = new Cmd({ host: hostOf(cat), spec, stdin, stdout: new PassThrough() });
    await cmd.start();
    await setImmediate();
    stdin.destroy(broken);
    await expect(cmd.wait()).rejects.toBe(broken);
    expect(cmd.exitState).toMatchObject({ exitCode: 0 });
  });

  it('breaks the pipe of the process when the reader goes away, and reports only what the process makes of it', async () => {
    const host = hostOf(async (streams) => {
      streams.stdout.write('more and more');
      await broken(streams.stdout);
      return exit(streams, 141);
    });
    const gone = new Writable({
      write(_chunk, _encoding, done) {
        done(Object.assign(new Error('write EPIPE'), { code: 'EPIPE' }));
      },
    });
    gone.on('error', () => {});
    await expect(new Cmd({ host, spec, stdout: gone }).run()).rejects.toMatchObject({ exitCode: 141 });
  });

  it('reports a sink that fails, but the exit code before it', async () => {
    const full = Object.assign(new Error('no space'), { code: 'ENOSPC' });
    const sink = (): Writable => {
      const writable = new Writable({
        write(_chunk, _encoding, done) {
          done(full);
        },
      });
      return writable.on('error', () => {});
    };
    const host = (code: number): ProcessHost =>
      hostOf(async (streams) => {
        streams.stdout.write('data');
        await broken(streams.stdout);
        return exit(streams, code);
      });
    await expect(new Cmd({ host: host(0), spec, stdout: sink() }).run()).rejects.toBe(full);
    await expect(new Cmd({ host: host(3), spec, stdout: sink() }).run()).rejects.toMatchObject({ exitCode: 3 });
  });

  it('cuts an output that is held open after the exit, only when it has a limit', async () => {
    const host = hostOf(async (streams) => {
      streams.stdout.write('last words');
      return 0;
    });
    const stdout = new PassThrough();
    await expect(new Cmd({ host, spec, stdout, copyAfterExitTimeoutMs: 20 }).run()).rejects.toMatchObject({
      code: 'TIMED_OUT',
    });
    expect((stdout.read() as Buffer).toString()).toBe('last words');
  });

  it('kills the process when its signal fires', async () => {
    const stop = new AbortController();
    const host = hostOf(async (streams) => {
      await streams.killed;
      return exit(streams, 137);
    });
    const cmd = commandContext(stop.signal, host, 'sleep', 'inf');
    await cmd.start();
    stop.abort();
    await expect(cmd.wait()).rejects.toMatchObject({ exitCode: 137 });
  });

  it('starts nothing when its signal has fired', async () => {
    const host = hostOf(cat);
    await expect(commandContext(AbortSignal.abort(), host, 'cat').run()).rejects.toMatchObject({ code: 'CANCELLED' });
    expect(host.started).toEqual([]);
  });

  it('can be started and waited for once, in this order', async () => {
    const cmd = command(
      hostOf(async (streams) => exit(streams, 0)),
      'true',
    );
    await expect(cmd.wait()).rejects.toMatchObject({ code: 'INVALID_STATE' });
    await cmd.start();
    await expect(cmd.start()).rejects.toMatchObject({ code: 'INVALID_STATE' });
    await cmd.wait();
    await expect(cmd.wait()).rejects.toMatchObject({ code: 'INVALID_STATE' });
  });

  it('captures no more than it can hold', async () => {
    const chunk = Buffer.alloc(1 << 20);
    const host = hostOf(async (streams) => {
      for (let i = 0; i < 80 && !streams.stdout.destroyed; i++)
        if (!streams.stdout.write(chunk))
          await Promise.race([once(streams.stdout, 'drain'), once(streams.stdout, 'close')]);
      return exit(streams, 141);
    });
    await expect(new Cmd({ host, spec }).output()).rejects.toMatchObject({ code: 'INVALID_STATE' });
  });
});

describe('a command without a specification', () => {
  it('starts the init process of a container, with its streams relayed from the first byte', async () => {
    let started = false;
    const init = new FakeProcess({ process: spec, stdout: true }, async (streams) => {
      streams.stdout.write('init');
      return exit(streams, 0);
    });
    const container = Object.assign(hostOf(cat), { id: 'c', init, start: async () => void (started = true) });
    const cmd = new Cmd({ host: container });
    expect((await cmd.output()).toString()).toBe('init');
    expect([started, init.closed]).toEqual([true, true]);
  });

  it('closes the init process when the container cannot be started', async () => {
    const init = new FakeProcess({ process: spec, stdout: true }, () => new Promise(() => {}));
    const failure = new LcowError('COMMAND_NOT_FOUND', 'There is no such program.');
    const container = Object.assign(hostOf(cat), { id: 'c', init, start: () => Promise.reject(failure) });
    await expect(new Cmd({ host: container, stdout: new PassThrough() }).run()).rejects.toBe(failure);
    expect(init.closed).toBe(true);
  });

  it('is refused in a utility VM, which has no init process to start', async () => {
    await expect(new Cmd({ host: hostOf(cat) }).run()).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  });
});
