import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeEach, describe, expect, it } from 'vitest';
import { QmpError, type QmpClient, type QmpEvent } from './qmp-client.js';
import { ScsiDisks, type DiskToAdd } from './scsi-disks.js';

const folder = mkdtempSync(join(tmpdir(), 'lcow-scsi-'));
afterAll(() => rmSync(folder, { recursive: true }));
const path = join(folder, 'disk.raw');
writeFileSync(path, Buffer.alloc(4096));

/** Keeps the block nodes and devices QEMU would have, by its rules. */
class FakeQmp {
  readonly nodes = new Set<string>();
  readonly devices = new Set<string>();
  readonly log: string[] = [];
  fails: (step: string) => boolean = () => false;
  #waiters: { match: (event: QmpEvent) => boolean; resolve: (event: QmpEvent) => void }[] = [];

  execute = (command: string, parameters: Record<string, unknown> = {}): Promise<unknown> => {
    const id = String(parameters['node-name'] ?? parameters['id']);
    const step = `${command} ${id}`;
    this.log.push(step);
    const refuse = (words: string): Promise<never> => Promise.reject(new QmpError(command, 'GenericError', words));
    if (this.fails(step)) return refuse(`${step} failed`);
    switch (command) {
      case 'blockdev-add':
        this.nodes.add(id);
        break;
      case 'device_add':
        if (!this.nodes.has(id)) return refuse(`Property 'scsi-hd.drive' can't find value '${id}'`);
        this.devices.add(id);
        break;
      case 'device_del':
        this.devices.delete(id);
        for (const { match, resolve } of this.#waiters) {
          const event = { event: 'DEVICE_DELETED', data: { device: id } };
          if (match(event)) resolve(event);
        }
        break;
      case 'blockdev-del':
        if (this.devices.has(id)) return refuse('Node is in use');
        this.nodes.delete(id);
        break;
    }
    return Promise.resolve({});
  };

  waitFor = (match: (event: QmpEvent) => boolean): Promise<QmpEvent> =>
    new Promise((resolve) => this.#waiters.push({ match, resolve }));
}

let qmp: FakeQmp;
let disks: ScsiDisks;
beforeEach(() => {
  qmp = new FakeQmp();
  disks = new ScsiDisks(qmp as unknown as QmpClient, [0, 1], []);
});

const at = (lun: number, controller = 0, file = path): DiskToAdd => ({
  controller,
  lun,
  attachment: { Path: file, Type: 'VirtualDisk', ReadOnly: true },
});

describe('disks of a running system', () => {
  it('are added in one go and removed device first', async () => {
    await disks.add([at(0), at(1), at(63, 1)]);
    // Every command is sent before the first answer.
    expect(qmp.log).toEqual(
      ['disk0-0', 'disk0-1', 'disk1-63'].flatMap((id) => [`blockdev-add ${id}`, `device_add ${id}`]),
    );
    expect(disks.list().map(({ controller, lun }) => [controller, lun])).toEqual([
      [0, 0],
      [0, 1],
      [1, 63],
    ]);
    await disks.remove([at(0), at(1), at(63, 1)]);
    expect([qmp.nodes.size, qmp.devices.size, disks.list()]).toEqual([0, 0, []]);
    await disks.add([at(0)]);
  });

  it.each(['blockdev-add disk0-1', 'device_add disk0-1', 'device_add disk0-2'])(
    'are added all or none: %s fails',
    async (step) => {
      qmp.fails = (reached) => reached === step;
      await expect(disks.add([at(0), at(1), at(2)])).rejects.toMatchObject({ code: 'QEMU_FAILED' });
      expect([qmp.nodes.size, qmp.devices.size, disks.list()]).toEqual([0, 0, []]);
      qmp.fails = () => false;
      await disks.add([at(0), at(1), at(2)]);
      expect(disks.list()).toHaveLength(3);
    },
  );

  it('tell the first reason: the node, not the device that could not find it', async () => {
    qmp.fails = (step) => step === 'blockdev-add disk0-0';
    await expect(disks.add([at(0)])).rejects.toThrow(/blockdev-add disk0-0 failed/);
  });

  it('are refused where there is no controller, no free slot, or no file', async () => {
    await disks.add([at(0)]);
    await expect(disks.add([at(1), at(0)])).rejects.toMatchObject({ code: 'ALREADY_EXISTS' });
    await expect(disks.add([at(2), at(2)])).rejects.toMatchObject({ code: 'ALREADY_EXISTS' });
    await expect(disks.add([at(0, 2)])).rejects.toMatchObject({ code: 'NOT_FOUND' });
    await expect(disks.add([at(3, 0, join(folder, 'none.raw'))])).rejects.toMatchObject({ code: 'NOT_FOUND' });
    await expect(disks.remove([at(5)])).rejects.toMatchObject({ code: 'NOT_ATTACHED' });
    expect(disks.list()).toHaveLength(1);
    await disks.add([at(1), at(2), at(3)]);
  });

  it('tell a file that another machine writes to', async () => {
    qmp.execute = () =>
      Promise.reject(
        new QmpError('blockdev-add', 'GenericError', 'Failed to get "write" lock\nIs another process using it?'),
      );
    await expect(disks.add([at(0)])).rejects.toMatchObject({ code: 'IN_USE' });
  });

  it.each(['device_del disk0-0', 'blockdev-del disk0-0'])(
    'lose their slot when QEMU keeps them: %s fails',
    async (step) => {
      await disks.add([at(0), at(1)]);
      qmp.fails = (reached) => reached === step;
      await expect(disks.remove([at(0), at(1)])).rejects.toMatchObject({ code: 'QEMU_FAILED' });
      qmp.fails = () => false;
      // The other one is gone all the same.
      await disks.add([at(1)]);
      await expect(disks.add([at(0)])).rejects.toMatchObject({ code: 'IN_USE' });
      await expect(disks.remove([at(0)])).rejects.toMatchObject({ code: 'NOT_ATTACHED' });
    },
  );
});
