import { once } from 'node:events';
import { PassThrough, Readable } from 'node:stream';
import { setImmediate } from 'node:timers/promises';
import { describe, expect, it } from 'vitest';
import type { Process, ProcessConfig, ProcessExit, ProcessHost } from '../gcs/index.js';
import { createProcess } from './index.js';

interface Program {
  (streams: { stdin: PassThrough; stdout: PassThrough; stderr: PassThrough }): Promise<void>;
}

/** A utility VM in which every process is the given function; it exits when killed. */
class FakeHost implements ProcessHost {
  readonly os = 'linux';
  readonly isOci = false;
  configs: ProcessConfig[] = [];
  log: string[] = [];

  constructor(readonly program: Program) {}

  async createProcess(config: ProcessConfig): Promise<Process> {
    this.configs.push(config);
    const stdio = { stdin: new PassThrough(), stdout: new PassThrough(), stderr: new PassThrough() };
    let exit!: (exit: ProcessExit) => void;
    const exited = new Promise<ProcessExit>((resolve) => (exit = resolve));
    const end = (exitCode: number): void => {
      stdio.stdout.end();
      stdio.stderr.end();
      exit({ exitCode, exitedAt: new Date(0), oomKilled: false });
    };
    void this.program(stdio).then(() => {
      end(0);
    });
    return {
      pid: 1,
      execId: 'one',
      stdio: () => stdio,
      signal: async () => true,
      kill: async () => {
        this.log.push('kill');
        end(137);
      },
      resizeConsole: async () => {},
      wait: () => exited,
      close: async () => void this.log.push('close'),
    };
  }
}

const process = { args: ['program', 'an argument'], cwd: '', env: ['EMPTY='] };
const cat: Program = async ({ stdin, stdout }) => {
  for await (const chunk of stdin) if (!stdout.write(chunk)) await once(stdout, 'drain');
};

describe('createProcess', () => {
  it('copies all streams at the same time and counts their bytes', async () => {
    const megabyte = Buffer.alloc(1 << 20, 'x');
    const host = new FakeHost(async (streams) => {
      streams.stderr.write(megabyte);
      await once(streams.stderr, 'drain');
      await cat(streams);
    });
    const [stdout, stderr] = [new PassThrough(), new PassThrough()];
    stdout.resume();
    stderr.resume();
    const { byteCounts } = await createProcess({
      hcsSystem: host,
      process,
      stdin: Readable.from([megabyte, megabyte]),
      stdout,
      stderr,
    });
    expect(byteCounts).toEqual({ In: 2 << 20, Out: 2 << 20, Err: 1 << 20 });
  });

  it('keeps arguments and empty values, and adds a working directory and a path', async () => {
    const host = new FakeHost(async () => {});
    await createProcess({ hcsSystem: host, process });
    await createProcess({ hcsSystem: host, process: { ...process, env: ['PATH=/bin'] } });
    expect(host.configs.map((config) => config.process)).toMatchObject([
      {
        args: ['program', 'an argument'],
        cwd: '/',
        env: ['EMPTY=', 'PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'],
      },
      { env: ['PATH=/bin'] },
    ]);
  });

  it('copies no more than the caps and leaves the rest to be read from the process', async () => {
    const host = new FakeHost(cat);
    const stdout = new PassThrough();
    const { process: made, byteCounts } = await createProcess({
      hcsSystem: host,
      process,
      stdin: Readable.from([Buffer.from('0123456789')]),
      stdout,
      byteCounts: { In: 8, Out: 3 },
    });
    expect(byteCounts).toEqual({ In: 8, Out: 3, Err: 0 });
    expect((stdout.read() as Buffer).toString()).toBe('012');
    expect(Buffer.concat((await made.stdio().stdout!.toArray()) as Buffer[]).toString()).toBe('34567');
    expect(host.log).toEqual([]);
  });

  it('stops feeding a process that has exited', async () => {
    const host = new FakeHost(async () => {});
    const stdin = new PassThrough();
    const { process: made } = await createProcess({ hcsSystem: host, process, stdin, stdout: new PassThrough() });
    expect(await made.wait()).toMatchObject({ exitCode: 0 });
    expect(stdin.destroyed).toBe(false);
  });

  it('kills and closes the process when a stream fails or the time is over', async () => {
    const host = new FakeHost(() => new Promise(() => {}));
    const broken = new Error('broken');
    const stdin = new PassThrough();
    const one = createProcess({ hcsSystem: host, process, stdin });
    await setImmediate();
    stdin.destroy(broken);
    await expect(one).rejects.toBe(broken);

    const two = createProcess({ hcsSystem: host, process, stdout: new PassThrough(), copyTimeoutMs: 10 });
    await expect(two).rejects.toMatchObject({ code: 'TIMED_OUT' });
    expect(host.log).toEqual(['kill', 'close', 'kill', 'close']);
  });

  it('needs a specification in a utility VM', async () => {
    const hcsSystem = new FakeHost(cat);
    for (const createInUtilityVm of [true, false])
      await expect(createProcess({ hcsSystem, createInUtilityVm })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    expect(hcsSystem.configs).toEqual([]);
  });

  it('starts the init process of a container without one', async () => {
    const host = new FakeHost(async ({ stdout }) => void stdout.write('from init'));
    const init = await host.createProcess({ process });
    let started = 0;
    const container = Object.assign(host, {
      id: 'c',
      init,
      start: async () => {
        started++;
      },
    });
    const stdout = new PassThrough();
    const { process: made } = await createProcess({ hcsSystem: container, stdout });
    expect((stdout.read() as Buffer).toString()).toBe('from init');
    expect([made, started]).toEqual([init, 1]);
  });
});
