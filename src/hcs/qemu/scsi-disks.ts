import { LcowError, errorMessage } from '../../errors/index.js';
import { abortable } from '../../lifetime/index.js';
import { scsiResourcePath, scsiSerial, type Attachment } from '../schema/index.js';
import { blockNode, diskDeviceId, inspectDisk, type BlockNode } from './disk-image.js';
import { QmpError, type QmpClient } from './qmp-client.js';

/** A SCSI disk for QEMU's device_add or -device. Channel and target are always 0, as in HCS. */
export interface ScsiDevice extends Record<string, string | number> {
  readonly driver: 'scsi-hd';
  readonly id: string;
}

/** The disk of a slot; its serial number is what the guest knows it by. */
export function scsiDevice(controller: number, lun: number): ScsiDevice {
  const id = diskDeviceId(controller, lun);
  return {
    driver: 'scsi-hd',
    id,
    bus: `scsi${controller}.0`,
    channel: 0,
    'scsi-id': 0,
    lun,
    drive: id,
    serial: scsiSerial(controller, lun),
    vendor: 'LCOW',
    product: 'virtual disk',
  };
}

/** A slot: controller and LUN. */
export interface Slot {
  readonly controller: number;
  readonly lun: number;
}

/** One disk to attach. */
export interface DiskToAdd extends Slot {
  readonly attachment: Attachment;
}

type SlotState =
  | { readonly state: 'adding' | 'removing' }
  | { readonly state: 'attached'; readonly attachment: Attachment }
  // QEMU did not take it back: the slot is never used again (design rule: record leaked devices).
  | { readonly state: 'lost'; readonly reason: string };

/** Where a slot stands. */
export interface AttachedDisk extends Slot {
  readonly path: string;
  readonly readOnly: boolean;
}

/** The SCSI disks of a running compute system. */
export class ScsiDisks {
  readonly #qmp: QmpClient;
  readonly #controllers: ReadonlySet<number>;
  readonly #slots = new Map<string, SlotState>();

  /** @param present Disks that QEMU was started with. */
  constructor(qmp: QmpClient, controllers: Iterable<number>, present: Iterable<DiskToAdd>) {
    this.#qmp = qmp;
    this.#controllers = new Set(controllers);
    for (const disk of present)
      this.#slots.set(diskDeviceId(disk.controller, disk.lun), { state: 'attached', attachment: disk.attachment });
  }

  /** Disks the guest can see. */
  list(): AttachedDisk[] {
    return [...this.#slots].flatMap(([key, slot]) => {
      if (slot.state !== 'attached') return [];
      const [controller = 0, lun = 0] = key.slice('disk'.length).split('-').map(Number);
      return [{ controller, lun, path: slot.attachment.Path, readOnly: slot.attachment.ReadOnly ?? false }];
    });
  }

  /**
   * Attaches disks, all or none. The commands for all of them are sent at once. Cancelling works until they are sent.
   * @throws LcowError ALREADY_EXISTS (slot taken), NOT_FOUND (no such controller or file), IN_USE (another QEMU writes to
   * the file, or the slot is lost), INVALID_ARGUMENT and NOT_SUPPORTED (format), QEMU_FAILED, VM_EXITED, CANCELLED.
   */
  async add(disks: readonly DiskToAdd[], signal?: AbortSignal): Promise<void> {
    const taken: string[] = [];
    try {
      for (const disk of disks) {
        this.#checkFree(disk);
        const key = diskDeviceId(disk.controller, disk.lun);
        this.#slots.set(key, { state: 'adding' });
        taken.push(key);
      }
      const nodes = await abortable(
        Promise.all(
          disks.map(async ({ controller, lun, attachment }) =>
            blockNode(controller, lun, attachment, await inspectDisk(attachment.Path)),
          ),
        ),
        signal,
      );
      await this.#plug(disks, nodes);
    } catch (error) {
      for (const key of taken) if (this.#slots.get(key)?.state === 'adding') this.#slots.delete(key);
      throw error;
    }
    for (const { controller, lun, attachment } of disks)
      this.#slots.set(diskDeviceId(controller, lun), { state: 'attached', attachment });
  }

  #checkFree({ controller, lun }: Slot): void {
    if (!this.#controllers.has(controller))
      throw new LcowError('NOT_FOUND', `The compute system has no SCSI controller ${controller}.`);
    const slot = this.#slots.get(diskDeviceId(controller, lun));
    if (slot?.state === 'lost')
      throw new LcowError('IN_USE', `${scsiResourcePath(controller, lun)} cannot be used again: ${slot.reason}`);
    if (slot) throw new LcowError('ALREADY_EXISTS', `${scsiResourcePath(controller, lun)} has a disk already.`);
  }

  async #plug(disks: readonly DiskToAdd[], nodes: readonly BlockNode[]): Promise<void> {
    const steps = disks.map((disk, index) => ({
      disk,
      node: this.#qmp.execute('blockdev-add', { ...nodes[index] }),
      device: this.#qmp.execute('device_add', scsiDevice(disk.controller, disk.lun)),
    }));
    const results = await Promise.all(
      steps.map(async ({ disk, node, device }) => {
        const [nodeResult, deviceResult] = await Promise.allSettled([node, device]);
        // Without its node a device fails too; the node's failure is the one worth telling.
        const failed = [nodeResult, deviceResult].find((result) => result.status === 'rejected');
        return {
          disk,
          nodeMade: nodeResult.status === 'fulfilled' || !(nodeResult.reason instanceof QmpError),
          deviceMade: deviceResult.status === 'fulfilled' || !(deviceResult.reason instanceof QmpError),
          failure: failed?.status === 'rejected' ? attachFailure(disk, failed.reason) : undefined,
        };
      }),
    );
    const first = results.find((result) => result.failure);
    if (!first) return;
    await Promise.all(
      results.map(async ({ disk, nodeMade, deviceMade }) => {
        try {
          if (deviceMade) await this.#unplugDevice(disk);
          if (nodeMade)
            await this.#qmp.execute('blockdev-del', { 'node-name': diskDeviceId(disk.controller, disk.lun) });
        } catch (error) {
          this.#lose(disk, error);
        }
      }),
    );
    throw first.failure;
  }

  /**
   * Detaches disks. Every one is tried; the guest has unmounted and ejected them before.
   * @throws LcowError NOT_ATTACHED before anything is done; QEMU_FAILED, TIMED_OUT, VM_EXITED for the first that failed,
   * whose slot is then lost.
   */
  async remove(slots: readonly Slot[]): Promise<void> {
    for (const { controller, lun } of slots) {
      if (this.#slots.get(diskDeviceId(controller, lun))?.state !== 'attached')
        throw new LcowError('NOT_ATTACHED', `${scsiResourcePath(controller, lun)} has no disk.`);
    }
    for (const slot of slots) this.#slots.set(diskDeviceId(slot.controller, slot.lun), { state: 'removing' });
    const failures = await Promise.all(
      slots.map(async (slot) => {
        const id = diskDeviceId(slot.controller, slot.lun);
        try {
          await this.#unplugDevice(slot);
          await this.#qmp.execute('blockdev-del', { 'node-name': id });
          this.#slots.delete(id);
          return undefined;
        } catch (error) {
          this.#lose(slot, error);
          if (error instanceof LcowError) return error;
          return new LcowError(
            'QEMU_FAILED',
            `${scsiResourcePath(slot.controller, slot.lun)} cannot be removed: ${errorMessage(error)}.`,
            {
              cause: error,
            },
          );
        }
      }),
    );
    const failure = failures.find((error) => error !== undefined);
    if (failure) throw failure;
  }

  /** device_del only asks; DEVICE_DELETED tells that it is done. */
  async #unplugDevice({ controller, lun }: Slot): Promise<void> {
    const id = diskDeviceId(controller, lun);
    const stop = new AbortController();
    const deleted = this.#qmp.waitFor(
      ({ event, data }) => event === 'DEVICE_DELETED' && data['device'] === id,
      `The removal of ${scsiResourcePath(controller, lun)}`,
      stop.signal,
    );
    // The command's own failure is the one that is thrown.
    deleted.catch(() => {});
    try {
      await this.#qmp.execute('device_del', { id });
    } catch (error) {
      stop.abort();
      throw error;
    }
    await deleted;
  }

  #lose({ controller, lun }: Slot, error: unknown): void {
    this.#slots.set(diskDeviceId(controller, lun), { state: 'lost', reason: errorMessage(error) });
  }
}

function attachFailure({ controller, lun, attachment }: DiskToAdd, cause: unknown): LcowError {
  if (cause instanceof LcowError) return cause;
  const message = errorMessage(cause);
  if (/Failed to get ".*" lock/.test(message))
    return new LcowError('IN_USE', `The disk ${attachment.Path} is in use by another virtual machine.`, { cause });
  return new LcowError(
    'QEMU_FAILED',
    `The disk ${attachment.Path} cannot be attached at ${scsiResourcePath(controller, lun)}: ${message}.`,
    { cause },
  );
}
