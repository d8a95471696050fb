import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeEach, describe, expect, it } from 'vitest';
import { identityOf, ownIdentity, type ProcessIdentity } from '../../state/index.js';
import { claimFolder, recordOwner, sweepComputeSystems, type OwnerRecord } from './owner.js';
import { vmFolder } from './vm-folder.js';

const base = mkdtempSync(join(tmpdir(), 'lcow-owner-'));
afterAll(() => rmSync(base, { recursive: true }));

let runtimeFolder: string;
let children: ChildProcess[] = [];
beforeEach(() => {
  runtimeFolder = mkdtempSync(join(base, 'r'));
});
afterEach(() => {
  for (const child of children) child.kill('SIGKILL');
  children = [];
});

const DEAD: ProcessIdentity = { pid: ownIdentity().pid, startTime: ownIdentity().startTime + 1 };

/** A process with QEMU's command line, or with another. */
async function fakeQemu(socket: string, option = 'socket,id=qmp,path='): Promise<ProcessIdentity> {
  const child = spawn(
    process.execPath,
    ['-e', 'setInterval(() => {}, 1000)', '--', `${option}${socket},server=on,wait=off`],
    { stdio: 'ignore' },
  );
  children.push(child);
  await once(child, 'spawn');
  return identityOf(child.pid!)!;
}

async function system(id: string, record: Partial<OwnerRecord>): Promise<ReturnType<typeof vmFolder>> {
  const folder = vmFolder(runtimeFolder, id);
  const whole: OwnerRecord = { id, owner: DEAD, detached: false, ...record };
  await claimFolder(runtimeFolder, folder, whole);
  await recordOwner(folder, whole);
  return folder;
}

describe('a sweep', () => {
  it('finds nothing where nothing was', async () => {
    expect(await sweepComputeSystems(runtimeFolder)).toEqual([]);
  });

  it('leaves systems of live owners alone', async () => {
    const folder = await system('live', { owner: ownIdentity() });
    expect(await sweepComputeSystems(runtimeFolder)).toEqual([]);
    expect(existsSync(folder.ownerFile)).toBe(true);
  });

  it('ends the QEMU of a dead owner and removes its folder', async () => {
    const { qmpSocket, path } = vmFolder(runtimeFolder, 'dead');
    const qemu = await fakeQemu(qmpSocket);
    await system('dead', { qemu });
    expect(await sweepComputeSystems(runtimeFolder)).toEqual(['dead']);
    expect([existsSync(path), identityOf(qemu.pid)]).toEqual([false, undefined]);
  });

  it('finds the QEMU of an owner that died before it could write it down', async () => {
    const { qmpSocket } = vmFolder(runtimeFolder, 'early');
    const qemu = await fakeQemu(qmpSocket);
    await system('early', {});
    expect(await sweepComputeSystems(runtimeFolder)).toEqual(['early']);
    expect(identityOf(qemu.pid)).toBeUndefined();
  });

  it('never ends a process that is not the QEMU of the folder', async () => {
    const { qmpSocket } = vmFolder(runtimeFolder, 'reused');
    const other = await fakeQemu(qmpSocket, 'tail -f ');
    const otherFolder = await fakeQemu(`${qmpSocket}x`);
    await system('reused', { qemu: other });
    await system('reused2', { qemu: otherFolder });
    expect((await sweepComputeSystems(runtimeFolder)).sort()).toEqual(['reused', 'reused2']);
    expect([identityOf(other.pid), identityOf(otherFolder.pid)]).toEqual([other, otherFolder]);
  });

  it('leaves a detached system alone while its QEMU runs', async () => {
    const { qmpSocket, path } = vmFolder(runtimeFolder, 'detached');
    const qemu = await fakeQemu(qmpSocket);
    await system('detached', { detached: true, qemu });
    expect(await sweepComputeSystems(runtimeFolder)).toEqual([]);
    children[0]!.kill('SIGKILL');
    await once(children[0]!, 'exit');
    expect(await sweepComputeSystems(runtimeFolder)).toEqual(['detached']);
    expect(existsSync(path)).toBe(false);
  });

  it('removes what a dead process had not finished, and what has no readable record', async () => {
    const root = join(runtimeFolder, 'vm');
    mkdirSync(join(root, `.new-${DEAD.pid}-${DEAD.startTime}-01234567`), { recursive: true });
    mkdirSync(join(root, `.new-${ownIdentity().pid}-${ownIdentity().startTime}-01234567`));
    mkdirSync(join(root, 'norecord'));
    mkdirSync(join(root, 'damaged'));
    writeFileSync(join(root, 'damaged', 'owner.json'), '{"id": 1}');
    expect((await sweepComputeSystems(runtimeFolder)).sort()).toEqual(['damaged', 'norecord']);
    expect(readdirSync(root)).toEqual([`.new-${ownIdentity().pid}-${ownIdentity().startTime}-01234567`]);
  });
});

describe('the folder of a system', () => {
  it('is claimed once, and again when its owner is dead', async () => {
    await system('one', { owner: ownIdentity() });
    await expect(system('one', {})).rejects.toMatchObject({ code: 'ALREADY_EXISTS' });
    await system('two', {});
    await system('two', { owner: ownIdentity() });
    await expect(system('two', {})).rejects.toMatchObject({ code: 'ALREADY_EXISTS' });
    expect(readdirSync(join(runtimeFolder, 'vm'))).toHaveLength(2);
  });

  it.each([false, true])('goes to one of many that want it at once (a dead system before: %s)', async (stale) => {
    if (stale) await system('same', {});
    const results = await Promise.allSettled(Array.from({ length: 8 }, () => system('same', { owner: ownIdentity() })));
    expect(results.filter(({ status }) => status === 'fulfilled')).toHaveLength(1);
    expect(readdirSync(join(runtimeFolder, 'vm'))).toHaveLength(1);
  });
});
