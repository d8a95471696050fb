import { constants } from 'node:os';
import { LcowError } from '../errors/index.js';

// Linux numbers for every host: the signal is for a Linux process wherever the host runs.
const LINUX: Readonly<Record<string, number>> = {
  HUP: 1, INT: 2, QUIT: 3, ILL: 4, TRAP: 5, ABRT: 6, BUS: 7, FPE: 8, KILL: 9, USR1: 10, SEGV: 11, USR2: 12, PIPE: 13,
  ALRM: 14, TERM: 15, STKFLT: 16, CHLD: 17, CONT: 18, STOP: 19, TSTP: 20, TTIN: 21, TTOU: 22, URG: 23, XCPU: 24,
  XFSZ: 25, VTALRM: 26, PROF: 27, WINCH: 28, IO: 29, PWR: 30, SYS: 31,
}; // prettier-ignore

/**
 * The Linux number of a signal given as docker takes it: "TERM", "SIGTERM", "15", "RTMIN+3".
 * @throws LcowError INVALID_ARGUMENT.
 */
export function signalNumber(text: string): number {
  const name = text.toUpperCase().replace(/^SIG/, '');
  const realtime = /^RTM(IN|AX)(?:([+-])(\d{1,2}))?$/.exec(name);
  const base = realtime?.[1] === 'IN' ? 34 : 64;
  const number = realtime
    ? base + (realtime[2] === '-' ? -1 : 1) * Number(realtime[3] ?? 0)
    : (LINUX[name] ?? (/^\d{1,2}$/.test(name) ? Number(name) : 0));
  if (number < 1 || number > 64) throw new LcowError('INVALID_ARGUMENT', `Invalid signal: ${text}.`);
  return number;
}

/** The Linux number of a signal this process got. */
export function linuxSignal(signal: NodeJS.Signals): number {
  return LINUX[signal.slice(3)] ?? constants.signals[signal];
}
