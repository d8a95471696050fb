/**
 * A signal that fires at the first SIGINT, SIGTERM or SIGHUP, so that work under way unwinds and leaves nothing; the
 * second one ends the process at once. Disposing gives the signals back.
 */
export function abortOnSignals(): { signal: AbortSignal } & Disposable {
  const abort = new AbortController();
  const handler = onSignals(['SIGINT', 'SIGTERM', 'SIGHUP'], () => {
    if (abort.signal.aborted) process.exit(130);
    abort.abort();
  });
  return { signal: abort.signal, [Symbol.dispose]: () => handler[Symbol.dispose]() };
}

/** Calls a function at each of these signals for as long as the resource lives. */
export function onSignals(names: readonly NodeJS.Signals[], act: (name: NodeJS.Signals) => void): Disposable {
  for (const name of names) process.on(name, act);
  return {
    [Symbol.dispose]: () => {
      for (const name of names) process.off(name, act);
    },
  };
}
