/**
 * A signal that fires at the first SIGINT, SIGTERM or SIGHUP, so that work under way unwinds and leaves nothing; the
 * second one ends the process at once. Disposing gives the signals back.
 */
export function abortOnSignals(): { signal: AbortSignal } & Disposable {
  const abort = new AbortController();
  let first = true;
  const onSignal = (): void => {
    if (!first) process.exit(130);
    first = false;
    abort.abort();
  };
  const names = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;
  for (const name of names) process.on(name, onSignal);
  return {
    signal: abort.signal,
    [Symbol.dispose]: () => {
      for (const name of names) process.off(name, onSignal);
    },
  };
}
