/** Who owns a compute system's folder and QEMU, and what to do when the owner is dead. */
import { randomBytes } from 'node:crypto';
import { readdirSync, readFileSync } from 'node:fs';
import { mkdir, readdir, readFile, rename, rm } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { z } from 'zod';
import { LcowError } from '../../errors/index.js';
import { delay } from '../../lifetime/index.js';
import {
  asIoError,
  identityOf,
  isAlive,
  ownIdentity,
  withLock,
  writeFileAtomic,
  type ProcessIdentity,
} from '../../state/index.js';
import { vmRoot, type VmFolder } from './vm-folder.js';

const identity = z.object({ pid: z.int().positive(), startTime: z.int().nonnegative() });
const OwnerRecordSchema = z.object({
  id: z.string(),
  owner: identity,
  /** Absent before QEMU runs. */
  qemu: identity.optional(),
  /** Lives on without its owner. */
  detached: z.boolean(),
});

/** owner.json in the folder of a compute system. */
export type OwnerRecord = z.infer<typeof OwnerRecordSchema>;

const UNFINISHED = /^\.new-(\d+)-(\d+)-[0-9a-f]{8}$/;

/**
 * Makes the private folder of a compute system, its record in it from the first moment on.
 * @throws LcowError ALREADY_EXISTS when a live system has the id; IO_FAILED, DISK_FULL.
 */
export async function claimFolder(runtimeFolder: string, folder: VmFolder, record: OwnerRecord): Promise<void> {
  const root = vmRoot(runtimeFolder);
  const { pid, startTime } = ownIdentity();
  const unfinished = join(root, `.new-${pid}-${startTime}-${randomBytes(4).toString('hex')}`);
  try {
    await mkdir(root, { recursive: true, mode: 0o700 });
    await mkdir(unfinished, { mode: 0o700 });
    try {
      await writeFileAtomic(join(unfinished, basename(folder.ownerFile)), JSON.stringify(record));
      const claimed = await locked(runtimeFolder, async () => {
        if (await moveTo(unfinished, folder.path)) return true;
        // Taken: by a live system, or by the remains of a dead one.
        await sweepFolder(folder.path);
        return moveTo(unfinished, folder.path);
      });
      if (claimed) return;
    } finally {
      await rm(unfinished, { recursive: true, force: true });
    }
  } catch (error) {
    throw asIoError(error, `The folder of compute system ${record.id} cannot be made`);
  }
  throw new LcowError('ALREADY_EXISTS', `A compute system with the id ${record.id} exists.`);
}

/** What is found dead and what is newly claimed must not be mixed up: one process at a time decides. */
function locked<T>(runtimeFolder: string, critical: () => Promise<T>): Promise<T> {
  return withLock(join(runtimeFolder, 'locks'), 'compute systems', critical);
}

async function moveTo(from: string, to: string): Promise<boolean> {
  try {
    await rename(from, to);
    return true;
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code;
    if (code === 'ENOTEMPTY' || code === 'EEXIST') return false;
    throw error;
  }
}

/** Writes down which process QEMU is. @throws LcowError IO_FAILED, DISK_FULL. */
export async function recordOwner(folder: VmFolder, record: OwnerRecord): Promise<void> {
  await writeFileAtomic(folder.ownerFile, JSON.stringify(record));
}

/**
 * Removes what compute systems of dead owners left: their QEMU, sockets and folder. Systems of live owners, and detached
 * ones whose QEMU runs, are left alone.
 * @returns Ids of the systems removed; the folder's name where the record is lost.
 * @throws LcowError IO_FAILED.
 */
export async function sweepComputeSystems(runtimeFolder: string): Promise<string[]> {
  const root = vmRoot(runtimeFolder);
  const swept: string[] = [];
  try {
    let names: string[];
    try {
      names = await readdir(root);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return [];
      throw error;
    }
    for (const name of names) {
      const path = join(root, name);
      const unfinished = UNFINISHED.exec(name);
      if (unfinished) {
        if (!isAlive({ pid: Number(unfinished[1]), startTime: Number(unfinished[2]) }))
          await rm(path, { recursive: true, force: true });
        continue;
      }
      const id = await locked(runtimeFolder, () => sweepFolder(path));
      if (id !== undefined) swept.push(id);
    }
  } catch (error) {
    throw asIoError(error, `The runtime folder ${runtimeFolder} cannot be swept`);
  }
  return swept;
}

/** @returns The id of the system when its folder was removed. */
async function sweepFolder(path: string): Promise<string | undefined> {
  const record = await readRecord(join(path, 'owner.json'));
  if (record === 'gone') return undefined;
  const running = findQemu(path, record);
  if (record) {
    if (isAlive(record.owner)) return undefined;
    if (record.detached && running.length > 0) return undefined;
  }
  for (const qemu of running) await killProcess(qemu);
  await rm(path, { recursive: true, force: true });
  return record?.id ?? basename(path);
}

async function readRecord(path: string): Promise<OwnerRecord | 'gone' | undefined> {
  let text: string;
  try {
    text = await readFile(path, 'utf8');
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code;
    // No folder at all, or something that is no folder of ours.
    if (code === 'ENOTDIR') return 'gone';
    if (code === 'ENOENT') return undefined;
    throw error;
  }
  try {
    return OwnerRecordSchema.parse(JSON.parse(text));
  } catch {
    return undefined;
  }
}

/**
 * The QEMU processes of a folder: those whose command line names a socket in it. The record alone is not believed, since
 * its pid may be another process' by now; without a pid in it (the owner died too early) all processes are looked at.
 */
function findQemu(folder: string, record: OwnerRecord | undefined): ProcessIdentity[] {
  const candidates = record?.qemu ? [record.qemu.pid] : allProcesses();
  return candidates.flatMap((pid) => {
    const found = identityOf(pid);
    if (!found || !namesFolder(pid, folder)) return [];
    if (record?.qemu && record.qemu.startTime !== found.startTime) return [];
    return [found];
  });
}

function allProcesses(): number[] {
  try {
    return readdirSync('/proc')
      .filter((name) => /^\d+$/.test(name))
      .map(Number);
  } catch {
    return [];
  }
}

function namesFolder(pid: number, folder: string): boolean {
  try {
    const args = readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0');
    return args.some(
      (arg) =>
        arg.startsWith('socket,id=qmp,') && arg.includes(`path=${join(folder, 'qmp.sock').replaceAll(',', ',,')},`),
    );
  } catch {
    // No such process any more, or no /proc: then QEMU is not ours to kill.
    return false;
  }
}

async function killProcess(target: ProcessIdentity): Promise<void> {
  try {
    process.kill(target.pid, 'SIGKILL');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error;
  }
  // Polled: it is not our child. A process that was sent SIGKILL is gone in milliseconds unless the kernel holds it.
  for (let waited = 0; isAlive(target) && waited < 5000; waited += 5) await delay(5);
}
