import { beforeEach, describe, expect, it } from 'vitest';
import { LcowError } from '../errors/index.js';
import { ScsiManager, type DiskGuest, type DiskHost, type ScsiAttachment, type ScsiSlot } from './scsi-manager.js';

const key = ({ controller, lun }: ScsiSlot): string => `${controller}/${lun}`;

/** Host and guest that keep account and refuse what real ones would. */
class FakeMachine implements DiskHost, DiskGuest {
  /** Slot to host path. */
  readonly attached = new Map<string, string>();
  /** Disks the guest sees; ejected ones are gone from here before the host may detach them. */
  readonly seen = new Set<string>();
  /** Guest path to slot. */
  readonly mounts = new Map<string, string>();
  readonly log: string[] = [];
  fails: (step: string) => boolean = () => false;
  /** Holds a step until it is opened. */
  gate: Promise<void> = Promise.resolve();

  async #step(step: string): Promise<void> {
    this.log.push(step);
    await this.gate;
    if (this.fails(step)) throw new LcowError('GUEST_FAILED', `${step} failed.`);
  }

  async attach(disks: Parameters<DiskHost['attach']>[0], signal?: AbortSignal): Promise<void> {
    for (const disk of disks) if (this.attached.has(key(disk))) throw new Error(`slot ${key(disk)} is taken`);
    await this.#step(`attach ${disks.map(key).join(' ')}`);
    if (signal?.aborted) throw new LcowError('CANCELLED', 'cancelled');
    for (const disk of disks) {
      this.attached.set(key(disk), disk.hostPath);
      this.seen.add(key(disk));
    }
  }

  async detach(slots: readonly ScsiSlot[]): Promise<void> {
    await this.#step(`detach ${slots.map(key).join(' ')}`);
    for (const slot of slots) {
      if (this.seen.has(key(slot))) throw new Error(`the guest still has ${key(slot)}`);
      this.attached.delete(key(slot));
    }
  }

  async mount(mounts: Parameters<DiskGuest['mount']>[0]): Promise<void> {
    for (const mount of mounts) if (!this.seen.has(key(mount))) throw new Error(`the guest has no ${key(mount)}`);
    await this.#step(`mount ${mounts.map(({ uvmPath }) => uvmPath).join(' ')}`);
    for (const mount of mounts) this.mounts.set(mount.uvmPath, key(mount));
  }

  async unmount(unmounts: Parameters<DiskGuest['unmount']>[0]): Promise<void> {
    await this.#step(
      `unmount ${unmounts.map(({ uvmPath, eject }) => `${uvmPath ?? '-'}${eject ? '!' : ''}`).join(' ')}`,
    );
    for (const { uvmPath, eject, ...slot } of unmounts) {
      if (uvmPath !== undefined && !this.mounts.delete(uvmPath)) throw new Error(`${uvmPath} is not mounted`);
      if (eject && [...this.mounts.values()].includes(key(slot))) throw new Error(`${key(slot)} is in use`);
      if (eject) this.seen.delete(key(slot));
    }
  }

  expectEmpty(): void {
    expect([[...this.attached], [...this.seen], [...this.mounts]]).toEqual([[], [], []]);
  }
}

let machine: FakeMachine;
let gone: boolean;
let disks: ScsiManager;
beforeEach(() => {
  machine = new FakeMachine();
  gone = false;
  disks = new ScsiManager(machine, machine, 4, () => gone);
});

const layer = (name: string): { hostPath: string; readOnly: boolean } => ({ hostPath: `/${name}`, readOnly: true });
const scratch = (uvmPath: string): { hostPath: string; readOnly: boolean; uvmPath: string } => ({
  hostPath: '/scratch',
  readOnly: false,
  uvmPath,
});

function gate(): () => void {
  let open!: () => void;
  machine.gate = new Promise((resolve) => (open = resolve));
  return () => {
    machine.gate = Promise.resolve();
    open();
  };
}

describe('disks of a utility VM', () => {
  it('are added by one request to the host and one to the guest, in order of the slots', async () => {
    const [a, b, s] = await disks.add([layer('a'), layer('b'), scratch('/run/s')]);
    expect(machine.log).toEqual(['attach 0/0 0/1 0/2', 'mount /run/mounts/scsi/m0 /run/mounts/scsi/m1 /run/s']);
    expect([a!.uvmPath, b!.uvmPath, s!.uvmPath]).toEqual(['/run/mounts/scsi/m0', '/run/mounts/scsi/m1', '/run/s']);
    expect(s).toMatchObject({ controller: 0, lun: 2, hostPath: '/scratch', readOnly: false });
    for (const attachment of [a!, b!, s!]) await attachment.release();
    machine.expectEmpty();
    expect(machine.log.slice(2, 4)).toEqual(['unmount /run/mounts/scsi/m0!', 'detach 0/0']);
  });

  it('are shared by all who name the same file, and go with the last', async () => {
    const [first] = await disks.add([layer('a')]);
    const [second, third] = await disks.add([layer('a'), layer('a')]);
    expect([second!.uvmPath, third!.uvmPath]).toEqual([first!.uvmPath, first!.uvmPath]);
    await second!.release();
    await first!.release();
    expect(machine.log).toHaveLength(2);
    await third!.release();
    machine.expectEmpty();
  });

  it('are attached once when many add them at once', async () => {
    const open = gate();
    const adding = Array.from({ length: 5 }, () => disks.add([layer('a'), layer('b')]));
    open();
    const added = (await Promise.all(adding)).flat();
    expect(machine.log.filter((step) => step.startsWith('attach'))).toEqual(['attach 0/0 0/1']);
    expect(machine.log.filter((step) => step.startsWith('mount'))).toHaveLength(1);
    await Promise.all(added.map((attachment) => attachment.release()));
    machine.expectEmpty();
  });

  it('may be mounted at more places than one', async () => {
    const [a] = await disks.add([scratch('/run/one')]);
    const [b] = await disks.add([scratch('/run/two')]);
    expect(machine.attached.size).toBe(1);
    await a!.release();
    expect(machine.log.at(-1)).toBe('unmount /run/one');
    await b!.release();
    machine.expectEmpty();
  });

  it('are released exactly once', async () => {
    const [a] = await disks.add([layer('a')]);
    const results = await Promise.allSettled([a!.release(), a!.release()]);
    expect(results.map(({ status }) => status)).toEqual(['fulfilled', 'rejected']);
    await expect(a!.release()).rejects.toMatchObject({ code: 'ALREADY_RELEASED' });
  });

  it('wait for the same file to be gone before they are added anew', async () => {
    const [a] = await disks.add([layer('a')]);
    const open = gate();
    const releasing = a!.release();
    const adding = disks.add([layer('a')]);
    open();
    await releasing;
    const [again] = await adding;
    expect(machine.log.map((step) => step.split(' ')[0])).toEqual([
      'attach',
      'mount',
      'unmount',
      'detach',
      'attach',
      'mount',
    ]);
    await again!.release();
    machine.expectEmpty();
  });

  it('are refused with other access, or at a place that is taken, and nothing changes', async () => {
    const [a] = await disks.add([scratch('/run/s')]);
    const before = machine.log.length;
    await expect(disks.add([layer('b'), { hostPath: '/scratch', readOnly: true }])).rejects.toMatchObject({
      code: 'IN_USE',
    });
    await expect(disks.add([layer('b'), { ...layer('c'), uvmPath: '/run/s' }])).rejects.toMatchObject({
      code: 'ALREADY_EXISTS',
    });
    await expect(
      disks.add([
        { ...layer('b'), uvmPath: '/p' },
        { ...layer('c'), uvmPath: '/p' },
      ]),
    ).rejects.toMatchObject({
      code: 'ALREADY_EXISTS',
    });
    expect(machine.log).toHaveLength(before);
    await a!.release();
    machine.expectEmpty();
  });

  it('have 256 slots and not one more', async () => {
    const all = await disks.add(Array.from({ length: 256 }, (_, index) => layer(String(index))));
    expect(all.at(-1)).toMatchObject({ controller: 3, lun: 63 });
    await expect(disks.add([layer('one more')])).rejects.toMatchObject({ code: 'NO_AVAILABLE_LOCATION' });
    await all[100]!.release();
    const [again] = await disks.add([layer('one more')]);
    expect(again).toMatchObject({ controller: 1, lun: 36 });
  });

  it('have nowhere to go without controllers', async () => {
    const none = new ScsiManager(machine, machine, 0, () => false);
    await expect(none.add([layer('a')])).rejects.toMatchObject({ code: 'NO_AVAILABLE_LOCATION' });
  });
});

describe('a failure', () => {
  it.each(['attach', 'mount'])('of %s leaves nothing, for those who joined as well', async (step) => {
    machine.fails = (reached) => reached.startsWith(step);
    const open = gate();
    const adding = [disks.add([layer('a'), layer('b')]), disks.add([layer('b')]), disks.add([layer('b')])];
    open();
    const results = await Promise.allSettled(adding);
    expect(results.map(({ status }) => status)).toEqual(['rejected', 'rejected', 'rejected']);
    machine.expectEmpty();
    machine.fails = () => false;
    const [a] = await disks.add([layer('a')]);
    expect(a).toMatchObject({ controller: 0, lun: 0 });
  });

  it('of a later batch leaves what others use', async () => {
    const [a] = await disks.add([layer('a')]);
    machine.fails = (step) => step.startsWith('mount');
    await expect(disks.add([layer('a'), layer('b')])).rejects.toMatchObject({ code: 'GUEST_FAILED' });
    expect([...machine.attached.values()]).toEqual(['/a']);
    machine.fails = () => false;
    await a!.release();
    machine.expectEmpty();
  });

  it('of the guest to unmount changes nothing, and release may be tried again', async () => {
    const [a] = await disks.add([layer('a')]);
    machine.fails = (step) => step.startsWith('unmount');
    await expect(a!.release()).rejects.toMatchObject({ code: 'GUEST_FAILED' });
    expect(machine.attached.size).toBe(1);
    const [joined] = await disks.add([layer('a')]);
    machine.fails = () => false;
    await a!.release();
    await joined!.release();
    machine.expectEmpty();
  });

  it('of the host to detach costs the slot and not the release', async () => {
    const [a] = await disks.add([layer('a')]);
    machine.fails = (step) => step.startsWith('detach');
    await a!.release();
    machine.fails = () => false;
    expect((await disks.add([layer('a')]))[0]).toMatchObject({ controller: 0, lun: 1 });
  });

  it('to undo a failure costs the slot, and is told with the failure', async () => {
    machine.fails = (step) => step.startsWith('mount') || step.startsWith('unmount');
    const error: unknown = await disks.add([layer('a')]).catch((reason: unknown) => reason);
    expect((error as LcowError).message).toMatch(/^mount/);
    expect((error as LcowError).undoFailures).toHaveLength(1);
    machine.fails = () => false;
    expect((await disks.add([layer('a')]))[0]).toMatchObject({ controller: 0, lun: 1 });
  });
});

describe('a caller that gives up', () => {
  it('takes its own disks away and not those of others', async () => {
    const stop = new AbortController();
    const open = gate();
    const mine = disks.add([layer('a'), layer('b')], stop.signal);
    const others = disks.add([layer('b')]);
    stop.abort();
    open();
    await expect(mine).rejects.toMatchObject({ code: 'CANCELLED' });
    const [b] = await others;
    expect([...machine.attached.values()]).toEqual(['/b']);
    await b!.release();
    machine.expectEmpty();
  });
});

it('a VM that has ended needs nothing taken away', async () => {
  const added = await disks.add([layer('a'), scratch('/run/s')]);
  gone = true;
  machine.fails = () => true;
  const before = machine.log.length;
  for (const attachment of added) await attachment.release();
  expect(machine.log).toHaveLength(before);
});

it('any order of many users ends with nothing attached', async () => {
  // A fixed sequence that looks random: the same at every run.
  let seed = 12345;
  const random = (below: number): number => (seed = (seed * 1103515245 + 12345) & 0x7fffffff) % below;
  const held: ScsiAttachment[] = [];
  machine.fails = () => random(10) === 0;
  const users = Array.from({ length: 40 }, async () => {
    for (let turn = 0; turn < 20; turn++) {
      const names = Array.from({ length: 1 + random(3) }, () => layer(String(random(6))));
      const added = await disks.add(names).catch(() => []);
      held.push(...added);
      const mine = held.splice(0, random(4));
      for (const attachment of mine) await attachment.release().catch(() => held.push(attachment));
    }
  });
  await Promise.all(users);
  machine.fails = () => false;
  for (const attachment of held) await attachment.release();
  expect([...machine.mounts]).toEqual([]);
  // What is left is lost slots: the guest or host refused to let go of them.
  const left = [...machine.attached.keys()];
  const again = await disks.add(Array.from({ length: 256 - left.length }, (_, index) => layer(`new ${index}`)));
  for (const attachment of again) expect(left).not.toContain(key(attachment));
});
