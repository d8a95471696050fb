#!/usr/bin/env node
/** The `lcow` command: parses, calls, prints. */
import { isBrokenPipe, reportFailure } from './failure.js';
import { buildProgram, commandName } from './program.js';

// `lcow … | head`: a reader that has seen enough is no failure.
for (const output of [process.stdout, process.stderr])
  output.on('error', (error: Error) => {
    if (!isBrokenPipe(error)) throw error;
  });

const args = process.argv.slice(2);
try {
  const program = await buildProgram(args);
  await program.parseAsync(args, { from: 'user' });
} catch (error) {
  process.exitCode = reportFailure(error, commandName(args));
}
