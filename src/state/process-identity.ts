import { readFileSync } from 'node:fs';

/** A process, told apart from a later one with the same pid. */
export interface ProcessIdentity {
  readonly pid: number;
  /** Clock ticks since boot, from /proc/<pid>/stat; 0 where there is no /proc. */
  readonly startTime: number;
}

function startTimeOf(pid: number): number | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'latin1');
    // The command name may hold blanks and brackets: fields are counted from behind its last bracket. Field 22.
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    // A zombie has ended; only its parent does not know yet.
    return fields[0] === 'Z' ? undefined : Number(fields[19]);
  } catch {
    return undefined;
  }
}

const hasProc = startTimeOf(process.pid) !== undefined;

let own: ProcessIdentity | undefined;

/** The identity of this process. */
export function ownIdentity(): ProcessIdentity {
  own ??= { pid: process.pid, startTime: startTimeOf(process.pid) ?? 0 };
  return own;
}

/** The identity of a running process, or undefined when there is none with this pid. */
export function identityOf(pid: number): ProcessIdentity | undefined {
  if (hasProc) {
    const startTime = startTimeOf(pid);
    return startTime === undefined ? undefined : { pid, startTime };
  }
  return signalReaches(pid) ? { pid, startTime: 0 } : undefined;
}

/** Whether exactly this process still runs. */
export function isAlive(identity: ProcessIdentity): boolean {
  if (!Number.isSafeInteger(identity.pid) || identity.pid <= 0) return false;
  return identityOf(identity.pid)?.startTime === identity.startTime;
}

function signalReaches(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM';
  }
}
