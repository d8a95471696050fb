import { once } from 'node:events';
import { mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { createConnection } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { createScratch, tarToVhd } from '../../src/disk/index.js';
import {
  chooseAccelerator,
  createComputeSystem,
  findQemu,
  scsiResourcePath,
  type Accelerator,
  type ComputeSystem,
  type ComputeSystemDocument,
  type NotificationName,
} from '../../src/hcs/index.js';
import { stateFolders } from '../../src/state/index.js';
import { guestImageFolder } from '../../src/uvm/index.js';
import { tarOf } from '../support/image-fixture.js';
import { processesNaming } from '../support/processes.js';
import { eventually } from './lcow.js';

// QEMU's option syntax has commas, ours must not mind them.
const folder = mkdtempSync(join(tmpdir(), 'lcow,cs '));
const runtimeFolder = join(folder, 'run');
// The random end of its name: the command line has the commas doubled.
const mark = folder.slice(-6);
const layer = join(folder, 'layer.vhd');
const scratch = join(folder, 'sandbox.vhdx');
let accelerator: Accelerator;

beforeAll(async () => {
  const tar = await tarOf({ file: 'content' });
  await tarToVhd(
    (async function* () {
      yield tar;
    })(),
    layer,
  );
  await createScratch(scratch, { sizeBytes: 1 << 30 });
  accelerator = await chooseAccelerator({
    qemu: await findQemu(),
    kernelFilePath: join(guestImageFolder(), 'vmlinux'),
    cacheFolder: stateFolders().cache,
  });
});
afterAll(() => rmSync(folder, { recursive: true }));
afterEach(async () => {
  expect(await processesNaming(mark)).toEqual([]);
  expect(readdirSync(join(runtimeFolder, 'vm'))).toEqual([]);
});

type Devices = NonNullable<ComputeSystemDocument['VirtualMachine']['Devices']>;

function document(devices: Devices = {}, options = ''): ComputeSystemDocument {
  const image = guestImageFolder();
  return {
    Owner: 'test',
    SchemaVersion: { Major: 2, Minor: 1 },
    ShouldTerminateOnLastHandleClosed: true,
    VirtualMachine: {
      StopOnReset: true,
      Chipset: {
        LinuxKernelDirect: {
          KernelFilePath: join(image, 'vmlinux'),
          InitRdPath: join(image, 'initrd.img'),
          KernelCmdLine: `console=ttyS0 quiet panic=-1 cryptomgr.notests ${options}`,
        },
      },
      ComputeTopology: { Memory: { SizeInMB: 128 }, Processor: { Count: 1 } },
      Devices: devices,
    },
  };
}

async function create(devices?: Devices, options?: string): Promise<ComputeSystem> {
  return createComputeSystem('one', document(devices, options), { runtimeFolder, accelerator });
}

const disk = (Path: string, ReadOnly = true): { Path: string; Type: string; ReadOnly: boolean } => ({
  Path,
  Type: 'VirtualDisk',
  ReadOnly,
});

describe('a compute system on a real QEMU', () => {
  it('goes through its states and tells of each', async () => {
    const system = await create();
    const told: NotificationName[] = [];
    system.on('notification', (name) => told.push(name));
    await system.start();
    await expect(system.start()).rejects.toMatchObject({ code: 'INVALID_STATE' });
    await system.pause();
    await system.resume();
    await system.properties();
    await Promise.all([system.terminate(), system.terminate()]);
    expect(await system.wait()).toMatchObject({ kind: 'forced', reason: 'host-qmp-quit', exitCode: 0, stderr: '' });
    expect(told).toEqual([
      'SystemStartCompleted',
      'SystemPauseCompleted',
      'SystemResumeCompleted',
      'SystemGetPropertiesCompleted',
      'SystemExited',
    ]);
  });

  it('has the devices of its document from the start, and lets go of its disks', async () => {
    const NamedPipe = join(folder, 'console.sock');
    await using system = await create({
      Scsi: { '1': { Attachments: { '5': disk(layer), '6': disk(scratch, false) } }, '3': {} },
      NetworkAdapters: { a: { MacAddress: '02-00-00-00-00-01' }, b: { MacAddress: '02-00-00-00-00-02' } },
      VirtioSerial: { Ports: { 'lcow.rpc': {}, 'lcow.mux': {}, 'other-port': {} } },
      ComPorts: { '0': { NamedPipe } },
    });
    await system.start();
    const attachments = async (): Promise<string[]> =>
      (await system.properties()).Engine.Attachments.map(({ controller, lun }) => `${controller}/${lun}`);
    expect(await attachments()).toEqual(['1/5', '1/6']);
    (await system.connect('other-port')).destroy();
    await expect(system.connect('no-port')).rejects.toMatchObject({ code: 'NOT_FOUND' });
    await system.modifyMany([5, 6].map((lun) => ({ RequestType: 'Remove', ResourcePath: scsiResourcePath(1, lun) })));
    expect(await attachments()).toEqual([]);
    await system.modify({ RequestType: 'Add', ResourcePath: scsiResourcePath(3, 63), Settings: disk(scratch, false) });
    await expect(
      system.modify({ RequestType: 'Add', ResourcePath: scsiResourcePath(3, 0), Settings: disk(scratch, false) }),
    ).rejects.toMatchObject({ code: 'IN_USE' });
    expect(await attachments()).toEqual(['3/63']);
    const client = createConnection(NamedPipe);
    await once(client, 'connect');
    client.destroy();
  });

  it('takes 256 disks and gives them back', async () => {
    await using system = await create({ Scsi: { '0': {}, '1': {}, '2': {}, '3': {} } });
    await system.start();
    const slots = Array.from({ length: 256 }, (_, index) => scsiResourcePath(index >> 6, index & 63));
    await system.modifyMany(slots.map((ResourcePath) => ({ RequestType: 'Add', ResourcePath, Settings: disk(layer) })));
    expect((await system.properties()).Engine.Attachments).toHaveLength(256);
    await system.modifyMany(slots.map((ResourcePath) => ({ RequestType: 'Remove', ResourcePath })));
    expect((await system.properties()).Engine.Attachments).toHaveLength(0);
  });

  it('tells a panic from a clean end, with the last lines of the console', async () => {
    const system = await create({}, 'rdinit=/nonexistent');
    const told: NotificationName[] = [];
    system.on('notification', (name) => told.push(name));
    await system.start();
    const exit = await system.wait();
    expect(exit).toMatchObject({ kind: 'panic', exitCode: 0 });
    expect(exit.consoleTail).toContain('Kernel panic - not syncing');
    expect(told).toEqual(['SystemStartCompleted', 'SystemCrashReport', 'SystemExited']);
  });

  it('that QEMU refuses to start says why', async () => {
    const broken = join(folder, 'broken.vhdx');
    writeFileSync(broken, Buffer.concat([Buffer.from('vhdxfile'), Buffer.alloc(1 << 20)]));
    const system = await create({ Scsi: { '0': { Attachments: { '0': disk(broken) } } } });
    const error: unknown = await system.start().catch((reason: unknown) => reason);
    expect(error).toMatchObject({ code: 'QEMU_FAILED', details: { exitCode: 1 } });
    expect((error as Error).message).toMatch(/vhdx|header|region/i);
  });

  it('lives on when a handle is closed that does not bind it, until its owner ends it', async () => {
    const value = { ...document(), ShouldTerminateOnLastHandleClosed: false };
    const system = await createComputeSystem('one', value, { runtimeFolder, accelerator });
    await system.start();
    const pid = (await system.properties()).Engine.ProcessId!;
    await system[Symbol.asyncDispose]();
    expect(await processesNaming(mark)).toHaveLength(1);
    await expect(system.pause()).rejects.toMatchObject({ code: 'CLOSED' });
    process.kill(pid, 'SIGKILL');
    expect(await system.wait()).toMatchObject({ kind: 'unexpected' });
    await eventually(async () => (await processesNaming(mark)).length === 0, 'the end of QEMU', 5000);
  });
});
