import { mkdir, readFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { z } from 'zod';
import { errorMessage } from '../../errors/index.js';
import { writeFileAtomic } from '../../state/index.js';
import { NO_LOG, type Logger } from '../logger.js';
import type { QemuBinary } from './binary.js';

/** In order of preference. */
export const ACCELERATORS = ['kvm', 'hvf', 'whpx', 'tcg'] as const;
export type Accelerator = (typeof ACCELERATORS)[number];

/** What became of the trial of one accelerator. */
export interface AcceleratorVerdict {
  readonly accelerator: Accelerator;
  readonly usable: boolean;
  /** One sentence: how it was found out. */
  readonly reason: string;
  /** Length of the trial in milliseconds; 0 when none was needed. */
  readonly trialMs: number;
}

const VerdictSchema = z.object({
  accelerator: z.enum(ACCELERATORS),
  usable: z.boolean(),
  reason: z.string(),
  trialMs: z.number(),
});
const CacheSchema = z.object({ key: z.string(), verdicts: z.array(VerdictSchema) });

/** Verdicts on disk; they hold for one boot of the host, one QEMU and one user. */
export class VerdictCache {
  readonly #path: string;
  readonly #key: string;
  #verdicts: AcceleratorVerdict[];

  private constructor(path: string, key: string, verdicts: AcceleratorVerdict[]) {
    this.#path = path;
    this.#key = key;
    this.#verdicts = verdicts;
  }

  static async open(qemu: QemuBinary, cacheFolder: string): Promise<VerdictCache> {
    const path = join(cacheFolder, 'accelerators.json');
    const key = [await hostBootId(), qemu.path, qemu.version, process.getuid?.() ?? 0].join(' ');
    try {
      const stored = CacheSchema.parse(JSON.parse(await readFile(path, 'utf8')));
      if (stored.key === key) return new VerdictCache(path, key, stored.verdicts);
    } catch {
      // No cache, or one of another version: the trials are made again.
    }
    return new VerdictCache(path, key, []);
  }

  get(accelerator: Accelerator): AcceleratorVerdict | undefined {
    return this.#verdicts.find((verdict) => verdict.accelerator === accelerator);
  }

  async put(verdict: AcceleratorVerdict, log: Logger = NO_LOG): Promise<void> {
    this.#verdicts = [...this.#verdicts.filter(({ accelerator }) => accelerator !== verdict.accelerator), verdict];
    try {
      await mkdir(dirname(this.#path), { recursive: true, mode: 0o700 });
      await writeFileAtomic(this.#path, JSON.stringify({ key: this.#key, verdicts: this.#verdicts }, null, 2));
    } catch (error) {
      // A cache that cannot be written costs the next start a trial, and this one nothing.
      log.warn({ path: this.#path, error: errorMessage(error) }, 'the accelerator verdicts could not be kept');
    }
  }
}

/** Linux' id of this boot; elsewhere verdicts hold until QEMU changes. */
async function hostBootId(): Promise<string> {
  try {
    return (await readFile('/proc/sys/kernel/random/boot_id', 'utf8')).trim();
  } catch {
    return process.platform;
  }
}
