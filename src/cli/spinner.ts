import ora from 'ora';

/** Says on a terminal's stderr what is going on, once it has taken longer than a second. Leaves no trace. */
export function spinner(text: string): { stop(): void } & Disposable {
  const shown = ora({ text, stream: process.stderr, discardStdin: false, isEnabled: process.stderr.isTTY });
  const timer = process.stderr.isTTY ? setTimeout(() => shown.start(), 1000) : undefined;
  const stop = (): void => {
    clearTimeout(timer);
    shown.stop();
  };
  return { stop, [Symbol.dispose]: stop };
}
