import { Command } from 'commander';
import { Engine, signalNumber, type ContainerRecord } from '../engine/index.js';
import { forEach } from './for-each.js';
import { grace, parsed } from './options.js';
import { ago, duration, printJson, printTable, quoted } from './output.js';

/** `lcow ps` */
export function psCommand(): Command {
  return new Command('ps')
    .description('List containers')
    .option('-a, --all', 'also those that do not run')
    .option('-q, --quiet', 'only ids')
    .option('--no-trunc', 'whole ids and commands')
    .option('--json', 'as JSON')
    .action(async (options: { all?: boolean; quiet?: boolean; trunc: boolean; json?: boolean }) => {
      const engine = await Engine.open();
      const records = await engine.containers(options.all ?? false);
      const short = (id: string): string => (options.trunc ? id.slice(0, 12) : id);
      if (options.json) printJson(records.map(toJson));
      else if (options.quiet) for (const { config } of records) console.log(short(config.id));
      else
        printTable(
          ['CONTAINER ID', 'IMAGE', 'COMMAND', 'CREATED', 'STATUS', 'NAMES'],
          records.map((record) => {
            const { config } = record;
            return [
              short(config.id),
              config.image,
              quoted(config.args.join(' '), options.trunc ? 20 : Infinity),
              ago(new Date(config.createdAt)),
              statusText(record),
              config.name,
            ];
          }),
        );
    });
}

function statusText({ state }: ContainerRecord): string {
  switch (state.status) {
    case 'created':
      return 'Created';
    case 'starting':
      return 'Starting';
    case 'running':
      return `Up ${duration(Date.now() - Date.parse(state.startedAt ?? ''))}`;
    case 'removing':
      return 'Removal In Progress';
    case 'exited':
      return `Exited (${state.exitCode ?? 0})${state.finishedAt ? ` ${ago(new Date(state.finishedAt))}` : ''}`;
  }
}

function toJson({ config, state }: ContainerRecord): object {
  return { ...config, state };
}

/** `lcow stop` */
export function stopCommand(): Command {
  return new Command('stop')
    .description('Stop running containers: stop signal, then SIGKILL after a grace')
    .argument('<container...>', 'names or ids')
    .option('-t, --time <seconds>', 'grace before SIGKILL; -1 for no end of it', grace)
    .action((containers: string[], options: { time?: number }) =>
      forEach(containers, (engine, name) =>
        engine.stop(name, options.time === undefined ? engine.stopGraceMs : options.time * 1000),
      ),
    );
}

/** `lcow kill` */
export function killCommand(): Command {
  return new Command('kill')
    .description('Send a signal to running containers')
    .argument('<container...>', 'names or ids')
    .option('-s, --signal <signal>', 'name or number', parsed(signalNumber), signalNumber('KILL'))
    .action((containers: string[], options: { signal: number }) =>
      forEach(containers, (engine, name) => engine.kill(name, options.signal)),
    );
}

/** `lcow rm` */
export function rmCommand(): Command {
  return new Command('rm')
    .description('Remove containers')
    .argument('<container...>', 'names or ids')
    .option('-f, --force', 'kill running ones first')
    .action((containers: string[], options: { force?: boolean }) =>
      forEach(containers, (engine, name) => engine.remove(name, options.force ?? false)),
    );
}

/** `lcow wait` */
export function waitCommand(): Command {
  return new Command('wait')
    .description('Wait until containers have exited, then print their exit codes')
    .argument('<container...>', 'names or ids')
    .action((containers: string[]) =>
      forEach(
        containers,
        (engine, name) => engine.wait(name),
        (_name, exitCode) => [String(exitCode)],
      ),
    );
}

/** `lcow inspect` */
export function inspectCommand(): Command {
  return new Command('inspect')
    .description('Show containers as JSON')
    .argument('<container...>', 'names or ids')
    .action(async (containers: string[]) => {
      const engine = await Engine.open();
      const records = [];
      for (const name of containers) records.push(toJson(await engine.container(name)));
      printJson(records);
    });
}
