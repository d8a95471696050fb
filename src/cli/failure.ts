import { CommanderError } from 'commander';
import { errorMessage, isLcowError, LcowError } from '../errors/index.js';

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

/** Exit code of a command whose output nobody reads any more (`lcow … | head`): 128 + SIGPIPE. */
const BROKEN_PIPE = 141;

/** An error with the exit code that the command gives it. */
export class CommandFailure extends Error {
  readonly exitCode: number;

  constructor(exitCode: number, cause: unknown) {
    super(cause instanceof Error ? cause.message : String(cause), { cause });
    this.exitCode = exitCode;
  }
}

/**
 * Prints what is to be said of an error; answers the exit code.
 * @param command the command that was called: `run` has docker's code for options it does not know
 */
export function reportFailure(error: unknown, command: string | undefined): number {
  if (error instanceof ExitWith) return error.exitCode;
  // Commander has printed what there is to say; 0 is for help and version.
  if (error instanceof CommanderError)
    return error.exitCode !== 0 && command === 'run' ? ENGINE_FAILURE : error.exitCode;
  if (isBrokenPipe(error)) return BROKEN_PIPE;
  if (error instanceof CommandFailure) {
    printFailure(error.cause);
    return error.exitCode;
  }
  printFailure(error);
  return isLcowError(error, 'CANCELLED') ? INTERRUPTED : 1;
}

/** Whether an error is that of writing where nobody reads any more. */
export function isBrokenPipe(error: unknown): boolean {
  return (error as NodeJS.ErrnoException | undefined)?.code === 'EPIPE';
}

/** Prints one sentence and a hint to stderr, with --debug the whole chain. */
export function printFailure(error: unknown): void {
  const lines: string[] = [`lcow: ${errorMessage(error)}`];
  if (error instanceof LcowError) {
    const tail = error.details['consoleTail'];
    if (typeof tail === 'string' && tail.trim() !== '')
      lines.push('', 'Last lines of the guest console:', ...lastLines(tail, 20).map((line) => `  ${line}`), '');
    if (error.hint) lines.push(error.hint);
  }
  if (process.env['LCOW_DEBUG']) lines.push('', ...chain(error));
  process.stderr.write(`${lines.map(inert).join('\n')}\n`);
}

/**
 * A text without what a terminal obeys: parts of it may come from a guest, a registry or an archive. Line ends and tabs
 * stay.
 */
export function inert(text: string): string {
  return text.replace(/\u001b\[[0-9;?]*[A-Za-z]/g, '').replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f]/g, '');
}

function lastLines(text: string, count: number): string[] {
  return inert(text).trimEnd().split('\n').slice(-count);
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
