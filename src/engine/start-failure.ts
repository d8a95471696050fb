import { isLcowError } from '../errors/index.js';

/** Docker's codes for a container that could not be started; 130, as shells have it, when Ctrl-C ended the start. */
export function startFailureExitCode(error: unknown): number {
  if (isLcowError(error, 'COMMAND_NOT_FOUND')) return 127;
  if (isLcowError(error, 'COMMAND_NOT_EXECUTABLE')) return 126;
  if (isLcowError(error, 'CANCELLED')) return 130;
  return 125;
}
