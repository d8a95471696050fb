/** The program of a detached supervisor: owns one container until it has exited. Started by startDetached with its id. */
import { LcowError } from '../errors/index.js';
import { Engine } from './engine.js';
import type { StartReport } from './detached.js';
import { openLog } from './log.js';

const id = process.argv[2];
// The starter may go away at any time after the report.
process.on('disconnect', () => undefined);
process.on('SIGHUP', () => undefined);

const abort = new AbortController();
const terminate = (): void => abort.abort();
process.on('SIGTERM', terminate);
process.on('SIGINT', terminate);

async function report(message: StartReport): Promise<void> {
  if (!process.send || !process.connected) return;
  await new Promise<void>((resolve) => process.send!(message, undefined, undefined, () => resolve()));
}

try {
  if (!id) throw new LcowError('INVALID_ARGUMENT', 'The id of a container is missing.');
  const engine = await Engine.open();
  const supervisor = await engine.supervise(id, { signal: abort.signal, log: await openLog('info') });
  await report({ ok: true });
  if (process.connected) process.disconnect();
  // Of no use to it, and the caller may want to unmount or delete that folder.
  process.chdir('/');
  // A request to end stops the container first, as any owner would. Its end is reported by wait().
  const stop = (): void => void supervisor.stop(engine.stopGraceMs).catch(() => undefined);
  abort.signal.addEventListener('abort', stop);
  if (abort.signal.aborted) stop();
  const { error } = await supervisor.wait();
  if (error !== undefined) process.stderr.write(`${error}\n`);
} catch (error) {
  process.exitCode = 1;
  process.stderr.write(`${error instanceof Error ? (error.stack ?? error.message) : String(error)}\n`);
  const known = error instanceof LcowError ? error : undefined;
  await report({
    ok: false,
    code: known?.code ?? 'IO_FAILED',
    message: error instanceof Error ? error.message : String(error),
    ...(known?.hint ? { hint: known.hint } : {}),
    ...(known ? { details: known.details } : {}),
  });
  if (process.connected) process.disconnect();
}
