import { existsSync, mkdtempSync, statSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { connect } from 'node:net';
import { once } from 'node:events';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { PassThrough } from 'node:stream';
import { text } from 'node:stream/consumers';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { until } from '../../test/support/socket-pair.js';
import { LcowError } from '../errors/index.js';
import type { Process, ProcessConfig, ProcessExit } from '../gcs/index.js';
import { ControlClient } from './control-client.js';
import { ControlServer, type Supervised } from './control-server.js';

/** A process that is ended by the test. */
class FakeProcess implements Process {
  readonly pid = 42;
  readonly stdin = new PassThrough();
  readonly stdout = new PassThrough();
  readonly stderr = new PassThrough();
  readonly signals: number[] = [];
  sizes: number[][] = [];
  closed = false;
  exit!: (exitCode: number) => void;
  readonly #exited = new Promise<ProcessExit>((resolve) => {
    this.exit = (exitCode) => resolve({ exitCode, exitedAt: new Date(0), oomKilled: false });
  });

  constructor(
    readonly execId: string,
    readonly config?: ProcessConfig,
  ) {}

  stdio() {
    const { stdin = false, stdout = false, stderr = false } = this.config ?? {};
    return {
      ...(stdin ? { stdin: this.stdin } : {}),
      ...(stdout ? { stdout: this.stdout } : {}),
      ...(stderr ? { stderr: this.stderr } : {}),
    };
  }
  async signal(signal: number) {
    this.signals.push(signal);
    return true;
  }
  async kill() {
    this.exit(137);
  }
  async resizeConsole(rows: number, columns: number) {
    this.sizes.push([rows, columns]);
  }
  wait() {
    return this.#exited;
  }
  async close() {
    this.closed = true;
  }
}

class FakeSupervised implements Supervised {
  readonly containerId = 'c';
  readonly init = new FakeProcess('');
  readonly execs: FakeProcess[] = [];
  readonly stops: number[][] = [];
  refusal: LcowError | undefined;

  running() {
    if (this.refusal) throw this.refusal;
    return {
      init: this.init,
      vm: { properties: async () => ({ processId: 7 }) as never },
      container: {
        createProcess: async (config: ProcessConfig) => {
          const exec = new FakeProcess(`exec${this.execs.length}`, config);
          this.execs.push(exec);
          return exec;
        },
      },
    };
  }
  async exitCode() {
    return (await this.init.wait()).exitCode;
  }
  async stop(graceMs: number, signal = 15) {
    this.stops.push([graceMs, signal]);
    this.init.exit(143);
  }
}

let folder: string;
let path: string;
let supervised: FakeSupervised;
let server: ControlServer;
beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), 'lcow-control-'));
  path = join(folder, 'c', 'x.sock');
  supervised = new FakeSupervised();
  server = await ControlServer.listen(path, supervised, 200);
});
afterEach(async () => {
  await server.close();
  await rm(folder, { recursive: true });
});

const process_ = { args: ['x'], cwd: '/' };

describe('the control socket of a container', () => {
  it('is for its owner alone, and goes at the end', async () => {
    expect([statSync(path).mode & 0o777, statSync(join(folder, 'c')).mode & 0o777]).toEqual([0o600, 0o700]);
    await server.close();
    expect(existsSync(path)).toBe(false);
    await expect(ControlClient.connect(path, 'web')).rejects.toMatchObject({
      code: 'CONTAINER_NOT_RUNNING',
      message: 'Container web is not running.',
    });
  });

  it('takes the place of one that a killed supervisor left', async () => {
    const again = await ControlServer.listen(path, supervised);
    await using client = await ControlClient.connect(path, 'web');
    expect(await client.state()).toMatchObject({ pid: 42, qemuPid: 7, supervisorPid: process.pid });
    await again.close();
  });

  it('tells everyone who waits or stops the exit code, and only then closes', async () => {
    await using one = await ControlClient.connect(path, 'web');
    await using two = await ControlClient.connect(path, 'web');
    const waiting = one.wait();
    // Beyond what a timer can hold, and what fits into the message.
    const stopping = two.stop(1e15);
    expect(await stopping).toBe(143);
    await server.close();
    expect(await waiting).toBe(143);
    expect(supervised.stops).toEqual([[2 ** 31 - 1, 15]]);
    await expect(one.state()).rejects.toMatchObject({ code: 'CONTAINER_NOT_RUNNING' });
  });

  it('answers with the code and the hint of an error', async () => {
    supervised.refusal = new LcowError('COMMAND_NOT_FOUND', 'There is no x.', { hint: 'Look.' });
    await using client = await ControlClient.connect(path, 'web');
    await expect(client.exec({ process: process_, user: '', stdin: false, detach: false })).rejects.toMatchObject({
      code: 'COMMAND_NOT_FOUND',
      message: 'There is no x.',
      hint: 'Look.',
    });
    await expect(client.signal(9, 'nobody')).rejects.toMatchObject({ code: 'NOT_FOUND' });
  });

  it('carries the streams, the signals and the size of an exec', async () => {
    await using client = await ControlClient.connect(path, 'web');
    const remote = await client.exec({ process: process_, user: 'app', stdin: true, detach: false });
    const [exec] = supervised.execs;
    expect(exec!.config).toMatchObject({ process: process_, user: 'app', stdin: true, stdout: true, stderr: true });
    remote.stdin!.end('in');
    expect(await text(exec!.stdin)).toBe('in');
    exec!.stdout.end('out');
    exec!.stderr.end('err');
    expect(await Promise.all([text(remote.stdout!), text(remote.stderr!)])).toEqual(['out', 'err']);
    expect(await remote.signal(2)).toBe(true);
    await remote.resizeConsole(3, 4);
    expect([exec!.signals, exec!.sizes]).toEqual([[2], [[3, 4]]]);
    exec!.exit(9);
    expect(await remote.wait()).toBe(9);
    expect(exec!.closed).toBe(false);
    await client[Symbol.asyncDispose]();
    await until(() => exec!.closed);
  });

  it('lets an exec that ends with the container say its last words', async () => {
    await using client = await ControlClient.connect(path, 'web');
    const remote = await client.exec({ process: process_, user: '', stdin: false, detach: false });
    const output = text(remote.stdout!);
    const exitCode = remote.wait();
    const [exec] = supervised.execs;
    const closing = server.close();
    exec!.stdout.end('x'.repeat(1_000_000));
    exec!.stderr.end();
    exec!.exit(137);
    await closing;
    expect([(await output).length, await exitCode]).toEqual([1_000_000, 137]);
  });

  it('does not wait for a client that reads nothing', async () => {
    await using client = await ControlClient.connect(path, 'web');
    const remote = await client.exec({ process: process_, user: '', stdin: false, detach: false });
    remote.stdout!.on('error', () => undefined);
    const [exec] = supervised.execs;
    exec!.stdout.write('x'.repeat(10_000_000));
    exec!.exit(137);
    await server.close();
    await expect(remote.wait()).rejects.toMatchObject({ code: 'CONTAINER_NOT_RUNNING' });
  });

  it('outlives clients that speak something else or vanish', async () => {
    const stranger = connect(path);
    stranger.end('GET / HTTP/1.1\r\n\r\n');
    stranger.resume();
    await once(stranger, 'close');
    const client = await ControlClient.connect(path, 'web');
    await client.exec({ process: process_, user: '', stdin: false, detach: false });
    await client[Symbol.asyncDispose]();
    const [exec] = supervised.execs;
    // The process goes on; nobody reads its output.
    await until(() => exec!.stdout.destroyed);
    exec!.exit(0);
    await until(() => exec!.closed);
    await using next = await ControlClient.connect(path, 'web');
    expect(await next.state()).toMatchObject({ pid: 42 });
  });
});
