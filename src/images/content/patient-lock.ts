import { isLcowError } from '../../errors/index.js';
import { withLock } from '../../state/index.js';

/**
 * `withLock` without its limit of patience: a layer may take longer to arrive than the lock time-out, and as long as
 * its holder lives, waiting is right. The signal ends it.
 */
export async function withPatientLock<T>(
  folder: string,
  key: string,
  critical: () => Promise<T>,
  signal?: AbortSignal,
): Promise<T> {
  const progress = { entered: false };
  for (;;) {
    try {
      return await withLock(
        folder,
        key,
        async () => {
          progress.entered = true;
          return critical();
        },
        signal,
      );
    } catch (error) {
      if (progress.entered || !isLcowError(error, 'LOCK_HELD')) throw error;
    }
  }
}
