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

/** Raw mode and resize events for as long as the resource lives: every key goes to the container. */
export function attachTerminal(resize: (rows: number, columns: number) => Promise<void>): Disposable {
  process.stdin.setRawMode(true);
  const onResize = (): void => {
    const size = consoleSize();
    // A resize that comes when the process has just ended is of no consequence.
    if (size) void resize(size.rows, size.columns).catch(() => undefined);
  };
  process.stdout.on('resize', onResize);
  return {
    [Symbol.dispose]: () => {
      process.stdout.off('resize', onResize);
      process.stdin.setRawMode(false);
    },
  };
}
