import { spawn } from 'node:child_process';
import { errorMessage } from '../../errors/index.js';
import { throwIfAborted } from '../../lifetime/index.js';
import { NO_LOG, type Logger } from '../logger.js';
import type { QemuBinary } from './binary.js';
import { TailBuffer, lastLine, printable } from './console.js';
import { deathSignalPrefix } from './process.js';

/** What a trial needs. */
export interface TrialOptions {
  readonly qemu: QemuBinary;
  /** An uncompressed kernel with a PVH note, or a bzImage. */
  readonly kernelFilePath: string;
  readonly signal?: AbortSignal | undefined;
  readonly log?: Logger | undefined;
}

// A kernel without an initrd comes to this line after all its own initialisation: processors, timers and interrupts work.
const BOOTED = 'Kernel panic - not syncing: VFS: Unable to mount root fs';

/**
 * Boots the kernel with nothing to run, so that it ends by itself.
 * @returns undefined when it did, else why not.
 */
export async function bootTrial(
  accelerator: string,
  limitMs: number,
  { qemu, kernelFilePath, signal, log = NO_LOG }: TrialOptions,
): Promise<string | undefined> {
  throwIfAborted(signal);
  const args = [
    '-nodefaults -no-user-config -display none -action reboot=shutdown -serial stdio -cpu max -smp 1 -m size=256M',
    `-machine q35,usb=off,smbus=off,sata=off -accel ${accelerator}`,
  ]
    .join(' ')
    .split(' ')
    .concat('-kernel', kernelFilePath, '-append', 'console=ttyS0 quiet panic=-1 cryptomgr.notests 8250.nr_uarts=1');
  const [command = qemu.path, ...rest] = [...(await deathSignalPrefix()), qemu.path, ...args];
  const child = spawn(command, rest, {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { PATH: process.env['PATH'] ?? '', LC_ALL: 'C' },
  });
  const stop = (): void => {
    child.kill('SIGKILL');
  };
  const limit = AbortSignal.timeout(limitMs);
  const either = signal ? AbortSignal.any([limit, signal]) : limit;
  either.addEventListener('abort', stop, { once: true });
  const stdout = new TailBuffer(64 << 10);
  const stderr = new TailBuffer(4 << 10);
  child.stdout.on('data', (chunk: Buffer) => {
    stdout.push(chunk);
    if (stdout.bytes().includes(BOOTED)) stop();
  });
  child.stderr.on('data', (chunk: Buffer) => stderr.push(chunk));
  let spawnError: unknown;
  await new Promise<void>((resolve) => {
    child.once('error', (error) => {
      spawnError = error;
      resolve();
    });
    child.once('close', () => resolve());
  });
  either.removeEventListener('abort', stop);
  throwIfAborted(signal);
  const output = printable(stdout.bytes());
  log.debug({ accelerator, output: output.slice(-2000) }, 'accelerator trial');
  if (output.includes(BOOTED)) return undefined;
  if (spawnError !== undefined) return `QEMU cannot be started: ${errorMessage(spawnError)}.`;
  if (limit.aborted) return `A guest hung: it did not boot within ${limitMs / 1000} s.`;
  const words = lastLine(printable(stderr.bytes()));
  return words === '' ? 'QEMU ended before the guest had booted.' : `QEMU failed: ${words}.`;
}
