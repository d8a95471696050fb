import { Command } from 'commander';
import { Engine, openLog, parseCpus, parseSize, startFailureExitCode, type Supervisor } from '../engine/index.js';
import { isLcowError } from '../errors/index.js';
import { CommandFailure, ENGINE_FAILURE, ExitWith, printFailure } from './failure.js';
import { parsed, repeated } from './options.js';
import { PullProgress } from './pull-progress.js';
import { SignalForwarding } from './signal-forwarding.js';
import { spinner } from './spinner.js';
import { attachTerminal, consoleSize, requireTerminal } from './terminal.js';

interface RunOptions {
  readonly rm?: boolean;
  readonly interactive?: boolean;
  readonly tty?: boolean;
  readonly detach?: boolean;
  readonly env?: string[];
  readonly workdir?: string;
  readonly user?: string;
  readonly entrypoint?: string;
  readonly memory?: number;
  readonly cpus?: number;
  readonly name?: string;
  readonly hostname?: string;
  readonly platform?: string;
}

/** `lcow run` */
export function runCommand(): Command {
  return new Command('run')
    .description('Create and run a new container from an image')
    .argument('<image>', 'image name or id; pulled when missing')
    .argument('[command...]', 'command and arguments, in place of the image’s')
    .passThroughOptions()
    .option('--rm', 'remove the container when it exits')
    .option('-i, --interactive', 'connect standard input')
    .option('-t, --tty', 'give the container a terminal')
    .option('-d, --detach', 'run in the background and print the container id')
    .option('-e, --env <K=V>', 'set an environment variable (K alone takes it from here)', repeated)
    .option('-w, --workdir <dir>', 'working directory')
    .option('-u, --user <user>', 'name or uid, optionally :group or :gid')
    .option('--entrypoint <program>', 'replace the image’s entrypoint')
    .option('-m, --memory <size>', 'memory limit, e.g. 256m', parsed(parseSize))
    .option('--cpus <n>', 'number of CPUs, e.g. 1.5', parsed(parseCpus))
    .option('--name <name>', 'name of the container')
    .option('--hostname <name>', 'host name inside the container')
    .option('--platform <os/arch>', 'platform of the image, e.g. linux/arm64')
    .action(async (image: string, command: string[], options: RunOptions) => {
      throw new ExitWith(await run(image, command, options));
    });
}

async function run(image: string, command: string[], options: RunOptions): Promise<number> {
  // One from beginning to end: between two of them a Ctrl-C would end this process with its work half done.
  using signals = new SignalForwarding();
  try {
    if (options.interactive && options.tty && !options.detach) requireTerminal();
    const engine = await Engine.open();
    const id = await create(engine, image, command, options, signals.signal);
    if (options.detach) return await background(engine, id, signals.signal);
    return await foreground(engine, id, options, signals);
  } catch (error) {
    if (isLcowError(error, 'CANCELLED')) throw error;
    throw new CommandFailure(startFailureExitCode(error), error);
  }
}

async function create(
  engine: Engine,
  image: string,
  command: string[],
  options: RunOptions,
  signal: AbortSignal,
): Promise<string> {
  using progress = new PullProgress();
  const config = await engine.create({
    image,
    command,
    hostEnv: process.env,
    tty: options.tty ?? false,
    openStdin: options.interactive ?? false,
    autoRemove: options.rm ?? false,
    detached: options.detach ?? false,
    ...(options.entrypoint === undefined ? {} : { entrypoint: options.entrypoint }),
    ...(options.env ? { env: options.env } : {}),
    ...(options.workdir === undefined ? {} : { workingDir: options.workdir }),
    ...(options.user === undefined ? {} : { user: options.user }),
    ...(options.memory === undefined ? {} : { memoryBytes: options.memory }),
    ...(options.cpus === undefined ? {} : { nanoCpus: options.cpus }),
    ...(options.name === undefined ? {} : { name: options.name }),
    ...(options.hostname === undefined ? {} : { hostname: options.hostname }),
    pull: { onProgress: progress.show, signal, ...(options.platform ? { platform: options.platform } : {}) },
    signal,
  });
  return config.id;
}

async function background(engine: Engine, id: string, signal: AbortSignal): Promise<number> {
  using _spinner = spinner('Starting the utility VM');
  await engine.startDetached(id, signal);
  console.log(id);
  return 0;
}

async function foreground(engine: Engine, id: string, options: RunOptions, signals: SignalForwarding): Promise<number> {
  try {
    const supervisor = await start(engine, id, options, signals.signal);
    signals.to(engine, supervisor);
    using _terminal = options.tty
      ? attachTerminal(options.interactive ?? false, (rows, columns) => supervisor.init.resizeConsole(rows, columns))
      : undefined;
    const { exitCode, error } = await supervisor.wait();
    if (error !== undefined) printFailure(error);
    return exitCode ?? ENGINE_FAILURE;
  } finally {
    // Whoever feeds it may keep it open for long; nobody here reads it any more.
    if (options.interactive) process.stdin.destroy();
  }
}

async function start(engine: Engine, id: string, options: RunOptions, signal: AbortSignal): Promise<Supervisor> {
  using _spinner = spinner('Starting the utility VM');
  const size = options.tty ? consoleSize() : undefined;
  return await engine.supervise(id, {
    signal,
    log: await openLog('silent'),
    attach: {
      stdout: process.stdout,
      stderr: process.stderr,
      ...(options.interactive ? { stdin: process.stdin } : {}),
      ...(size ? { consoleSize: size } : {}),
    },
  });
}
