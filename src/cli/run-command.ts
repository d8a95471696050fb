import { Command } from 'commander';
import {
  Engine,
  linuxSignal,
  openLog,
  parseCpus,
  parseSize,
  startFailureExitCode,
  type Supervisor,
} from '../engine/index.js';
import { CommandFailure, ENGINE_FAILURE, ExitWith } from './failure.js';
import { abortOnSignals } from './interruption.js';
import { parsed, repeated } from './options.js';
import { PullProgress } from './pull-progress.js';
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
  try {
    if (options.interactive && options.tty && !options.detach) requireTerminal();
    const engine = await Engine.open();
    const id = await create(engine, image, command, options);
    return options.detach ? await background(engine, id, options) : await foreground(engine, id, options);
  } catch (error) {
    throw new CommandFailure(startFailureExitCode(error), error);
  }
}

async function create(engine: Engine, image: string, command: string[], options: RunOptions): Promise<string> {
  using interruption = abortOnSignals();
  using progress = new PullProgress();
  const { signal } = interruption;
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

async function background(engine: Engine, id: string, options: RunOptions): Promise<number> {
  using interruption = abortOnSignals();
  using _spinner = spinner('Starting the utility VM');
  try {
    await engine.startDetached(id, interruption.signal);
  } catch (error) {
    if (options.rm) await engine.remove(id, true);
    throw error;
  }
  console.log(id);
  return 0;
}

async function foreground(engine: Engine, id: string, options: RunOptions): Promise<number> {
  const supervisor = await start(engine, id, options);
  const { tty, interactive } = options;
  using _signals = forwardSignals(engine, supervisor);
  using _terminal =
    tty && process.stdin.isTTY && interactive
      ? attachTerminal((rows, columns) => supervisor.init.resizeConsole(rows, columns))
      : undefined;
  try {
    const { exitCode } = await supervisor.wait();
    return exitCode ?? ENGINE_FAILURE;
  } finally {
    process.stdin.destroy();
    await engine.afterExit(id);
  }
}

async function start(engine: Engine, id: string, options: RunOptions): Promise<Supervisor> {
  using interruption = abortOnSignals();
  using _spinner = spinner('Starting the utility VM');
  const size = options.tty ? consoleSize() : undefined;
  try {
    return await engine.supervise(id, {
      signal: interruption.signal,
      log: await openLog('silent'),
      attach: {
        stdout: process.stdout,
        stderr: process.stderr,
        ...(options.interactive ? { stdin: process.stdin } : {}),
        ...(size ? { consoleSize: size } : {}),
      },
    });
  } catch (error) {
    if (options.rm) await engine.remove(id, true);
    throw error;
  }
}

const FORWARDED = ['SIGINT', 'SIGTERM', 'SIGHUP', 'SIGQUIT', 'SIGUSR1', 'SIGUSR2'] as const;
const ENDING: ReadonlySet<NodeJS.Signals> = new Set(['SIGINT', 'SIGTERM', 'SIGHUP']);

/**
 * Hands signals on to the container, as `docker run` does. This process owns the VM, so it cannot leave before the
 * container ends: an ending signal that the init does not handle kills it, SIGTERM gives it the stop grace, and the third
 * signal kills it in any case.
 */
function forwardSignals(engine: Engine, supervisor: Supervisor): Disposable {
  let endings = 0;
  // The container may end while a signal is on its way; its end is reported by wait().
  const ignore = (): undefined => undefined;
  const onSignal = (name: NodeJS.Signals): void => {
    if (ENDING.has(name)) endings += 1;
    if (endings >= 3) void supervisor.init.kill().catch(ignore);
    else if (name === 'SIGTERM') void supervisor.stop(engine.stopGraceMs, linuxSignal(name)).catch(ignore);
    else
      void supervisor.init.signal(linuxSignal(name)).then((delivered) => {
        if (!delivered && ENDING.has(name)) return supervisor.init.kill();
        return undefined;
      }, ignore);
  };
  for (const name of FORWARDED) process.on(name, onSignal);
  return {
    [Symbol.dispose]: () => {
      for (const name of FORWARDED) process.off(name, onSignal);
    },
  };
}
