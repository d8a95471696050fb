import { mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { FAKE_QEMU, fakeQemu } from '../../../test/support/fake-qemu.js';
import { processesNaming } from '../../../test/support/processes.js';
import { createComputeSystem, type ComputeSystem, type ComputeSystemDocument } from '../index.js';

const folder = mkdtempSync(join(tmpdir(), 'lcow-cs-'));
const runtimeFolder = join(folder, 'run');
afterAll(() => rmSync(folder, { recursive: true }));

const kernel = join(folder, 'vmlinux');
const initrd = join(folder, 'initrd.img');
beforeEach(() => {
  writeFileSync(kernel, '');
  writeFileSync(initrd, '');
  mkdirSync(runtimeFolder, { recursive: true });
});
afterEach(async () => {
  vi.unstubAllEnvs();
  expect(await processesNaming(runtimeFolder)).toEqual([]);
  expect(readdirSync(join(runtimeFolder, 'vm'))).toEqual([]);
});

function document(change: Partial<ComputeSystemDocument['VirtualMachine']> = {}): ComputeSystemDocument {
  return {
    SchemaVersion: { Major: 2, Minor: 1 },
    ShouldTerminateOnLastHandleClosed: true,
    VirtualMachine: {
      Chipset: { LinuxKernelDirect: { KernelFilePath: kernel, InitRdPath: initrd, KernelCmdLine: '' } },
      ComputeTopology: { Memory: { SizeInMB: 64 }, Processor: { Count: 1 } },
      ...change,
    },
  };
}

async function created(does: string, value = document(), id = 'one'): Promise<ComputeSystem> {
  vi.stubEnv('LCOW_QEMU', fakeQemu(folder, does));
  return createComputeSystem(id, value, { runtimeFolder, accelerator: 'tcg' });
}

describe('a compute system', () => {
  it('has its own private folder from its creation to its end', async () => {
    const system = await created(FAKE_QEMU.exits);
    expect(readdirSync(join(runtimeFolder, 'vm'))).toHaveLength(1);
    expect(system.state).toBe('Created');
    await expect(created(FAKE_QEMU.exits)).rejects.toMatchObject({ code: 'ALREADY_EXISTS' });
    const other = await created(FAKE_QEMU.exits, document(), 'two');
    await other[Symbol.asyncDispose]();
    await system[Symbol.asyncDispose]();
    expect(system.state).toBe('Stopped');
    expect(await system.wait()).toMatchObject({ kind: 'forced', exitCode: null });
    await (await created(FAKE_QEMU.exits))[Symbol.asyncDispose]();
  });

  it.each([
    ['exits', 'QEMU_FAILED', /exit code 3\): qemu: boom\.$/],
    ['greetsAndExits', 'QEMU_FAILED', /exit code 4\): qemu: late\.$/],
    ['neverGreets', 'TIMED_OUT', /greeting of the QEMU monitor/],
    ['greetsOnly', 'TIMED_OUT', /qmp_capabilities/],
  ] as const)('that cannot start leaves nothing: QEMU %s', async (name, code, words) => {
    vi.stubEnv('LCOW_TIMEOUT_QMPCOMMAND', '0.3');
    const system = await created(FAKE_QEMU[name]);
    const error: unknown = await system.start().catch((reason: unknown) => reason);
    expect(error).toMatchObject({ code });
    expect((error as Error).message).toMatch(words);
    expect(await system.wait()).toMatchObject({ kind: 'unexpected' });
    await expect(system.start()).rejects.toMatchObject({ code: 'VM_EXITED' });
  });

  it.each(['neverGreets', 'greetsOnly'] as const)('can be cancelled while it starts: QEMU %s', async (name) => {
    const system = await created(FAKE_QEMU[name]);
    const stop = new AbortController();
    const starting = system.start({ signal: stop.signal });
    setTimeout(() => stop.abort(), 50);
    await expect(starting).rejects.toMatchObject({ code: 'CANCELLED' });
    expect(await system.wait()).toMatchObject({ kind: 'forced' });
  });

  it('can be terminated while it starts', async () => {
    const system = await created(FAKE_QEMU.greetsOnly);
    const starting = expect(system.start()).rejects.toMatchObject({ code: 'VM_EXITED' });
    await system.terminate();
    await starting;
    expect(await system.wait()).toMatchObject({ kind: 'forced' });
  });

  it('is under the time-out of its start', async () => {
    vi.stubEnv('HCSSHIM_TIMEOUT_SYSTEMSTART', '0.1');
    const system = await created(FAKE_QEMU.neverGreets);
    await expect(system.start()).rejects.toMatchObject({ code: 'TIMED_OUT' });
  });

  it('is refused without its boot files', async () => {
    rmSync(kernel);
    await expect(created(FAKE_QEMU.exits)).rejects.toMatchObject({ code: 'GUEST_IMAGE_MISSING' });
    writeFileSync(kernel, '');
    rmSync(initrd);
    await expect(created(FAKE_QEMU.exits)).rejects.toMatchObject({ code: 'GUEST_IMAGE_MISSING' });
    mkdirSync(join(runtimeFolder, 'vm'), { recursive: true });
  });

  it('whose disk is missing does not start', async () => {
    const Attachments = { '0': { Path: join(folder, 'none.vhd'), Type: 'VirtualDisk' } };
    const system = await created(FAKE_QEMU.exits, document({ Devices: { Scsi: { '0': { Attachments } } } }));
    await expect(system.start()).rejects.toMatchObject({ code: 'NOT_FOUND' });
  });

  it('takes no operation that does not fit its state', async () => {
    const system = await created(FAKE_QEMU.exits);
    for (const run of [
      () => system.pause(),
      () => system.resume(),
      () => system.connect('lcow.rpc'),
      () => system.modify({ RequestType: 'Remove', ResourcePath: 'VirtualMachine/Devices/Scsi/0/Attachments/0' }),
    ])
      await expect(run()).rejects.toMatchObject({ code: expect.stringMatching(/INVALID_STATE|NOT_FOUND/) as string });
    await system.terminate();
    await system.terminate();
    await expect(system.pause()).rejects.toMatchObject({ code: 'VM_EXITED' });
  });

  it.each(['', 'a/b', '../x', 'x'.repeat(129)])('is refused the id %j', async (id) => {
    await expect(created(FAKE_QEMU.exits, document(), id)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  });

  it('cannot be both detached and bound to its handle', async () => {
    vi.stubEnv('LCOW_QEMU', fakeQemu(folder, FAKE_QEMU.exits));
    await expect(
      createComputeSystem('one', document(), { runtimeFolder, accelerator: 'tcg', detached: true }),
    ).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  });
});
