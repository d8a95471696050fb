import { CommanderError } from 'commander';
import { errorMessage, LcowError } from '../errors/index.js';

/** Thrown by a command that has an exit code and nothing to say. */
export class ExitWith extends Error {
  readonly exitCode: number;

  constructor(exitCode: number) {
    super(`exit code ${exitCode}`);
    this.exitCode = exitCode;
  }
}

/** Exit code of docker's own failures, before any container ran. */
export const ENGINE_FAILURE = 125;

/** Exit code of a command cut short by a signal: 128 + SIGINT, as shells have it. */
const INTERRUPTED = 130;

/** An error with the exit code that the command gives it. */
export class CommandFailure extends Error {
  readonly exitCode: number;

  constructor(exitCode: number, cause: unknown) {
    super(cause instanceof Error ? cause.message : String(cause), { cause });
    this.exitCode = exitCode;
  }
}

/**
 * Prints one sentence and a hint, with --debug the whole chain; answers the exit code.
 * @param command the command that was called: `run` has docker's code for options it does not know
 */
export function reportFailure(error: unknown, command: string | undefined): number {
  if (error instanceof ExitWith) return error.exitCode;
  // Commander has printed what there is to say; 0 is for help and version.
  if (error instanceof CommanderError)
    return error.exitCode !== 0 && command === 'run' ? ENGINE_FAILURE : error.exitCode;
  if (error instanceof CommandFailure) {
    print(error.cause);
    return error.exitCode;
  }
  print(error);
  return error instanceof LcowError && error.code === 'CANCELLED' ? INTERRUPTED : 1;
}

function print(error: unknown): void {
  const lines: string[] = [];
  const message = error instanceof Error ? error.message : String(error);
  lines.push(`lcow: ${message}`);
  if (error instanceof LcowError) {
    const tail = error.details['consoleTail'];
    if (typeof tail === 'string' && tail.trim() !== '')
      lines.push('', 'Last lines of the guest console:', ...lastLines(tail, 20).map((line) => `  ${line}`), '');
    if (error.hint) lines.push(error.hint);
  }
  if (process.env['LCOW_DEBUG']) lines.push('', ...chain(error));
  process.stderr.write(`${lines.join('\n')}\n`);
}

/** What came from a guest may hold escape sequences; a terminal gets none of them. */
function lastLines(text: string, count: number): string[] {
  const clean = text.replace(/\u001b\[[0-9;?]*[A-Za-z]/g, '').replace(/[\u0000-\u0008\u000b-\u001f\u007f]/g, '');
  return clean.trimEnd().split('\n').slice(-count);
}

function chain(error: unknown): string[] {
  const lines: string[] = [];
  for (let link: unknown = error; link !== undefined; link = link instanceof Error ? link.cause : undefined) {
    const code = link instanceof LcowError ? ` [${link.code}]` : '';
    lines.push(`caused by${code}: ${link instanceof Error ? (link.stack ?? link.message) : errorMessage(link)}`);
    if (link instanceof AggregateError) for (const part of link.errors as unknown[]) lines.push(...chain(part));
  }
  return lines;
}
