import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import type { Readable } from 'node:stream';
import { buffer, text } from 'node:stream/consumers';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { FakeGuest, guestError } from '../../test/support/fake-guest.js';
import { socketPair, until } from '../../test/support/socket-pair.js';
import { LcowError, type ErrorCode } from '../errors/index.js';
import { StatusCode, TtrpcError } from '../ttrpc/index.js';
import { GuestError_Reason as Reason } from './guest_pb.js';
import type { GuestConnection } from './guest-connection.js';
import { connectGuest, MAX_LOG_LINE_BYTES, type GuestLogLine } from './index.js';

const QUICK = { handshake: { resendMs: 5, readyMs: 100 } };
let guest: FakeGuest;
let open: GuestConnection[];

beforeEach(() => {
  guest = new FakeGuest();
  open = [];
});
afterEach(async () => {
  vi.unstubAllEnvs();
  for (const connection of open) await connection.close();
  guest.drop();
});

async function connect(): Promise<GuestConnection> {
  const connection = await connectGuest(guest.ports, QUICK);
  open.push(connection);
  return connection;
}

const running = (...args: string[]) => ({ process: { args, cwd: '/' } });
const spec = (...args: string[]) => ({ ociVersion: '1.0.2', process: { args, cwd: '/' } });
const all = { stdin: true, stdout: true, stderr: true };

describe('connecting', () => {
  test('learns what the guest can do', async () => {
    const { capabilities } = await connect();
    expect(capabilities).toMatchObject({ protocolMajor: 1, agentVersion: '0.1.0', bootId: 'boot' });
    expect(capabilities.features.has('pause')).toBe(true);
  });

  test('drops the bytes of an earlier session', async () => {
    guest.stale = Buffer.concat([randomBytes(1000), Buffer.from('LCOWREDY'), randomBytes(20)]);
    const connection = await connect();
    expect(await (await connection.createProcess(running('exit', '3'))).wait()).toMatchObject({ exitCode: 3 });
  });

  test('refuses another major version and says which', async () => {
    guest.hello = { ...guest.hello, protocolMajor: 2 };
    const refused = connectGuest(guest.ports, QUICK);
    await expect(refused).rejects.toMatchObject({
      code: 'GUEST_PROTOCOL',
      message: expect.stringContaining('2.2') as string,
    });
    await until(() => guest.rpc!.destroyed && guest.muxSocket!.destroyed);
  });

  test('fails when a port cannot be reached, and lets the other one go', async () => {
    const ports = { ...guest.ports, connectMux: () => Promise.reject(new Error('connect ECONNREFUSED')) };
    await expect(connectGuest(ports, QUICK)).rejects.toMatchObject({
      code: 'GUEST_UNREACHABLE',
      message: expect.stringContaining('lcow.mux') as string,
    });
  });

  test('fails when a port hangs up', async () => {
    const [near, far] = await socketPair();
    far.destroy();
    const ports = { ...guest.ports, connectRpc: () => Promise.resolve(near) };
    await expect(connectGuest(ports, QUICK)).rejects.toMatchObject({ code: 'GUEST_UNREACHABLE' });
  });

  test('times out while nobody answers, and closes what it opened', async () => {
    vi.stubEnv('HCSSHIM_TIMEOUT_GCSCONNECTION', '0.1');
    const [near, far] = await socketPair();
    far.resume();
    let late: ((value: never) => void) | undefined;
    const ports = {
      connectRpc: () => Promise.resolve(near),
      connectMux: () => new Promise<never>((resolve) => (late = resolve)),
    };
    await expect(connectGuest(ports, QUICK)).rejects.toMatchObject({ code: 'TIMED_OUT' });
    await until(() => near.destroyed);
    const [lateNear, lateFar] = await socketPair();
    late!(lateNear as never);
    await until(() => lateNear.destroyed);
    lateFar.destroy();
  });

  test('can be cancelled', async () => {
    const abort = new AbortController();
    const ports = { ...guest.ports, connectMux: () => new Promise<never>(() => {}) };
    const cancelled = connectGuest(ports, { ...QUICK, signal: abort.signal });
    setImmediate(() => abort.abort());
    await expect(cancelled).rejects.toMatchObject({ code: 'CANCELLED' });
  });
});

describe('a process', () => {
  test('has its output, its exit and its pid', async () => {
    const connection = await connect();
    const process = await connection.createProcess({ ...running('echo', 'hi', 'there'), stdout: true });
    expect(process.pid).toBe(100);
    expect(Object.keys(process.stdio())).toEqual(['stdout']);
    expect(await text(process.stdio().stdout!)).toBe('hi there\n');
    expect(await process.wait()).toEqual({ exitCode: 0, exitedAt: new Date(1_700_000_000_123), oomKilled: false });
    expect(await process.wait()).toBe(await process.wait());
    expect(guest.calls.filter((name) => name === 'waitProcess').length).toBe(1);
  });

  test('sees the end of its stdin and answers after it', async () => {
    const connection = await connect();
    const process = await connection.createProcess({ ...running('cat'), ...all });
    const { stdin, stdout } = process.stdio();
    stdin!.write('one ');
    stdin!.end('two');
    expect(await text(stdout!)).toBe('one two');
    expect((await process.wait()).exitCode).toBe(0);
  });

  test('echoes 10 MB to stdout and stderr while nobody reads either for long, without deadlock or loss', async () => {
    const connection = await connect();
    const process = await connection.createProcess({ ...running('tee'), ...all });
    const { stdin, stdout, stderr } = process.stdio();
    const content = randomBytes(10 << 20);
    stdin!.end(content);
    // stderr is read only after stdout has stalled on it.
    const sum = (bytes: Buffer): string => createHash('sha256').update(bytes).digest('hex');
    const out = buffer(stdout!);
    await until(() => (stdout as Readable & { bytesConsumed: number }).bytesConsumed > 100_000);
    const [first, second] = await Promise.all([out, buffer(stderr!)]);
    expect(sum(first)).toBe(sum(content));
    expect(sum(second)).toBe(sum(content));
    expect((await process.wait()).exitCode).toBe(0);
    expect(process.consumed).toEqual({ stdoutBytes: content.length, stderrBytes: content.length });
    await process.close();
    await until(() => guest.mux!.streamCount === 0);
  });

  test('with a terminal has no stderr', async () => {
    const connection = await connect();
    const config = { process: { args: ['cat'], cwd: '/', terminal: true }, stdin: true, stdout: true };
    await expect(connection.createProcess({ ...config, stderr: true })).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
    });
    const process = await connection.createProcess({ ...config, consoleSize: { rows: 24, columns: 80 } });
    const [fake] = guest.machine.values();
    expect(fake!.size).toMatchObject({ rows: 24, columns: 80 });
    await process.resizeConsole(50, 100);
    expect(fake!.size).toMatchObject({ rows: 50, columns: 100 });
    await expect(process.resizeConsole(-1, 3)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  });

  test('is signalled, and a signal after its end is not delivered', async () => {
    const connection = await connect();
    const process = await connection.createProcess(running('sleep'));
    expect(await process.signal(10)).toBe(true);
    expect([...guest.machine.values()][0]!.signals).toEqual([10]);
    await expect(process.signal(65)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    await process.kill();
    expect((await process.wait()).exitCode).toBe(137);
    expect(await process.signal(15)).toBe(false);
    await process.kill();
  });

  test('is forgotten by the guest at close, once', async () => {
    const connection = await connect();
    const process = await connection.createProcess(running('true'));
    await process.wait();
    await Promise.all([process.close(), process.close()]);
    await process.close();
    expect(guest.calls.filter((name) => name === 'deleteProcess').length).toBe(1);
    expect(guest.machine.size).toBe(0);
    expect((await process.wait()).exitCode).toBe(0);
  });

  test('closed while it runs goes on, and is forgotten when it has exited', async () => {
    const connection = await connect();
    const process = await connection.createProcess({ ...running('sleep'), stdout: true });
    await process.close();
    expect(process.stdio().stdout!.destroyed).toBe(true);
    expect(guest.machine.size).toBe(1);
    await process.kill();
    await until(() => guest.machine.size === 0);
  });

  test('that cannot start leaves no stream open', async () => {
    const connection = await connect();
    const failed = connection.createProcess({ ...running('no-such-program'), ...all });
    await expect(failed).rejects.toMatchObject({
      code: 'COMMAND_NOT_FOUND',
      details: { reason: 'COMMAND_NOT_FOUND', errno: 2, subject: 'no-such-program' },
    });
    await until(() => guest.mux!.streamCount === 0);
  });

  test('whose start is given up is undone when the guest has answered', async () => {
    const connection = await connect();
    const abort = new AbortController();
    const started = connection.createProcess(running('sleep'), { signal: abort.signal });
    abort.abort();
    await expect(started).rejects.toMatchObject({ code: 'CANCELLED' });
    await until(() => guest.calls.includes('deleteProcess'));
    expect(guest.machine.size).toBe(0);
  });

  test('whose start is given up beforehand is never asked for', async () => {
    const connection = await connect();
    const started = connection.createProcess(running('sleep'), { signal: AbortSignal.abort() });
    await expect(started).rejects.toMatchObject({ code: 'CANCELLED' });
    expect((await connection.stats()).pids).toBe(1);
    expect(guest.calls).not.toContain('exec');
  });

  test('whose start is given up before the guest has its streams does not start', async () => {
    const connection = await connect();
    const abort = new AbortController();
    const started = connection.createProcess({ ...running('sleep'), ...all }, { signal: abort.signal });
    abort.abort();
    await expect(started).rejects.toMatchObject({ code: 'CANCELLED' });
    await until(() => guest.calls.includes('exec') && guest.machine.size === 0 && guest.mux!.streamCount === 0);
  });
});

describe('a container', () => {
  test('is created, started, waited for and deleted', async () => {
    const connection = await connect();
    const container = await connection.createContainer({
      id: 'c1',
      spec: spec('cat'),
      stdio: { stdin: true, stdout: true },
    });
    expect(container).toMatchObject({ id: 'c1', os: 'linux', isOci: true });
    expect(container.init.execId).toBe('');
    const { stdin, stdout } = container.init.stdio();
    stdin!.end('early');
    await container.start();
    expect(await text(stdout!)).toBe('early');
    expect((await container.wait()).exitCode).toBe(0);
    expect(await container.stats()).toMatchObject({ memoryUsageBytes: 4096, memoryLimitBytes: Infinity, pids: 1 });
    await container.delete();
    await container.delete();
    expect(guest.containers.size).toBe(0);
  });

  test('runs further processes', async () => {
    const connection = await connect();
    const container = await connection.createContainer({ id: 'c1', spec: spec('sleep') });
    await container.start();
    const process = await container.createProcess({ ...running('echo', 'inside'), stdout: true });
    expect(process.execId).toMatch(/^[0-9a-f]{32}$/);
    expect(await text(process.stdio().stdout!)).toBe('inside\n');
    await process.wait();
    await process.close();
    expect(guest.containers.get('c1')!.execs.size).toBe(0);
    await container.shutdown();
    expect((await container.wait()).exitCode).toBe(143);
    await container.shutdown();
    await container.terminate();
  });

  test('given up while it is created is deleted when the guest has made it', async () => {
    const connection = await connect();
    const abort = new AbortController();
    const created = connection.createContainer({ id: 'c1', spec: spec('cat'), signal: abort.signal });
    abort.abort();
    await expect(created).rejects.toMatchObject({ code: 'CANCELLED' });
    await until(() => guest.calls.includes('deleteContainer') && guest.containers.size === 0);
  });
});

describe('what the guest answers', () => {
  const reasons: [keyof typeof Reason, ErrorCode][] = [
    ['NO_SUCH_CONTAINER', 'CONTAINER_NOT_FOUND'],
    ['NO_SUCH_DISK', 'NOT_FOUND'],
    ['NO_SUCH_USER', 'NO_SUCH_USER'],
    ['ALREADY_EXISTS', 'ALREADY_EXISTS'],
    ['COMMAND_NOT_EXECUTABLE', 'COMMAND_NOT_EXECUTABLE'],
    ['WRONG_STATE', 'INVALID_STATE'],
    ['MOUNT_FAILED', 'GUEST_FAILED'],
    ['NO_SUCH_FILE', 'NOT_FOUND'],
    ['PATH_ESCAPES', 'INVALID_ARGUMENT'],
    ['REASON_UNSPECIFIED', 'GUEST_FAILED'],
  ];
  test.each(reasons)('as %s is the error %s', async (reason, code) => {
    guest.overrides = {
      removeLayers: () => {
        throw guestError(Reason[reason], 'went wrong', '/a/path');
      },
    };
    const { client } = await connect();
    await expect(client.removeLayers({ rootfsPath: '/x' })).rejects.toMatchObject({
      code,
      message: 'The guest failed RemoveLayers: went wrong.',
      details: { reason, subject: '/a/path' },
    });
  });

  test('without a reason has a code from its status; what is not there is not supported', async () => {
    guest.overrides = {
      renew: () => {
        throw new TtrpcError(StatusCode.INTERNAL, 'agent bug');
      },
    };
    const connection = await connect();
    await expect(connection.renew()).rejects.toMatchObject({ code: 'GUEST_FAILED', details: { status: 13 } });
    await expect(connection.client.readFile({ path: '/x' })).rejects.toMatchObject({ code: 'NOT_SUPPORTED' });
  });

  test('of a reason this host does not know is still an error', async () => {
    guest.overrides = {
      renew: () => {
        throw guestError(4711, 'from the future');
      },
    };
    await expect((await connect()).renew()).rejects.toMatchObject({ code: 'GUEST_FAILED' });
  });

  test('cannot fill or steer a terminal', async () => {
    guest.overrides = {
      renew: () => {
        throw guestError(Reason.RUNTIME_FAILED, `\u001b[2J\r\n\u009b31m${'x'.repeat(100_000)}`, '\u001b]0;title\u0007');
      },
    };
    const error = (await (await connect()).renew().catch((e: unknown) => e)) as LcowError;
    expect(error.message.length).toBeLessThan(2200);
    expect(error.message + String(error.details['subject'])).not.toMatch(/[\u0000-\u001f\u007f-\u009f]/);
  });

  const impossible: [string, () => void, (connection: GuestConnection) => Promise<unknown>][] = [
    [
      'exit code',
      () => (guest.overrides = { waitProcess: () => ({ exitCode: 256 }) }),
      async (connection) => (await connection.createProcess(running('true'))).wait(),
    ],
    [
      'time of exit',
      () => (guest.overrides = { waitProcess: () => ({ exitedAtUnixNanos: -1n }) }),
      async (connection) => (await connection.createProcess(running('true'))).wait(),
    ],
    [
      'process id',
      () => (guest.overrides = { exec: () => ({ pid: 0 }) }),
      (connection) => connection.createProcess(running('true')),
    ],
    [
      'list',
      () =>
        (guest.overrides = {
          listContainers: () => ({ containers: Array.from({ length: 5000 }, () => ({ containerId: 'x' })) }),
        }),
      (connection) => connection.client.listContainers({}),
    ],
    [
      'exit code',
      () => (guest.overrides = { listContainers: () => ({ containers: [{ containerId: 'x', exitCode: 300 }] }) }),
      (connection) => connection.client.listContainers({}),
    ],
    [
      'content',
      () => (guest.overrides = { readFile: () => ({ content: new Uint8Array((1 << 20) + 1) }) }),
      (connection) => connection.client.readFile({ path: '/x' }),
    ],
    [
      'offset',
      () => (guest.overrides = { attachProcess: () => ({ stdinOffset: 2n ** 60n }) }),
      (connection) => connection.attachProcess('', 'x'),
    ],
    [
      'text',
      () => (guest.overrides = { hello: () => ({ ...guest.hello, agentVersion: 'x'.repeat(20_000) }) }),
      () => connectGuest(guest.ports, QUICK),
    ],
  ];
  test.each(impossible)('with an impossible %s is refused', async (what, arrange, act) => {
    arrange();
    const connection = what === 'text' ? undefined : await connect();
    await expect(act(connection!)).rejects.toMatchObject({
      code: 'GUEST_PROTOCOL',
      message: expect.stringContaining(`impossible ${what}`) as string,
    });
  });

  test('too late is a time-out that names its variable; the connection goes on', async () => {
    vi.stubEnv('LCOW_TIMEOUT_GUESTREQUEST', '0.05');
    guest.overrides = { renew: () => new Promise(() => {}) };
    const connection = await connect();
    await expect(connection.renew()).rejects.toMatchObject({
      code: 'TIMED_OUT',
      hint: expect.stringContaining('LCOW_TIMEOUT_GUESTREQUEST') as string,
    });
    expect((await connection.stats()).pids).toBe(1);
    // A process may run for longer than a request may take.
    const process = await connection.createProcess(running('sleep'));
    const exit = process.wait();
    await new Promise((resolve) => setTimeout(resolve, 100));
    await process.kill();
    expect((await exit).exitCode).toBe(137);
  });
});

describe('a connection that breaks', () => {
  test.each(['rpc', 'mux'] as const)('on the %s port fails every waiter and stream with one error', async (port) => {
    guest.overrides = { renew: () => new Promise(() => {}) };
    const connection = await connect();
    const process = await connection.createProcess({ ...running('sleep'), ...all });
    const errors = [connection.renew(), process.wait(), process.wait(), once(process.stdio().stdout!, 'end')].map(
      (waiter) =>
        waiter.then(
          () => undefined,
          (error: unknown) => error,
        ),
    );
    process.stdio().stdout!.resume();
    await until(() => guest.calls.includes('renew') && guest.calls.includes('waitProcess'));
    (port === 'rpc' ? guest.rpc : guest.muxSocket)!.destroy();
    const failure = await connection.closed;
    expect(failure).toMatchObject({ code: 'GUEST_UNREACHABLE' });
    for (const error of errors) expect(await error).toBe(failure);
    await expect(connection.stats()).rejects.toBe(failure);
    await expect(connection.createProcess({ ...running('true'), stdout: true })).rejects.toBe(failure);
    await process.close();
  });

  test.each(['rpc', 'mux'] as const)('by what the guest sends on the %s port is a broken protocol', async (port) => {
    const connection = await connect();
    (port === 'rpc' ? guest.rpc : guest.muxSocket)!.write(Buffer.alloc(20, 0xee));
    expect(await connection.closed).toMatchObject({ code: 'GUEST_PROTOCOL' });
    await expect(connection.stats()).rejects.toMatchObject({ code: 'GUEST_PROTOCOL' });
  });

  test('can be made again, and goes on with its processes where it was', async () => {
    const first = await connect();
    const container = await first.createContainer({ id: 'c1', spec: spec('tee'), stdio: all });
    await container.start();
    const { stdin, stdout, stderr } = container.init.stdio();
    stdin!.write('before ');
    const [seen] = (await once(stdout!, 'data')) as [Buffer];
    // stderr is not read: the guest has to send it again.
    expect(seen.toString()).toBe('before ');
    await until(() => stderr!.readableLength === 0);
    const { consumed } = container.init;
    guest.drop();
    await first.closed;

    const second = await connect();
    const again = await second.attachContainer('c1', { stdio: all, offsets: consumed });
    const streams = again.init.stdio();
    streams.stdin!.end('after');
    const [out, err] = await Promise.all([text(streams.stdout!), text(streams.stderr!)]);
    expect(out).toBe('after');
    expect(err).toBe('before after');
    expect((await again.wait()).exitCode).toBe(0);
    expect(again.init.pid).toBe(container.init.pid);
    expect(again.init.consumed).toEqual({ stdoutBytes: 12, stderrBytes: 12 });
    await expect(second.attachContainer('gone')).rejects.toMatchObject({ code: 'CONTAINER_NOT_FOUND' });
    await expect(second.attachProcess('c1', 'gone')).rejects.toMatchObject({ code: 'NOT_FOUND' });
  });

  test('tells how much of stdin the process has taken', async () => {
    const first = await connect();
    const process = await first.createProcess({ ...running('cat'), stdin: true });
    process.stdio().stdin!.write('12345');
    const [fake] = guest.machine.values();
    await until(() => fake!.stdinTaken === 5);
    guest.drop();
    await first.closed;
    const second = await connect();
    const { process: again, stdinBytes } = await second.attachProcess('', process.execId, { stdio: { stdin: true } });
    expect(stdinBytes).toBe(5);
    again.stdio().stdin!.end();
    expect((await again.wait()).exitCode).toBe(0);
  });
});

test('a stream the guest resets fails alone', async () => {
  guest.overrides = {
    exec: ({ stdio }) => {
      guest.mux!.claim(stdio!.stdoutStream).destroy(new Error('disk gone'));
      guest.mux!.claim(stdio!.stdinStream).destroy();
      return { pid: 5 };
    },
  };
  const connection = await connect();
  const { stdin, stdout } = (await connection.createProcess({ ...running('x'), stdin: true, stdout: true })).stdio();
  await until(() => stdin!.errored !== null);
  expect(stdin!.errored).toMatchObject({ code: 'CLOSED' });
  await expect(text(stdout!)).rejects.toMatchObject({ code: 'GUEST_FAILED' });
  expect((await connection.stats()).pids).toBe(1);
});

test('closed by the host fails what waits with CLOSED and tells no failure', async () => {
  const connection = await connect();
  const process = await connection.createProcess(running('sleep'));
  const failed = expect(process.wait()).rejects.toMatchObject({ code: 'CLOSED' });
  await connection.close();
  await connection.close();
  await failed;
  expect(await connection.closed).toBeUndefined();
  await until(() => guest.rpc!.destroyed && guest.muxSocket!.destroyed);
  expect(guest.machine.size).toBe(1);
});

test('the clock and random bytes of the host reach the guest', async () => {
  let renewed: { at: bigint; entropy: number; hostname: string } | undefined;
  guest.overrides = {
    renew: ({ wallClockUnixNanos: at, entropy, hostname }) => {
      renewed = { at, entropy: entropy.length, hostname };
      return {};
    },
  };
  await (await connect()).renew({ hostname: 'vm' });
  expect(renewed).toMatchObject({ entropy: 256, hostname: 'vm' });
  expect(Math.abs(Number(renewed!.at / 1_000_000n) - Date.now())).toBeLessThan(5000);
});

test('the log is lines of JSON, text as it is, and long lines cut', async () => {
  const long = 'y'.repeat(MAX_LOG_LINE_BYTES + 10);
  guest.log = `{"level":"info","msg":"up"}\nkernel: oops\n\n[1]\n${long}\n{"msg":"last"}`;
  const connection = await connect();
  const lines: GuestLogLine[] = [];
  for await (const line of connection.readLog()) lines.push(line);
  expect(lines.map(({ fields }) => fields)).toEqual([
    { level: 'info', msg: 'up' },
    undefined,
    undefined,
    undefined,
    { msg: 'last' },
  ]);
  expect(lines[1]).toEqual({ text: 'kernel: oops', fields: undefined, cut: false });
  expect(lines[3]!.text.length).toBe(MAX_LOG_LINE_BYTES);
  expect(lines[3]!.cut).toBe(true);
});

test('the log can be left at any time, and fails with its session', async () => {
  guest.log = 'a\nb\n';
  guest.overrides = {
    streamLog: ({ stream }) => {
      guest.mux!.claim(stream).write('a\nb\n');
      return {};
    },
  };
  const connection = await connect();
  for await (const line of connection.readLog()) {
    expect(line.text).toBe('a');
    break;
  }
  await until(() => guest.mux!.streamCount === 0);
  const abort = new AbortController();
  const seen: string[] = [];
  for await (const line of connection.readLog(abort.signal)) {
    seen.push(line.text);
    if (seen.length === 2) abort.abort();
  }
  expect(seen).toEqual(['a', 'b']);
  const following = (async () => {
    for await (const line of connection.readLog()) if (line.text === 'b') guest.drop();
  })();
  await expect(following).rejects.toMatchObject({ code: 'GUEST_UNREACHABLE' });
});
