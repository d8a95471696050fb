/**
 * The SCSI disks of a utility VM: which file of the host is in which slot, where it is mounted in the guest, and how many
 * use it. As hcsshim's internal/uvm/scsi: an attachment is shared by all that name the same file, a mount by all that can
 * do with the same place; who comes second waits for who came first.
 */
import { LcowError, errorMessage, isLcowError } from '../errors/index.js';
import { abortable } from '../lifetime/index.js';
import { NO_LOG, SCSI_LUNS, type Logger } from '../hcs/index.js';

/** Controller and LUN. */
export interface ScsiSlot {
  readonly controller: number;
  readonly lun: number;
}

/** The host's side of disks. */
export interface DiskHost {
  /** Attaches all or none. */
  attach(
    disks: readonly (ScsiSlot & { readonly hostPath: string; readonly readOnly: boolean })[],
    signal?: AbortSignal,
  ): Promise<void>;
  /** Detaches all, trying every one. */
  detach(slots: readonly ScsiSlot[]): Promise<void>;
}

/** The guest's side of disks. */
export interface DiskGuest {
  /** Mounts all or none. */
  mount(
    mounts: readonly (ScsiSlot & { readonly uvmPath: string; readonly readOnly: boolean })[],
    signal?: AbortSignal,
  ): Promise<void>;
  /** Unmounts (unless there is no path) and, when asked, ejects. A disk that is gone is fine. */
  unmount(
    unmounts: readonly (ScsiSlot & { readonly uvmPath: string | undefined; readonly eject: boolean })[],
  ): Promise<void>;
}

/** A disk to add. */
export interface ScsiRequest {
  /** Real path on the host. */
  readonly hostPath: string;
  readonly readOnly: boolean;
  /** Where to mount it; a place of the manager's choice when not given. */
  readonly uvmPath?: string | undefined;
}

/** A mounted disk. {@link release} it exactly once. */
export interface ScsiAttachment extends ScsiSlot {
  readonly hostPath: string;
  readonly readOnly: boolean;
  /** Where it is mounted in the utility VM. */
  readonly uvmPath: string;
  /**
   * Gives the disk back; the last one unmounts, ejects and detaches it. After a failure it may be called again.
   * @throws LcowError ALREADY_RELEASED, or what the guest says.
   */
  release(): Promise<void>;
}

interface Disk extends ScsiSlot {
  readonly hostPath: string;
  readonly readOnly: boolean;
  /** Settles when the host has attached it or failed to. */
  ready: Promise<void>;
  attached: boolean;
  refs: number;
  readonly mounts: Set<Mount>;
  /** Set while it is taken away; resolves when that has ended, well or not. */
  leaving: Promise<void> | undefined;
}

interface Mount {
  readonly disk: Disk;
  readonly uvmPath: string;
  ready: Promise<void>;
  mounted: boolean;
  refs: number;
  leaving: Promise<void> | undefined;
}

/** Where mounts go that nobody chose a place for (hcsshim's scsi mount format). */
const MOUNT_FOLDER = '/run/mounts/scsi/m';

export class ScsiManager {
  readonly #host: DiskHost;
  readonly #guest: DiskGuest;
  readonly #controllers: number;
  readonly #isGone: () => boolean;
  readonly #log: Logger;
  readonly #disks = new Set<Disk>();
  /** Slots with a disk, or with one that could not be taken away and so is never used again. */
  readonly #taken = new Set<string>();
  #nextMount = 0;

  /** @param isGone Whether the VM has ended: then disks need no taking away. */
  constructor(host: DiskHost, guest: DiskGuest, controllers: number, isGone: () => boolean, log: Logger = NO_LOG) {
    this.#host = host;
    this.#guest = guest;
    this.#controllers = controllers;
    this.#isGone = isGone;
    this.#log = log;
  }

  /**
   * Attaches and mounts disks, all or none: new ones in one request to the host and one to the guest.
   * @throws LcowError NO_AVAILABLE_LOCATION, IN_USE (the file is attached with other access), ALREADY_EXISTS (the place has
   * another disk), CANCELLED, or what host and guest say.
   */
  async add(requests: readonly ScsiRequest[], signal?: AbortSignal): Promise<ScsiAttachment[]> {
    for (;;) {
      const leaving = this.#leaving(requests);
      if (leaving) {
        await abortable(leaving, signal);
        continue;
      }
      const mounts = this.#track(requests, signal);
      try {
        await abortable(settleAll(mounts.map(({ ready }) => ready)), signal);
        return mounts.map((mount) => this.#handle(mount));
      } catch (error) {
        await this.#abandon(mounts, error);
        // Another caller's cancellation is no reason for ours to fail.
        if (!isLcowError(error, 'CANCELLED') || signal?.aborted) throw error;
      }
    }
  }

  /** A disk or mount that is just being taken away and that a request would otherwise join or collide with. */
  #leaving(requests: readonly ScsiRequest[]): Promise<void> | undefined {
    for (const disk of this.#disks) {
      const sameFile = requests.some(({ hostPath }) => hostPath === disk.hostPath);
      if (sameFile && disk.leaving) return disk.leaving;
      for (const mount of disk.mounts)
        if (mount.leaving && (sameFile || requests.some(({ uvmPath }) => uvmPath === mount.uvmPath)))
          return mount.leaving;
    }
    return undefined;
  }

  /** Counts the requests in, and starts what is new. Nothing is changed when it throws. */
  #track(requests: readonly ScsiRequest[], signal: AbortSignal | undefined): Mount[] {
    const newDisks: Disk[] = [];
    const newMounts: Mount[] = [];
    const free = this.#freeSlots();
    const mounts = requests.map((request) => {
      const disk = this.#diskFor(request, newDisks, free);
      return this.#mountFor(request, disk, newMounts);
    });
    for (const disk of newDisks) {
      this.#disks.add(disk);
      this.#taken.add(slotKey(disk));
    }
    for (const mount of newMounts) mount.disk.mounts.add(mount);
    for (const mount of mounts) {
      mount.refs++;
      mount.disk.refs++;
    }
    const attaching = newDisks.length === 0 ? Promise.resolve() : this.#attach(newDisks, signal);
    for (const disk of newDisks) disk.ready = quiet(attaching);
    const mounting = this.#mount(newMounts, signal);
    for (const mount of newMounts) mount.ready = quiet(mounting);
    return mounts;
  }

  #diskFor({ hostPath, readOnly }: ScsiRequest, newDisks: Disk[], free: Iterator<ScsiSlot, undefined>): Disk {
    const known = [...this.#disks, ...newDisks].find((disk) => disk.hostPath === hostPath);
    if (known && known.readOnly !== readOnly)
      throw new LcowError(
        'IN_USE',
        `The disk ${hostPath} is attached ${known.readOnly ? 'read-only' : 'writable'} already.`,
      );
    if (known) return known;
    const { value: slot } = free.next();
    if (!slot) throw new LcowError('NO_AVAILABLE_LOCATION', `No SCSI slot is free for the disk ${hostPath}.`);
    const disk: Disk = {
      ...slot,
      hostPath,
      readOnly,
      ready: Promise.resolve(),
      attached: false,
      refs: 0,
      mounts: new Set(),
      leaving: undefined,
    };
    newDisks.push(disk);
    return disk;
  }

  #mountFor({ uvmPath }: ScsiRequest, disk: Disk, newMounts: Mount[]): Mount {
    const all = [...[...this.#disks].flatMap(({ mounts }) => [...mounts]), ...newMounts];
    const known = all.find((mount) => (uvmPath === undefined ? mount.disk === disk : mount.uvmPath === uvmPath));
    if (known && known.disk !== disk)
      throw new LcowError(
        'ALREADY_EXISTS',
        `${known.uvmPath} in the utility VM has the disk ${known.disk.hostPath} already.`,
      );
    if (known) return known;
    const mount: Mount = {
      disk,
      uvmPath: uvmPath ?? `${MOUNT_FOLDER}${this.#nextMount++}`,
      ready: Promise.resolve(),
      mounted: false,
      refs: 0,
      leaving: undefined,
    };
    newMounts.push(mount);
    return mount;
  }

  /** Free slots, lowest controller and LUN first (as hcsshim allocates). */
  *#freeSlots(): Generator<ScsiSlot, undefined> {
    for (let controller = 0; controller < this.#controllers; controller++)
      for (let lun = 0; lun < SCSI_LUNS; lun++)
        if (!this.#taken.has(slotKey({ controller, lun }))) yield { controller, lun };
    return undefined;
  }

  async #attach(disks: readonly Disk[], signal: AbortSignal | undefined): Promise<void> {
    await this.#host.attach(disks, signal);
    for (const disk of disks) disk.attached = true;
  }

  async #mount(mounts: readonly Mount[], signal: AbortSignal | undefined): Promise<void> {
    if (mounts.length === 0) return;
    await settleAll(mounts.map(({ disk }) => disk.ready));
    await this.#guest.mount(
      mounts.map(({ disk: { controller, lun, readOnly }, uvmPath }) => ({ controller, lun, readOnly, uvmPath })),
      signal,
    );
    for (const mount of mounts) mount.mounted = true;
  }

  #handle(mount: Mount): ScsiAttachment {
    const { disk, uvmPath } = mount;
    let state: 'held' | 'releasing' | 'released' = 'held';
    return {
      controller: disk.controller,
      lun: disk.lun,
      hostPath: disk.hostPath,
      readOnly: disk.readOnly,
      uvmPath,
      release: async () => {
        if (state !== 'held')
          throw new LcowError('ALREADY_RELEASED', `The disk ${disk.hostPath} at ${uvmPath} was released before.`);
        state = 'releasing';
        try {
          await this.#drop([mount]);
          state = 'released';
        } catch (error) {
          state = 'held';
          throw error;
        }
      },
    };
  }

  /** Undoes {@link #track} after a failure. What cannot be undone is lost with its slot. */
  async #abandon(mounts: readonly Mount[], error: unknown): Promise<void> {
    try {
      await this.#drop(mounts);
    } catch (undoFailure) {
      for (const disk of new Set(mounts.map((mount) => mount.disk))) {
        const own = mounts.filter((mount) => mount.disk === disk).length;
        // One that others use as well stays theirs.
        if (disk.refs === own) this.#lose(disk, undoFailure);
      }
      if (error instanceof LcowError) error.undoFailures.push(undoFailure);
    }
  }

  /** Counts out; what nobody uses any more is taken away, guest first. On a failure of the guest all are counted in again. */
  async #drop(mounts: readonly Mount[]): Promise<void> {
    for (const mount of mounts) {
      mount.refs--;
      mount.disk.refs--;
    }
    const leavingMounts = [...new Set(mounts)].filter(({ refs }) => refs === 0);
    if (leavingMounts.length === 0) return;
    const leavingDisks = [...new Set(leavingMounts.map(({ disk }) => disk))].filter(({ refs }) => refs === 0);
    let left!: () => void;
    const leaving = new Promise<void>((resolve) => (left = resolve));
    for (const item of [...leavingMounts, ...leavingDisks]) item.leaving = leaving;
    try {
      // A cancelled caller may come here while its request is still under way.
      await Promise.allSettled(leavingMounts.flatMap(({ ready, disk }) => [ready, disk.ready]));
      if (!this.#isGone()) await this.#unmount(leavingMounts, leavingDisks);
    } catch (error) {
      if (!this.#isGone()) {
        for (const mount of mounts) {
          mount.refs++;
          mount.disk.refs++;
        }
        for (const item of [...leavingMounts, ...leavingDisks]) item.leaving = undefined;
        left();
        throw error;
      }
    }
    for (const mount of leavingMounts) mount.disk.mounts.delete(mount);
    await this.#detach(leavingDisks);
    left();
  }

  async #unmount(mounts: readonly Mount[], disks: readonly Disk[]): Promise<void> {
    const ejected = new Set<Disk>();
    // Last mount first, so that a disk's eject comes with its last entry.
    const requests = mounts
      .filter(({ disk }) => disk.attached)
      .reverse()
      .map((mount) => {
        const { disk } = mount;
        const eject = disks.includes(disk) && !ejected.has(disk);
        if (eject) ejected.add(disk);
        return {
          controller: disk.controller,
          lun: disk.lun,
          uvmPath: mount.mounted ? mount.uvmPath : undefined,
          eject,
        };
      })
      .reverse()
      .filter(({ uvmPath, eject }) => uvmPath !== undefined || eject);
    if (requests.length > 0) await this.#guest.unmount(requests);
  }

  /** The guest has let go; a host that does not costs the slot, and is only logged, as in hcsshim. */
  async #detach(disks: readonly Disk[]): Promise<void> {
    const attached = disks.filter((disk) => disk.attached);
    const gone = this.#isGone();
    const results = await Promise.allSettled(gone ? [] : attached.map((disk) => this.#host.detach([disk])));
    const lost = new Set(attached.filter((_, index) => results[index]?.status === 'rejected'));
    for (const disk of disks) {
      this.#disks.delete(disk);
      if (!lost.has(disk)) this.#taken.delete(slotKey(disk));
    }
    results.forEach((result, index) => {
      if (result.status === 'rejected') this.#tellLost(attached[index]!, result.reason);
    });
  }

  /** Gives a disk up whose state is unknown: its slot is never used again, and the file can be attached anew elsewhere. */
  #lose(disk: Disk, reason: unknown): void {
    if (!this.#disks.delete(disk)) return;
    this.#tellLost(disk, reason);
  }

  #tellLost({ hostPath, controller, lun }: Disk, reason: unknown): void {
    this.#log.warn(
      { hostPath, controller, lun, error: errorMessage(reason) },
      'a disk could not be taken away; its slot is lost',
    );
  }
}

function slotKey({ controller, lun }: ScsiSlot): string {
  return `${controller}/${lun}`;
}

/** Waits for all, then throws the first failure: nothing goes on in the background. */
async function settleAll(promises: readonly Promise<unknown>[]): Promise<void> {
  const results = await Promise.allSettled(promises);
  const failed = results.find((result) => result.status === 'rejected');
  if (failed) throw failed.reason;
}

/** Keeps a rejection that nobody has waited for yet from ending the process. */
function quiet(promise: Promise<void>): Promise<void> {
  promise.catch(() => {});
  return promise;
}
