import { pipeline } from 'node:stream/promises';
import { Command } from 'commander';
import { Engine, startFailureExitCode } from '../engine/index.js';
import { CommandFailure, ExitWith } from './failure.js';
import { repeated } from './options.js';
import { attachTerminal, consoleSize, requireTerminal } from './terminal.js';

interface ExecOptions {
  readonly interactive?: boolean;
  readonly tty?: boolean;
  readonly detach?: boolean;
  readonly env?: string[];
  readonly workdir?: string;
  readonly user?: string;
}

/** `lcow exec` */
export function execCommand(): Command {
  return new Command('exec')
    .description('Run a command in a running container')
    .argument('<container>', 'name or id')
    .argument('<command...>', 'command and arguments')
    .passThroughOptions()
    .option('-i, --interactive', 'connect standard input')
    .option('-t, --tty', 'give the command a terminal')
    .option('-d, --detach', 'leave it running in the background')
    .option('-e, --env <K=V>', 'set an environment variable', repeated)
    .option('-w, --workdir <dir>', 'working directory')
    .option('-u, --user <user>', 'name or uid, optionally :group or :gid')
    .action(async (container: string, command: string[], options: ExecOptions) => {
      throw new ExitWith(await exec(container, command, options));
    });
}

async function exec(container: string, command: string[], options: ExecOptions): Promise<number> {
  if (options.interactive && options.tty) requireTerminal();
  const engine = await Engine.open();
  await using client = await engine.connect(container);
  const size = options.tty ? consoleSize() : undefined;
  const process_ = await engine.execProcess(container, {
    args: command,
    env: options.env ?? [],
    hostEnv: process.env,
    terminal: options.tty ?? false,
    ...(options.workdir === undefined ? {} : { workingDir: options.workdir }),
  });
  let remote;
  try {
    remote = await client.exec({
      process: process_,
      user: options.user ?? (await engine.container(container)).config.user,
      stdin: options.interactive ?? false,
      detach: options.detach ?? false,
      ...(size ? { consoleSize: size } : {}),
    });
  } catch (error) {
    const code = startFailureExitCode(error);
    throw new CommandFailure(code === 125 ? 1 : code, error);
  }
  if (options.detach) return 0;
  using _terminal = options.tty
    ? attachTerminal(options.interactive ?? false, (rows, columns) => remote.resizeConsole(rows, columns))
    : undefined;
  const { stdin, stdout, stderr } = remote;
  if (stdin) {
    // The command may exit without reading its input.
    stdin.on('error', () => process.stdin.unpipe(stdin));
    process.stdin.pipe(stdin);
  }
  try {
    // When whoever wanted the output has gone (`lcow exec … | head`), so does this command, and the process goes on
    // without it.
    const [exitCode] = await Promise.all([
      remote.wait(),
      stdout && pipeline(stdout, process.stdout, { end: false }),
      stderr && pipeline(stderr, process.stderr, { end: false }),
    ]);
    return exitCode;
  } finally {
    if (stdin) process.stdin.destroy();
  }
}
