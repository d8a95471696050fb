import { readdir, readFile } from 'node:fs/promises';

/** A process that runs. */
export interface RunningProcess {
  readonly pid: number;
  /** Program and arguments, separated by blanks. */
  readonly command: string;
}

/** Command lines of running processes that name a text, this process left out. */
export async function processesNaming(text: string): Promise<string[]> {
  return (await runningProcesses(text)).map(({ command }) => command);
}

/** The running processes whose command line names a text, this process left out. */
export async function runningProcesses(text: string): Promise<RunningProcess[]> {
  const found: RunningProcess[] = [];
  for (const pid of await readdir('/proc')) {
    if (!/^\d+$/.test(pid) || Number(pid) === process.pid) continue;
    // A process that has ended meanwhile is none.
    const command = await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '');
    if (command.includes(text)) found.push({ pid: Number(pid), command: command.replaceAll('\0', ' ') });
  }
  return found;
}
