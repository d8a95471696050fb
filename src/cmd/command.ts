import type { ProcessHost } from '../gcs/index.js';
import { DEFAULT_PATH } from '../lcow/index.js';
import { Cmd } from './cmd.js';

/**
 * A {@link Cmd} for a program and its arguments, with working directory "/" and nothing but the default PATH in its
 * environment (seed: Command). The arguments reach the program as they are; no shell reads them.
 */
export function command(host: ProcessHost, name: string, ...args: string[]): Cmd {
  return new Cmd({ host, spec: { args: [name, ...args], cwd: '/', env: [`PATH=${DEFAULT_PATH}`] } });
}

/** As {@link command}; the process is killed when the signal fires (seed: CommandContext). */
export function commandContext(signal: AbortSignal, host: ProcessHost, name: string, ...args: string[]): Cmd {
  return new Cmd({ host, signal, spec: { args: [name, ...args], cwd: '/', env: [`PATH=${DEFAULT_PATH}`] } });
}
