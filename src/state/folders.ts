import { chmodSync, lstatSync, mkdirSync, statSync } from 'node:fs';
import { homedir, tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { LcowError } from '../errors/index.js';

/** The folders of one data root. All exist; those we made have mode 0700. */
export interface StateFolders {
  /** Durable data: `$LCOW_ROOT`, else `$XDG_DATA_HOME/lcow`, else `~/.local/share/lcow`. */
  readonly root: string;
  /** graphdriver layers. */
  readonly layers: string;
  /** Images and blobs, an OCI image layout. */
  readonly content: string;
  /** What can be made again: blank scratch, accelerator verdicts. */
  readonly cache: string;
  /** One folder per container. */
  readonly containers: string;
  readonly locks: string;
  /**
   * Sockets and pid files, gone at reboot: `$LCOW_RUNTIME_DIR`, else `$XDG_RUNTIME_DIR/lcow`, else `/tmp/lcow-<uid>`.
   * Kept short, because a unix socket path has at most 107 bytes.
   */
  readonly runtime: string;
}

/**
 * Finds and makes the state folders.
 * @throws LcowError IO_FAILED when a folder cannot be made, belongs to somebody else or can be written to by everybody.
 */
export function stateFolders(env: NodeJS.ProcessEnv = process.env): StateFolders {
  const root = resolve(env['LCOW_ROOT'] || join(env['XDG_DATA_HOME'] || join(homedir(), '.local', 'share'), 'lcow'));
  const chosen = env['LCOW_RUNTIME_DIR'] || (env['XDG_RUNTIME_DIR'] && join(env['XDG_RUNTIME_DIR'], 'lcow'));
  const runtime = resolve(chosen || join(tmpdir(), `lcow-${process.getuid?.() ?? 0}`));
  const folders: StateFolders = {
    root,
    layers: join(root, 'layers'),
    content: join(root, 'content'),
    cache: join(root, 'cache'),
    containers: join(root, 'containers'),
    locks: join(root, 'locks'),
    runtime,
  };
  for (const folder of Object.values(folders) as string[]) makePrivate(folder);
  if (!chosen) checkFallback(runtime);
  return folders;
}

function makePrivate(folder: string): void {
  try {
    mkdirSync(folder, { recursive: true, mode: 0o700 });
  } catch (cause) {
    throw new LcowError('IO_FAILED', `The state folder ${folder} cannot be made.`, {
      cause,
      hint: 'Set LCOW_ROOT and LCOW_RUNTIME_DIR to folders you can write to.',
    });
  }
  const { uid, mode } = statSync(folder);
  const hint = 'Set LCOW_ROOT and LCOW_RUNTIME_DIR to folders of your own.';
  if (process.getuid && uid !== process.getuid())
    throw new LcowError('IO_FAILED', `The state folder ${folder} belongs to user ${uid}, not to you.`, { hint });
  // With the sticky bit others cannot touch what is ours in it, and what is theirs is found by its owner.
  if (process.getuid && (mode & 0o1002) === 0o002)
    throw new LcowError('IO_FAILED', `The state folder ${folder} can be written to by everybody.`, { hint });
}

/**
 * In a folder that everybody writes to, somebody may have made ours before: as a link to another one of ours, say. Its
 * owner has been checked.
 */
function checkFallback(folder: string): void {
  if (!lstatSync(folder).isDirectory())
    throw new LcowError('IO_FAILED', `The runtime folder ${folder} is not a folder of its own.`, {
      hint: 'Remove it, or set LCOW_RUNTIME_DIR.',
    });
  if (process.getuid) chmodSync(folder, 0o700);
}
