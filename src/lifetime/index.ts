/** Lifetime: scopes that release in reverse, deadlines that scale with emulation, abort signals. */
export { Scope, releaseAll } from './scope.js';
export { TIMEOUTS, timeoutMs, setTimeoutFactor, timeoutFactor, type TimeoutName } from './timeouts.js';
export { withDeadline, throwIfAborted, abortable, settledWithin, delay, MAX_TIMER_MS } from './deadline.js';
