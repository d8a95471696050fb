/** A process in a container or utility VM with its streams relayed (seed: the Cmd of internal/hcsoci). */
export { Cmd, type CmdOptions } from './cmd.js';
export { command, commandContext } from './command.js';
export { ExitError, ExitState } from './exit.js';
