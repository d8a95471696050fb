import { mkdirSync, statSync } from 'node:fs';
import { homedir, tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { LcowError } from '../errors/index.js';

/** The folders of one data root. All exist, mode 0700. */
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
 * @throws LcowError IO_FAILED when a folder cannot be made or belongs to somebody else.
 */
export function stateFolders(env: NodeJS.ProcessEnv = process.env): StateFolders {
  const root = resolve(env['LCOW_ROOT'] || join(env['XDG_DATA_HOME'] || join(homedir(), '.local', 'share'), 'lcow'));
  const runtime = resolve(
    env['LCOW_RUNTIME_DIR'] ||
      (env['XDG_RUNTIME_DIR']
        ? join(env['XDG_RUNTIME_DIR'], 'lcow')
        : join(tmpdir(), `lcow-${process.getuid?.() ?? 0}`)),
  );
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
  const owner = statSync(folder).uid;
  if (process.getuid && owner !== process.getuid())
    throw new LcowError('IO_FAILED', `The state folder ${folder} belongs to user ${owner}, not to you.`, {
      hint: 'Set LCOW_ROOT and LCOW_RUNTIME_DIR to folders of your own.',
    });
}
