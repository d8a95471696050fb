import { NO_LOG, type Logger } from '../hcs/index.js';

const LEVELS = ['debug', 'info', 'warn', 'silent'] as const;

/**
 * A logger of JSON lines on this process' standard error. The level is `$LCOW_LOG_LEVEL`, else "debug" with `--debug`
 * (`$LCOW_DEBUG`), else the given one.
 */
export async function openLog(
  fallback: (typeof LEVELS)[number],
  env: NodeJS.ProcessEnv = process.env,
): Promise<Logger> {
  const level = LEVELS.find((name) => name === env['LCOW_LOG_LEVEL']) ?? (env['LCOW_DEBUG'] ? 'debug' : fallback);
  if (level === 'silent') return NO_LOG;
  // Loaded by those who log only: a command starts sooner without it.
  const { pino } = await import('pino');
  const logger: Logger = pino({ level, base: { pid: process.pid } }, pino.destination({ dest: 2, sync: true }));
  return logger;
}
