/**
 * Every time-out of the project: its default under hardware acceleration and the variable that overrides it.
 * Under emulation each is multiplied by the factor of the accelerator. docs/timeouts.md lists the same; a test compares.
 * Names that begin with HCSSHIM_ and their defaults are those of hcsshim's internal/timeout.
 */
export const TIMEOUTS = {
  systemCreate: { env: 'HCSSHIM_TIMEOUT_SYSTEMCREATE', seconds: 240 },
  systemStart: { env: 'HCSSHIM_TIMEOUT_SYSTEMSTART', seconds: 240 },
  systemPause: { env: 'HCSSHIM_TIMEOUT_SYSTEMPAUSE', seconds: 240 },
  systemResume: { env: 'HCSSHIM_TIMEOUT_SYSTEMRESUME', seconds: 240 },
  /** How long QEMU gets to end by itself before it is killed. */
  systemTerminate: { env: 'LCOW_TIMEOUT_SYSTEMTERMINATE', seconds: 5 },
  guestConnection: { env: 'HCSSHIM_TIMEOUT_GCSCONNECTION', seconds: 60 },
  guestShutdown: { env: 'LCOW_TIMEOUT_GUESTSHUTDOWN', seconds: 10 },
  guestRequest: { env: 'LCOW_TIMEOUT_GUESTREQUEST', seconds: 120 },
  deviceAppears: { env: 'HCSSHIM_TIMEOUT_TESTDRETRYLOOP', seconds: 5 },
  qmpCommand: { env: 'LCOW_TIMEOUT_QMPCOMMAND', seconds: 20 },
  acceleratorTrial: { env: 'LCOW_TIMEOUT_ACCELERATORTRIAL', seconds: 5 },
  registryConnect: { env: 'LCOW_TIMEOUT_REGISTRYCONNECT', seconds: 10 },
  registryIdle: { env: 'LCOW_TIMEOUT_REGISTRYIDLE', seconds: 30 },
  lock: { env: 'LCOW_TIMEOUT_LOCK', seconds: 600 },
  containerStop: { env: 'LCOW_TIMEOUT_CONTAINERSTOP', seconds: 10 },
} as const;

export type TimeoutName = keyof typeof TIMEOUTS;

/** Time-outs that wait for a guest, and so stretch when it is emulated. */
export const SCALED: ReadonlySet<TimeoutName> = new Set([
  'systemStart',
  'systemPause',
  'systemResume',
  'guestConnection',
  'guestShutdown',
  'guestRequest',
  'deviceAppears',
  'qmpCommand',
]);

let factor = 1;

/** Sets the emulation factor: 1 for hardware acceleration, more for TCG. */
export function setTimeoutFactor(value: number): void {
  factor = value;
}

/** The emulation factor in force. */
export function timeoutFactor(): number {
  return factor;
}

/**
 * A time-out in milliseconds. An override must be a number of seconds above 0, or the default is kept
 * (hcsshim internal/timeout); overrides are not scaled.
 */
export function timeoutMs(name: TimeoutName, env: NodeJS.ProcessEnv = process.env): number {
  const { env: variable, seconds } = TIMEOUTS[name];
  const override = Number(env[variable]);
  if (env[variable] && Number.isFinite(override) && override > 0) return override * 1000;
  return seconds * 1000 * (SCALED.has(name) ? factor : 1);
}
