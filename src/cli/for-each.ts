import { Engine } from '../engine/index.js';
import { ExitWith, printFailure } from './failure.js';

/**
 * Does the same to each, prints the lines of each (its name unless told otherwise), and goes on after a failure, as docker
 * does; exit code 1 if any failed.
 */
export async function forEach<T>(
  names: readonly string[],
  act: (engine: Engine, name: string) => Promise<T>,
  lines: (name: string, result: T) => readonly string[] = (name) => [name],
): Promise<void> {
  const engine = await Engine.open();
  let failed = false;
  for (const name of names) {
    try {
      for (const line of lines(name, await act(engine, name))) console.log(line);
    } catch (error) {
      failed = true;
      printFailure(error);
    }
  }
  if (failed) throw new ExitWith(1);
}
