import { fork } from 'node:child_process';
import { open } from 'node:fs/promises';
import { isErrorCode, LcowError } from '../errors/index.js';
import { throwIfAborted } from '../lifetime/index.js';
import type { StateFolders } from '../state/index.js';
import type { ContainerStore } from './container-store.js';

/** What a detached supervisor tells its starter, once. */
export type StartReport = { ok: true } | { ok: false; code: string; message: string; hint?: string; details?: object };

/**
 * Starts a supervisor that outlives this process, and waits until its container runs.
 * @param program The supervisor, but in tests.
 * @throws LcowError of what made the start fail, as if it had been in this process.
 */
export async function startDetached(
  folders: StateFolders,
  store: ContainerStore,
  id: string,
  signal?: AbortSignal,
  program = new URL('./supervisor-main.js', import.meta.url),
): Promise<void> {
  throwIfAborted(signal);
  const log = await open(store.supervisorLogFile(id), 'a', 0o600);
  try {
    const child = fork(program, [id], {
      detached: true,
      // Not what this process was started with: the engine may have been given folders of its own.
      env: { ...process.env, LCOW_ROOT: folders.root, LCOW_RUNTIME_DIR: folders.runtime },
      stdio: ['ignore', log.fd, log.fd, 'ipc'],
      execArgv: [],
    });
    const abandon = (): void => {
      child.kill('SIGTERM');
    };
    signal?.addEventListener('abort', abandon, { once: true });
    try {
      const report = await new Promise<StartReport>((resolve) => {
        child.once('message', (message) => resolve(message as StartReport));
        child.once('error', (error) => resolve({ ok: false, code: 'IO_FAILED', message: error.message }));
        child.once('exit', (code, by) => {
          const end = (): void =>
            resolve({
              ok: false,
              code: signal?.aborted ? 'CANCELLED' : 'IO_FAILED',
              message: signal?.aborted
                ? 'The start of the container was cancelled.'
                : `The supervisor of the container ended before it started (${by ?? `exit code ${code ?? 0}`}).`,
              hint: `Its log is ${store.supervisorLogFile(id)}.`,
            });
          // A report may still be in the channel, which is disconnected behind it.
          if (child.connected) child.once('disconnect', end);
          else end();
        });
      });
      if (!report.ok) throw reported(report);
    } finally {
      signal?.removeEventListener('abort', abandon);
      if (child.connected) child.disconnect();
      child.unref();
    }
  } finally {
    await log.close();
  }
}

function reported(report: Exclude<StartReport, { ok: true }>): LcowError {
  return new LcowError(isErrorCode(report.code) ? report.code : 'IO_FAILED', report.message, {
    ...(report.hint ? { hint: report.hint } : {}),
    ...(report.details ? { details: { ...report.details } } : {}),
  });
}
