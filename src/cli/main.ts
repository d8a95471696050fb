#!/usr/bin/env node
/** The `lcow` command: parses, calls, prints. */
import { buildProgram } from './program.js';
import { reportFailure } from './failure.js';

try {
  await buildProgram().parseAsync(process.argv);
} catch (error) {
  process.exitCode = reportFailure(error);
}
