/** The guest connection with the real agent in a real VM: sessions, processes of the utility VM, streams, reconnection. */
import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Duplex, Readable } from 'node:stream';
import { buffer, text } from 'node:stream/consumers';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { connectGuest, type GuestConnection, type GuestProcess, type ProcessConfig } from '../../src/gcs/index.js';
import { chooseAccelerator, createComputeSystem, findQemu, type ComputeSystem } from '../../src/hcs/index.js';
import { buildDocument, MUX_PORT, RPC_PORT } from '../../src/uvm/document.js';
import { guestImageFolder } from '../../src/uvm/index.js';
import { resolveOptions } from '../../src/uvm/options.js';
import { until } from '../support/socket-pair.js';

let folder: string;
let system: ComputeSystem;
let guest: GuestConnection;
let ports: Duplex[] = [];

async function connect(): Promise<GuestConnection> {
  const opened: Duplex[] = [];
  const open = async (name: string, signal: AbortSignal): Promise<Duplex> => {
    const port = await system.connect(name, { signal });
    opened.push(port);
    return port;
  };
  const connection = await connectGuest({
    connectRpc: (signal) => open(RPC_PORT, signal),
    connectMux: (signal) => open(MUX_PORT, signal),
  });
  ports = opened;
  return connection;
}

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'lcow-g-'));
  const bootFilesPath = guestImageFolder();
  const cacheFolder = join(folder, 'cache');
  const accelerator = await chooseAccelerator({
    qemu: await findQemu(),
    kernelFilePath: join(bootFilesPath, 'vmlinux'),
    cacheFolder,
  });
  const runtimeFolder = join(folder, 'run');
  const options = resolveOptions({ runtimeFolder, memorySizeInMB: 256, scsiControllerCount: 0 }, accelerator);
  system = await createComputeSystem(options.id, buildDocument(options), { runtimeFolder, cacheFolder, accelerator });
  await system.start();
  guest = await connect();
});
afterAll(async () => {
  await (guest as GuestConnection | undefined)?.close();
  await (system as ComputeSystem | undefined)?.[Symbol.asyncDispose]();
  await rm(folder, { recursive: true, force: true });
});
afterEach((context) => {
  if (context.task.result?.state === 'fail') console.log(system.consoleTail().slice(-3000));
});

const shell = (script: string, rest: Partial<ProcessConfig> = {}): ProcessConfig => ({
  process: { args: ['/bin/busybox', 'sh', '-c', script], cwd: '/', env: ['PATH=/bin:/sbin:/usr/bin'] },
  ...rest,
});
const all = { stdin: true, stdout: true, stderr: true };
const sum = (bytes: Buffer): string => createHash('sha256').update(bytes).digest('hex');

async function run(config: ProcessConfig): Promise<GuestProcess> {
  return guest.createProcess(config);
}

test('the agent says what it is, and its clock is set right', async () => {
  expect(guest.capabilities).toMatchObject({ protocolMajor: 1 });
  expect(guest.capabilities.kernelRelease).toMatch(/^\d+\.\d+/);
  await guest.renew();
  const process = await run(shell('busybox date +%s', { stdout: true }));
  const seconds = Number(await text(process.stdio().stdout!));
  expect(Math.abs(seconds - Date.now() / 1000)).toBeLessThan(10);
  await process.close();
});

test('one request after another is answered quickly', async () => {
  const times: number[] = [];
  for (let i = 0; i < 200; i++) {
    const begin = performance.now();
    await guest.stats();
    times.push(performance.now() - begin);
  }
  times.sort((a, b) => a - b);
  console.log(`guest request: p50 ${times[100]!.toFixed(2)} ms, p99 ${times[197]!.toFixed(2)} ms`);
  await Promise.all(Array.from({ length: 100 }, () => guest.stats()));
});

describe('a process of the utility VM', () => {
  test('has its exit code, or 128 and the signal', async () => {
    const seven = await run(shell('exit 7'));
    expect(await seven.wait()).toMatchObject({ exitCode: 7, oomKilled: false });
    expect(Math.abs((await seven.wait()).exitedAt.getTime() - Date.now())).toBeLessThan(60_000);
    await seven.close();
    const sleeping = await run(shell('exec busybox sleep 1000'));
    expect(await sleeping.signal(15)).toBe(true);
    expect((await sleeping.wait()).exitCode).toBe(143);
    expect(await sleeping.signal(15)).toBe(false);
    await sleeping.close();
  });

  test('that does not exist or cannot run has its own error', async () => {
    const process = { args: ['/no/such/program'], cwd: '/' };
    await expect(guest.createProcess({ process, ...all })).rejects.toMatchObject({ code: 'COMMAND_NOT_FOUND' });
    const folder = { args: ['/etc'], cwd: '/' };
    await expect(guest.createProcess({ process: folder })).rejects.toMatchObject({ code: 'COMMAND_NOT_EXECUTABLE' });
  });

  test('keeps stdout and stderr apart and sees the end of stdin', async () => {
    const process = await run(shell('busybox cat; echo problem >&2; exit 3', all));
    const { stdin, stdout, stderr } = process.stdio();
    stdin!.end('some input\n');
    expect(await Promise.all([text(stdout!), text(stderr!)])).toEqual(['some input\n', 'problem\n']);
    expect((await process.wait()).exitCode).toBe(3);
    await process.close();
  });

  test('passes 32 MB through cat with the right sum', async () => {
    const process = await run(shell('exec busybox cat', all));
    const { stdin, stdout } = process.stdio();
    const content = randomBytes(32 << 20);
    const begin = performance.now();
    stdin!.end(content);
    const received = await buffer(stdout!);
    console.log(`stdin to stdout: ${(64 / ((performance.now() - begin) / 1000)).toFixed(0)} MB/s in both directions`);
    expect(sum(received)).toBe(sum(content));
    expect((await process.wait()).exitCode).toBe(0);
    await process.close();
  });

  test('with both outputs full while it reads stdin does not lock up', async () => {
    const process = await run(shell('exec busybox tee /proc/self/fd/2', all));
    const { stdin, stdout, stderr } = process.stdio();
    const content = randomBytes(4 << 20);
    stdin!.end(content);
    // stderr fills first: nobody reads it until stdout has stalled behind it.
    const first = buffer(stdout!);
    await until(() => (stdout as Readable & { bytesConsumed: number }).bytesConsumed > 200_000);
    const [out, err] = await Promise.all([first, buffer(stderr!)]);
    expect(sum(out)).toBe(sum(content));
    expect(sum(err)).toBe(sum(content));
    expect(process.consumed).toEqual({ stdoutBytes: content.length, stderrBytes: content.length });
    await process.close();
  });

  test('that does not read its stdin ends the stream, not the session', async () => {
    const process = await run(shell('exit 0', { stdin: true }));
    const { stdin } = process.stdio();
    stdin!.write(Buffer.alloc(1 << 20));
    expect((await process.wait()).exitCode).toBe(0);
    await until(() => stdin!.destroyed);
    expect((await guest.stats()).pids).toBeGreaterThan(0);
    await process.close();
  });

  test('on a terminal has its size, and a change of it', async () => {
    const script = 'trap "busybox stty size; exit 0" WINCH; busybox stty size; while :; do busybox sleep 0.05; done';
    const config = shell(script, { stdin: true, stdout: true, consoleSize: { rows: 24, columns: 80 } });
    config.process.terminal = true;
    const process = await run(config);
    const { stdout } = process.stdio();
    let seen = '';
    stdout!.on('data', (chunk: Buffer) => (seen += chunk.toString()));
    await until(() => seen.includes('24 80'));
    await process.resizeConsole(50, 132);
    await once(stdout!, 'end');
    expect(seen).toContain('50 132');
    expect((await process.wait()).exitCode).toBe(0);
    await process.close();
  });

  test('is one of twenty at once', async () => {
    const outputs = await Promise.all(
      Array.from({ length: 20 }, async (_, i) => {
        const process = await run(shell(`echo ${i}; exit ${i}`, { stdout: true }));
        const said = await text(process.stdio().stdout!);
        const { exitCode } = await process.wait();
        await process.close();
        return `${said.trim()} ${exitCode}`;
      }),
    );
    expect(outputs).toEqual(Array.from({ length: 20 }, (_, i) => `${i} ${i}`));
  });
});

describe('a session', () => {
  test('that is broken is followed by another, twenty times, at once', async () => {
    const { bootId } = guest.capabilities;
    const times: number[] = [];
    for (let i = 0; i < 20; i++) {
      // Calls and bytes are under way when it breaks.
      const noise = await run(shell('exec busybox yes', { stdout: true }));
      noise.stdio().stdout!.resume();
      const waiting = noise.wait().then(
        () => 'exited',
        (error: unknown) => (error as { code: string }).code,
      );
      await once(noise.stdio().stdout!, 'data');
      for (const port of ports) port.destroy();
      expect(await waiting).toBe('GUEST_UNREACHABLE');
      const begin = performance.now();
      guest = await connect();
      times.push(performance.now() - begin);
      expect(guest.capabilities.bootId).toBe(bootId);
      const { process } = await guest.attachProcess('', noise.execId);
      await process.kill();
      await process.wait();
      await process.close();
    }
    times.sort((a, b) => a - b);
    console.log(`reconnect: median ${times[10]!.toFixed(0)} ms, worst ${times[19]!.toFixed(0)} ms`);
  });

  test('takes a process up again without losing or repeating a byte', async () => {
    const script = 'i=0; while [ $i -lt 20000 ]; do echo "line $i"; i=$((i+1)); done; read x; echo "got $x"';
    let process = await run(shell(script, { stdin: true, stdout: true }));
    let seen = '';
    let stdout = process.stdio().stdout!;
    for (let break_ = 0; break_ < 4; break_++) {
      stdout.on('data', (chunk: Buffer) => (seen += chunk.toString()));
      const target = seen.length + 20_000;
      await until(() => seen.length > target);
      for (const port of ports) port.destroy();
      await guest.closed;
      await until(() => stdout.destroyed);
      guest = await connect();
      const attached = await guest.attachProcess('', process.execId, {
        stdio: { stdin: true, stdout: true },
        offsets: process.consumed,
      });
      process = attached.process;
      stdout = process.stdio().stdout!;
    }
    process.stdio().stdin!.end('it\n');
    for await (const chunk of stdout) seen += String(chunk);
    const lines = Array.from({ length: 20_000 }, (_, i) => `line ${i}\n`).join('');
    expect(seen === `${lines}got it\n`).toBe(true);
    expect((await process.wait()).exitCode).toBe(0);
    await process.close();
  });

  test('gives the log of the agent', async () => {
    for await (const { fields } of guest.readLog()) {
      expect(fields).toBeDefined();
      break;
    }
  });
});

test('a guest that powers off ends the session', async () => {
  await guest.client.shutdown({ graceMs: 0 });
  await guest.close();
  expect((await system.wait()).kind).toBe('graceful');
});
