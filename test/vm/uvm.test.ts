import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createConnection, createServer, type AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { createScratch, tarToVhd } from '../../src/disk/index.js';
import { findQemu, probeAccelerators } from '../../src/hcs/index.js';
import { stateFolders } from '../../src/state/index.js';
import {
  createUtilityVM,
  guestImageFolder,
  sweepUtilityVMs,
  type UtilityVM,
  type UtilityVMOptions,
} from '../../src/uvm/index.js';
import { tarOf } from '../support/image-fixture.js';
import { processesNaming } from '../support/processes.js';
import { eventually } from './lcow.js';

const folder = mkdtempSync(join(tmpdir(), 'lcow-uvm-'));
const runtimeFolder = join(folder, 'run');
const cacheFolder = stateFolders().cache;
const vmFolders = (): string[] => readdirSync(join(runtimeFolder, 'vm'));

const layer = join(folder, 'layer.vhd');
const otherLayer = join(folder, 'other.vhd');
const scratch = join(folder, 'sandbox.vhdx');

async function* bytes(content: Uint8Array): AsyncGenerator<Uint8Array> {
  yield content;
}

beforeAll(async () => {
  await tarToVhd(bytes(await tarOf({ 'etc/greeting': 'hello from a layer\n' })), layer);
  await tarToVhd(bytes(await tarOf({ 'etc/greeting': 'hello from another\n' })), otherLayer);
  await createScratch(scratch, { sizeBytes: 1 << 30 });
});
afterAll(() => rmSync(folder, { recursive: true }));

function make(options: Partial<UtilityVMOptions> = {}): Promise<UtilityVM> {
  return createUtilityVM({ runtimeFolder, cacheFolder, memorySizeInMB: 256, ...options });
}

async function started(options: Partial<UtilityVMOptions> = {}): Promise<UtilityVM> {
  const vm = await make(options);
  await vm.start();
  return vm;
}

async function run(vm: UtilityVM, ...args: string[]): Promise<string> {
  const process = await vm.createProcess({
    process: { args, cwd: '/', env: ['PATH=/bin:/sbin:/usr/bin:/usr/sbin'] },
    stdout: true,
    stderr: true,
  });
  const { stdout, stderr } = process.stdio();
  const [out, err, { exitCode }] = await Promise.all([text(stdout!), text(stderr!), process.wait()]);
  await process.close();
  if (exitCode !== 0) throw new Error(`${args.join(' ')} exited ${exitCode}: ${err}`);
  return out;
}

async function readFile(vm: UtilityVM, path: string): Promise<string> {
  return Buffer.from((await vm.guest.client.readFile({ path })).content).toString();
}

async function expectNothingLeft(): Promise<void> {
  expect(await processesNaming(runtimeFolder)).toEqual([]);
  expect(vmFolders()).toEqual([]);
}

describe('a running utility VM', () => {
  let vm: UtilityVM;
  const consolePipe = join(folder, 'console.sock');
  const endpoint = { id: 'e1', macAddress: '02:00:00:00:00:01', addresses: ['10.0.2.15/24'], gateway: '10.0.2.2' };
  beforeAll(async () => {
    vm = await started({ consolePipe, networkAdapters: [endpoint] });
  });
  afterAll(async () => {
    await vm.close();
    await expectNothingLeft();
  });

  it('has an agent of our version, the right time, and its own random numbers', async () => {
    expect(vm.guest.capabilities.protocolMajor).toBe(1);
    const guestSeconds = Number(await run(vm, 'date', '+%s'));
    expect(Math.abs(guestSeconds - Date.now() / 1000)).toBeLessThan(5);
  });

  it('tells what it is and what it has used', async () => {
    const properties = await vm.properties();
    expect(properties).toMatchObject({ id: vm.id, state: 'Running', accelerator: vm.accelerator, memorySizeInMB: 256 });
    expect(properties.statistics!.Processor!.TotalRuntime100ns).toBeGreaterThan(0);
    expect(properties.statistics!.Memory!.MemoryUsageCommitBytes).toBeGreaterThan(32 << 20);
    // The second wall: QEMU itself runs under a filter of system calls.
    expect(readFileSync(`/proc/${properties.processId!}/status`, 'utf8')).toMatch(/^Seccomp:\t2$/m);
    expect((await vm.stats()).memoryLimitBytes).toBeGreaterThan(0);
  });

  it('mounts layers and a scratch hot-added in one go, and gives them back', async () => {
    const [a, b, s] = await vm.addSCSIBatch([
      { hostPath: layer, readOnly: true, isLayer: true },
      { hostPath: otherLayer, readOnly: true, isLayer: true },
      { hostPath: scratch, readOnly: false, uvmPath: '/run/test/scratch' },
    ]);
    expect(await readFile(vm, `${a!.uvmPath}/etc/greeting`)).toBe('hello from a layer\n');
    expect(await readFile(vm, `${b!.uvmPath}/etc/greeting`)).toBe('hello from another\n');
    await vm.guest.client.writeFile({ path: `${s!.uvmPath}/note`, content: Buffer.from('kept') });
    await expect(
      vm.guest.client.writeFile({ path: `${a!.uvmPath}/note`, content: Buffer.from('no') }),
    ).rejects.toMatchObject({ details: { errno: 30 } });
    for (const attachment of [a!, b!, s!]) await attachment.release();
    expect((await vm.properties()).statistics!.Storage.WriteSizeBytes).toBe(0);
    expect(await run(vm, 'ls', '/sys/block')).not.toMatch(/sd/);

    const again = await vm.addSCSI(scratch, { readOnly: false });
    expect(await readFile(vm, `${again.uvmPath}/note`)).toBe('kept');
    await again.release();
  });

  it('attaches a disk once for all who ask at once', async () => {
    const attachments = await Promise.all(Array.from({ length: 4 }, () => vm.addSCSI(layer, { readOnly: true })));
    expect(new Set(attachments.map(({ uvmPath }) => uvmPath)).size).toBe(1);
    await Promise.all(attachments.map((attachment) => attachment.release()));
    await expect(attachments[0]!.release()).rejects.toMatchObject({ code: 'ALREADY_RELEASED' });
  });

  it('uses each of its slots again and again', async () => {
    for (let round = 0; round < 5; round++) {
      const attachment = await vm.addSCSI(round % 2 ? layer : otherLayer, { readOnly: true });
      expect(attachment).toMatchObject({ controller: 0, lun: 0 });
      expect(await readFile(vm, `${attachment.uvmPath}/etc/greeting`)).toMatch(round % 2 ? /a layer/ : /another/);
      await attachment.release();
    }
  });

  it('has disks on every controller', async () => {
    const slots = Array.from({ length: 65 }, (_, index) => {
      const hostPath = join(folder, `blank-${index}.raw`);
      writeFileSync(hostPath, Buffer.alloc(1 << 20));
      return { hostPath, readOnly: true };
    });
    // No file system on them: the guest refuses, and everything is taken back.
    await expect(vm.addSCSIBatch(slots)).rejects.toMatchObject({ code: 'GUEST_FAILED' });
    expect(await run(vm, 'ls', '/sys/block')).not.toMatch(/sd/);
    const attachment = await vm.addSCSI(layer, { readOnly: true });
    expect(attachment).toMatchObject({ controller: 0, lun: 0 });
    await attachment.release();
  });

  it('refuses what is no disk, and leaves nothing of it', async () => {
    await expect(vm.addSCSI(join(folder, 'none.vhd'), { readOnly: true })).rejects.toMatchObject({ code: 'NOT_FOUND' });
    await expect(vm.addSCSI('/etc/passwd', { readOnly: true })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    await expect(vm.addSCSI(layer, { readOnly: false, isLayer: true })).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
    });
  });

  it('shares layers with another VM, and no writable disk', async () => {
    const [first, disk] = await vm.addSCSIBatch([
      { hostPath: layer, readOnly: true },
      { hostPath: scratch, readOnly: false },
    ]);
    await using other = await started();
    const second = await other.addSCSI(layer, { readOnly: true });
    expect(await readFile(other, `${second.uvmPath}/etc/greeting`)).toBe('hello from a layer\n');
    await expect(other.addSCSI(scratch, { readOnly: false })).rejects.toMatchObject({ code: 'IN_USE' });
    await first!.release();
    await disk!.release();
    await (await other.addSCSI(scratch, { readOnly: false })).release();
  });

  it('reaches services on the loopback of the host from a network namespace', async () => {
    const server = createServer((socket) => socket.end('hello from the host\n'));
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    const { port } = server.address() as AddressInfo;
    const path = await vm.addNetNS('n1');
    await vm.addEndpointsToNS('n1', [endpoint]);
    expect(await run(vm, 'busybox', 'nsenter', `--net=${path}`, 'nc', '10.0.2.2', String(port))).toBe(
      'hello from the host\n',
    );
    await vm.removeNetNS('n1');
    server.close();
    // The adapter is free again.
    await vm.addNetNS('n2');
    await vm.addEndpointsToNS('n2', [endpoint]);
    await vm.removeNetNS('n2');
  });

  it('stands still while it is paused, and has the right time when it goes on', async () => {
    await vm.pause();
    expect((await vm.properties()).state).toBe('Paused');
    await expect(vm.pause()).rejects.toMatchObject({ code: 'INVALID_STATE' });
    const limit = AbortSignal.timeout(1000);
    await expect(vm.guest.client.stats({}, { signal: limit })).rejects.toMatchObject({ code: 'CANCELLED' });
    await vm.resume();
    const guestSeconds = Number(await run(vm, 'date', '+%s'));
    expect(Math.abs(guestSeconds - Date.now() / 1000)).toBeLessThan(5);
  });

  it('shows its console at the pipe of its options', async () => {
    const client = createConnection(consolePipe);
    await once(client, 'connect');
    await run(vm, 'sh', '-c', 'echo seen-on-the-console > /dev/console');
    let seen = '';
    for await (const chunk of client) {
      seen += String(chunk);
      if (seen.includes('seen-on-the-console')) break;
    }
    expect(vm.consoleTail()).toContain('seen-on-the-console');
  });
});

describe('the end of a utility VM', () => {
  afterEach(expectNothingLeft);

  it('is graceful when it is shut down, and what was written is on the disk', async () => {
    const vm = await started();
    const attachment = await vm.addSCSI(scratch, { readOnly: false });
    await vm.guest.client.writeFile({ path: `${attachment.uvmPath}/last`, content: Buffer.from('words') });
    expect(await vm.shutdown()).toMatchObject({ kind: 'graceful', reason: 'guest-shutdown' });
    // The disk went with the VM.
    await attachment.release();
    await vm.close();
    await vm.close();
    await using next = await started();
    const again = await next.addSCSI(scratch, { readOnly: false });
    expect(await readFile(next, `${again.uvmPath}/last`)).toBe('words');
  });

  it('is noticed when QEMU is killed, by waiters, callers and releases', async () => {
    const vm = await started();
    const attachment = await vm.addSCSI(layer, { readOnly: true });
    const sleeping = await vm.createProcess({ process: { args: ['sleep', '1000'], cwd: '/' } });
    const waiting = expect(sleeping.wait()).rejects.toMatchObject({ code: 'GUEST_UNREACHABLE' });
    process.kill((await vm.properties()).processId!, 'SIGKILL');
    expect(await vm.wait()).toMatchObject({ kind: 'unexpected', signal: 'SIGKILL' });
    await waiting;
    await attachment.release();
    await expect(vm.addSCSI(layer, { readOnly: true })).rejects.toMatchObject({ code: 'VM_EXITED' });
    await vm.terminate();
    await vm.close();
  });

  it('by a panic at the start shows the last lines of the console', async () => {
    const vm = await make({ kernelBootOptions: 'rdinit=/nonexistent init=/nonexistent' });
    const error: unknown = await vm.start().catch((reason: unknown) => reason);
    expect(error).toMatchObject({ code: 'GUEST_PANIC' });
    expect((error as { details: { consoleTail: string } }).details.consoleTail).toMatch(/Kernel panic - not syncing/);
    expect(await vm.wait()).toMatchObject({ kind: 'panic' });
  });

  it('by the death of the agent is a panic too', async () => {
    const vm = await started();
    await run(vm, 'sh', '-c', 'echo c > /proc/sysrq-trigger').catch(() => '');
    expect(await vm.wait()).toMatchObject({
      kind: 'panic',
      consoleTail: expect.stringContaining('Kernel panic') as string,
    });
    await vm.close();
  });

  it('comes when its start is cancelled, at any moment', async () => {
    for (const ms of [0, 30, 120, 700]) {
      const vm = await make();
      const stop = new AbortController();
      setTimeout(() => stop.abort(), ms);
      await expect(vm.start({ signal: stop.signal })).rejects.toMatchObject({ code: 'CANCELLED' });
      expect(await vm.wait()).toMatchObject({ kind: 'forced' });
      await expectNothingLeft();
    }
  });

  it('comes when the guest does not get ready in time', async () => {
    process.env['HCSSHIM_TIMEOUT_GCSCONNECTION'] = '0.5';
    try {
      await expect(started()).rejects.toMatchObject({ code: 'GUEST_UNREACHABLE' });
    } finally {
      delete process.env['HCSSHIM_TIMEOUT_GCSCONNECTION'];
    }
  });
});

describe('a utility VM whose owner', () => {
  const owner = (options: { detached?: boolean; stopAt: string }): ChildProcess => {
    const program = new URL('../support/owner-process.ts', import.meta.url).pathname;
    return spawn(
      process.execPath,
      ['--import', 'tsx', program, JSON.stringify({ runtimeFolder, cacheFolder, detached: false, ...options })],
      {
        stdio: ['ignore', 'pipe', 'inherit'],
      },
    );
  };
  const qemus = async (): Promise<string[]> =>
    (await processesNaming(join(runtimeFolder, 'vm'))).filter((line) => line.includes('qemu'));

  it.each(['created', 'starting', 'started'])(
    'is killed leaves no QEMU, and the sweep removes the rest: %s',
    async (stopAt) => {
      const child = owner({ stopAt });
      await once(child.stdout!, 'data');
      if (stopAt === 'starting') await eventually(async () => (await qemus()).length > 0, 'the start of QEMU');
      child.kill('SIGKILL');
      await once(child, 'close');
      await eventually(async () => (await qemus()).length === 0, 'the end of QEMU', 5000);
      expect(vmFolders()).toHaveLength(1);
      expect(await sweepUtilityVMs(runtimeFolder)).toEqual(['owned']);
      await expectNothingLeft();
    },
  );

  it('lets go of it lives on, and is left alone by the sweep', async () => {
    const child = owner({ stopAt: 'started', detached: true });
    const [code] = (await once(child, 'exit')) as [number];
    expect(code).toBe(0);
    expect(await qemus()).toHaveLength(1);
    expect(await sweepUtilityVMs(runtimeFolder)).toEqual([]);
    const socket = createConnection(join(runtimeFolder, 'vm', vmFolders()[0]!, 'qmp.sock'));
    socket.write('{"execute": "qmp_capabilities"}{"execute": "quit"}');
    await once(socket.resume(), 'close');
    await eventually(async () => (await qemus()).length === 0, 'the end of QEMU', 5000);
    expect(await sweepUtilityVMs(runtimeFolder)).toEqual(['owned']);
    await expectNothingLeft();
  });
});

it('accelerators are judged by booting a guest', async () => {
  const verdicts = await probeAccelerators({
    qemu: await findQemu(),
    kernelFilePath: join(guestImageFolder(), 'vmlinux'),
    cacheFolder: folder,
  });
  expect(verdicts.find(({ accelerator }) => accelerator === 'tcg')).toMatchObject({ usable: true });
  for (const { usable, reason, trialMs } of verdicts) expect(usable ? trialMs > 0 : reason.length > 0).toBe(true);
});
