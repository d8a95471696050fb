import { LcowError } from '../errors/index.js';

/** Whether this command has a terminal to hand on. @throws LcowError as docker does when -t has none. */
export function requireTerminal(): void {
  if (!process.stdin.isTTY)
    throw new LcowError(
      'INVALID_ARGUMENT',
      'The input device is not a TTY: leave -t away when input is not a terminal.',
    );
}

/** The size of the terminal on stdout, when there is one. */
export function consoleSize(): { rows: number; columns: number } | undefined {
  const { rows, columns } = process.stdout;
  return process.stdout.isTTY ? { rows, columns } : undefined;
}

/**
 * Hands this command's terminal on for as long as the resource lives: its size, at once, since it may have changed while
 * the process started, and at every change; and with `keys` every key, by raw mode.
 */
export function attachTerminal(keys: boolean, resize: (rows: number, columns: number) => Promise<void>): Disposable {
  const raw = keys && process.stdin.isTTY;
  if (raw) process.stdin.setRawMode(true);
  const onResize = (): void => {
    const size = consoleSize();
    // A resize that comes when the process has just ended is of no consequence.
    if (size) void resize(size.rows, size.columns).catch(() => undefined);
  };
  process.stdout.on('resize', onResize);
  onResize();
  return {
    [Symbol.dispose]: () => {
      process.stdout.off('resize', onResize);
      if (raw) process.stdin.setRawMode(false);
    },
  };
}
