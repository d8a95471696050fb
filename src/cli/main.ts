#!/usr/bin/env node
/** The `lcow` command: parses, calls, prints. */
import { reportFailure } from './failure.js';
import { buildProgram } from './program.js';

// `lcow … | head`: a reader that has seen enough is no failure.
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code !== 'EPIPE') throw error;
});

try {
  const program = await buildProgram(process.argv.slice(2));
  await program.parseAsync(process.argv);
} catch (error) {
  process.exitCode = reportFailure(error, process.argv[2]);
}
