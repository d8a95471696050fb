import { mkdir, mkdtemp, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { LcowError } from '../errors/index.js';
import type { ScsiAttachment } from '../uvm/index.js';
import {
  mountContainerLayers,
  newImageLayers,
  unmountContainerLayers,
  UnmountOperation,
  type LayerHost,
} from './index.js';

/** A utility VM that only keeps account: what is attached, what is combined, and in which order things were done. */
class AccountingVm {
  readonly log: string[] = [];
  readonly attached: string[] = [];
  readonly combined = new Map<string, { layers: readonly string[]; scratch: string | undefined }>();
  failAt: ((step: string) => boolean) | undefined;

  step(step: string): void {
    if (this.failAt?.(step)) throw new LcowError('GUEST_FAILED', `${step} failed.`);
    this.log.push(step);
  }

  addSCSIBatch = async (disks: Parameters<LayerHost['addSCSIBatch']>[0]): Promise<ScsiAttachment[]> => {
    this.step('attach');
    return disks.map(({ hostPath, uvmPath }, lun) => {
      this.attached.push(hostPath);
      return {
        uvmPath: uvmPath ?? `/run/mounts/scsi/m${lun}`,
        controller: 0,
        lun,
        release: async () => {
          this.step(`release ${hostPath}`);
          this.attached.splice(this.attached.indexOf(hostPath), 1);
        },
      } as ScsiAttachment;
    });
  };
  combineLayers: LayerHost['combineLayers'] = async (layers, scratch, rootfs) => {
    this.step('combine');
    this.combined.set(rootfs, { layers, scratch });
  };
  removeLayers: LayerHost['removeLayers'] = async (rootfs) => {
    this.step('separate');
    this.combined.delete(rootfs);
  };
}

let root: string;
let scratch: string;
beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), 'lcow-layers-'));
  scratch = join(root, 'scratch');
  await mkdir(scratch);
  await writeFile(join(scratch, 'sandbox.vhdx'), '');
});
afterAll(async () => {
  await rm(root, { recursive: true });
});

const guestRoot = '/run/gcs/c/one';

describe('mountContainerLayers', () => {
  it('hands the layers to the overlay top-most first and the scratch apart', async () => {
    const vm = new AccountingVm();
    const rootfs = await mountContainerLayers(['/l/top', '/l/base', scratch], guestRoot, vm);
    expect(rootfs).toBe('/run/gcs/c/one/rootfs');
    expect(vm.attached).toEqual(['/l/top/layer.vhd', '/l/base/layer.vhd', join(scratch, 'sandbox.vhdx')]);
    expect(vm.combined.get(rootfs)).toEqual({
      layers: ['/run/mounts/scsi/m0', '/run/mounts/scsi/m1'],
      scratch: '/run/gcs/c/one/scratch',
    });
  });

  it('attaches a shared scratch by its real path', async () => {
    const shared = join(root, 'shared');
    await mkdir(shared);
    await symlink(join(scratch, 'sandbox.vhdx'), join(shared, 'sandbox.vhdx'));
    const vm = new AccountingVm();
    await mountContainerLayers(['/l/base', shared], guestRoot, vm);
    expect(vm.attached.at(-1)).toBe(join(scratch, 'sandbox.vhdx'));
  });

  it('refuses fewer folders than a layer and a scratch', async () => {
    for (const folders of [[], [scratch]])
      await expect(mountContainerLayers(folders, guestRoot, new AccountingVm())).rejects.toMatchObject({
        code: 'INVALID_ARGUMENT',
      });
  });

  it('refuses a second mount at the same place, also while the first is under way', async () => {
    const vm = new AccountingVm();
    const both = await Promise.allSettled([
      mountContainerLayers(['/l/base', scratch], guestRoot, vm),
      mountContainerLayers(['/l/base', scratch], guestRoot, vm),
    ]);
    expect(both.map(({ status }) => status)).toEqual(['fulfilled', 'rejected']);
    expect(vm.attached).toHaveLength(2);
  });

  it('says which scratch is missing', async () => {
    await expect(mountContainerLayers(['/l/base', '/no/such'], guestRoot, new AccountingVm())).rejects.toMatchObject({
      code: 'NOT_FOUND',
    });
  });

  it.each(['attach', 'combine'])('leaves nothing attached when %s fails, and can be tried again', async (step) => {
    const vm = new AccountingVm();
    vm.failAt = (reached) => reached === step;
    await expect(mountContainerLayers(['/l/top', '/l/base', scratch], guestRoot, vm)).rejects.toMatchObject({
      message: `${step} failed.`,
    });
    expect(vm.attached).toEqual([]);
    vm.failAt = undefined;
    await mountContainerLayers(['/l/top', '/l/base', scratch], guestRoot, vm);
    expect(vm.attached).toHaveLength(3);
  });

  it('reports the first failure, and with it what could not be undone', async () => {
    const vm = new AccountingVm();
    vm.failAt = (step) => step === 'combine' || step === 'release /l/top/layer.vhd';
    const failure = await mountContainerLayers(['/l/top', '/l/base', scratch], guestRoot, vm).catch(
      (error: unknown) => error as LcowError,
    );
    expect(failure).toMatchObject({ message: 'combine failed.' });
    expect((failure as LcowError).undoFailures).toHaveLength(1);
    expect(vm.attached).toEqual(['/l/top/layer.vhd']);
  });
});

describe('unmountContainerLayers', () => {
  const folders = (): string[] => ['/l/top', '/l/base', scratch];

  it('takes the overlay down first, then the scratch, then the layers top-most first', async () => {
    const vm = new AccountingVm();
    const rootfs = await mountContainerLayers(folders(), guestRoot, vm);
    vm.log.length = 0;
    await unmountContainerLayers(folders(), rootfs, vm);
    expect(vm.log).toEqual([
      'separate',
      `release ${join(scratch, 'sandbox.vhdx')}`,
      'release /l/top/layer.vhd',
      'release /l/base/layer.vhd',
    ]);
  });

  it('releases only the scratch when asked for SCSI, and the rest later', async () => {
    const vm = new AccountingVm();
    const rootfs = await mountContainerLayers(folders(), guestRoot, vm);
    await unmountContainerLayers(folders(), rootfs, vm, UnmountOperation.SCSI);
    expect(vm.attached).toEqual(['/l/top/layer.vhd', '/l/base/layer.vhd']);
    await unmountContainerLayers(folders(), rootfs, vm, UnmountOperation.SCSI | UnmountOperation.VPMEM);
    expect(vm.attached).toEqual([]);
  });

  it('tries every step, reports all failures, and finishes the rest when called again', async () => {
    const vm = new AccountingVm();
    const rootfs = await mountContainerLayers(folders(), guestRoot, vm);
    vm.failAt = (step) => step === 'separate' || step === 'release /l/top/layer.vhd';
    await expect(unmountContainerLayers(folders(), rootfs, vm)).rejects.toBeInstanceOf(AggregateError);
    expect(vm.attached).toEqual(['/l/top/layer.vhd']);
    vm.failAt = undefined;
    await unmountContainerLayers(folders(), rootfs, vm);
    expect([vm.attached, vm.combined.size]).toEqual([[], 0]);
    await expect(unmountContainerLayers(folders(), rootfs, vm)).rejects.toMatchObject({ code: 'NOT_ATTACHED' });
  });
});

describe('ImageLayers', () => {
  it('release once, however often they are asked to', async () => {
    const vm = new AccountingVm();
    await mountContainerLayers(['/l/base', scratch], guestRoot, vm);
    const layers = newImageLayers(vm, guestRoot, ['/l/base', scratch]);
    await layers.release(true);
    const steps = vm.log.length;
    await layers.release(true);
    expect([vm.attached, vm.log.length]).toEqual([[], steps]);
  });

  it('try again after a failure', async () => {
    const vm = new AccountingVm();
    await mountContainerLayers(['/l/base', scratch], guestRoot, vm);
    const layers = newImageLayers(vm, guestRoot, ['/l/base', scratch]);
    vm.failAt = (step) => step === 'separate';
    await expect(layers.release(true)).rejects.toThrow('separate failed.');
    vm.failAt = undefined;
    await layers.release(true);
    expect(vm.combined.size).toBe(0);
  });
});
