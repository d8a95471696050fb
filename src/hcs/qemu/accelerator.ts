/**
 * Which accelerator runs guests here, found out by running one. A device node proves little: KVM can be there, accept a
 * virtual machine, and then hang or abort it (seen in nested and sandboxed hosts).
 */
import { constants } from 'node:fs';
import { access } from 'node:fs/promises';
import { LcowError } from '../../errors/index.js';
import { setTimeoutFactor, timeoutMs } from '../../lifetime/index.js';
import type { Logger } from '../logger.js';
import { bootTrial } from './accelerator-trial.js';
import { builtInAccelerators, type QemuBinary } from './binary.js';
import { ACCELERATORS, VerdictCache, type Accelerator, type AcceleratorVerdict } from './verdict-cache.js';

/** Time-outs that wait for a guest are this much longer under emulation. */
const TCG_TIMEOUT_FACTOR = 4;

/** What a choice or a probe needs. */
export interface AcceleratorOptions {
  readonly qemu: QemuBinary;
  /** Kernel for the trial: the guest image's. */
  readonly kernelFilePath: string;
  /** Where verdicts are kept, in accelerators.json. */
  readonly cacheFolder: string;
  readonly signal?: AbortSignal | undefined;
  readonly log?: Logger | undefined;
  readonly env?: NodeJS.ProcessEnv | undefined;
}

/**
 * The best accelerator that works, trying in order and no further than needed. Emulation is taken without a trial when
 * nothing else is left. Sets the factor of all guest time-outs. `LCOW_ACCEL` overrides, untried.
 * @throws LcowError NO_ACCELERATOR, QEMU_MISSING, INVALID_ARGUMENT (LCOW_ACCEL), CANCELLED.
 */
export async function chooseAccelerator(options: AcceleratorOptions): Promise<Accelerator> {
  const chosen = await choose(options);
  setTimeoutFactor(chosen === 'tcg' ? TCG_TIMEOUT_FACTOR : 1);
  return chosen;
}

async function choose(options: AcceleratorOptions): Promise<Accelerator> {
  const override = (options.env ?? process.env)['LCOW_ACCEL'];
  if (override) {
    const found = ACCELERATORS.find((name) => name === override);
    if (!found)
      throw new LcowError('INVALID_ARGUMENT', `LCOW_ACCEL is ${override}; it can be ${ACCELERATORS.join(', ')}.`);
    return found;
  }
  const cache = await VerdictCache.open(options.qemu, options.cacheFolder);
  let builtIn: readonly string[] | undefined;
  for (const accelerator of ACCELERATORS) {
    let verdict = cache.get(accelerator);
    if (!verdict) {
      builtIn ??= await builtInAccelerators(options.qemu);
      verdict =
        accelerator === 'tcg' && builtIn.includes('tcg')
          ? {
              accelerator,
              usable: true,
              reason: 'Emulation needs nothing of the host: taken without a trial.',
              trialMs: 0,
            }
          : await judge(accelerator, builtIn, options);
      await cache.put(verdict, options.log);
    }
    if (verdict.usable) return accelerator;
    options.log?.debug({ accelerator, reason: verdict.reason }, 'accelerator not usable');
  }
  throw new LcowError(
    'NO_ACCELERATOR',
    `${options.qemu.path} can run a guest with none of ${ACCELERATORS.join(', ')}.`,
  );
}

/**
 * Tries every accelerator for real, emulation too, whatever was found before; keeps the verdicts.
 * @throws LcowError QEMU_MISSING, CANCELLED.
 */
export async function probeAccelerators(options: AcceleratorOptions): Promise<AcceleratorVerdict[]> {
  const builtIn = await builtInAccelerators(options.qemu);
  const cache = await VerdictCache.open(options.qemu, options.cacheFolder);
  const verdicts: AcceleratorVerdict[] = [];
  for (const accelerator of ACCELERATORS) {
    const verdict = await judge(accelerator, builtIn, options);
    await cache.put(verdict, options.log);
    verdicts.push(verdict);
  }
  return verdicts;
}

async function judge(
  accelerator: Accelerator,
  builtIn: readonly string[],
  options: AcceleratorOptions,
): Promise<AcceleratorVerdict> {
  const no = (reason: string, trialMs = 0): AcceleratorVerdict => ({ accelerator, usable: false, reason, trialMs });
  if (!builtIn.includes(accelerator)) return no('This QEMU was built without it.');
  if (accelerator === 'kvm') {
    try {
      await access('/dev/kvm', constants.R_OK | constants.W_OK);
    } catch (error) {
      return (error as NodeJS.ErrnoException).code === 'ENOENT'
        ? no('There is no /dev/kvm.')
        : no('You may not open /dev/kvm; join the group kvm.');
    }
  }
  const limitMs = timeoutMs('acceleratorTrial') * (accelerator === 'tcg' ? TCG_TIMEOUT_FACTOR : 1);
  const begin = performance.now();
  const failure = await bootTrial(accelerator, limitMs, options);
  const trialMs = Math.round(performance.now() - begin);
  return failure === undefined
    ? { accelerator, usable: true, reason: `A guest booted in ${trialMs} ms.`, trialMs }
    : no(failure, trialMs);
}
