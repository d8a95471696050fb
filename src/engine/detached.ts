import { fork } from 'node:child_process';
import { open } from 'node:fs/promises';
import { CATALOGUE, LcowError, type ErrorCode } from '../errors/index.js';
import type { ContainerStore } from './container-store.js';

/** What a detached supervisor tells its starter, once. */
export type StartReport = { ok: true } | { ok: false; code: string; message: string; hint?: string; details?: object };

/**
 * Starts a supervisor that outlives this process, and waits until its container runs.
 * @throws LcowError of what made the start fail, as if it had been in this process.
 */
export async function startDetached(store: ContainerStore, id: string, signal?: AbortSignal): Promise<void> {
  const log = await open(store.supervisorLogFile(id), 'a', 0o600);
  try {
    const child = fork(new URL('./supervisor-main.js', import.meta.url), [id], {
      detached: true,
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
        child.once('exit', (code, by) =>
          resolve({
            ok: false,
            code: signal?.aborted ? 'CANCELLED' : 'IO_FAILED',
            message: signal?.aborted
              ? 'The start of the container was cancelled.'
              : `The supervisor of the container ended before it started (${by ?? `exit code ${code ?? 0}`}).`,
            hint: `Its log is ${store.supervisorLogFile(id)}.`,
          }),
        );
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
  return new LcowError(report.code in CATALOGUE ? (report.code as ErrorCode) : 'IO_FAILED', report.message, {
    ...(report.hint ? { hint: report.hint } : {}),
    ...(report.details ? { details: { ...report.details } } : {}),
  });
}
