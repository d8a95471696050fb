import { once } from 'node:events';
import { Command } from 'commander';
import { isLcowError } from '../errors/index.js';
import { Engine } from '../engine/index.js';
import { abortOnSignals } from './interruption.js';
import { parsed, tail, time } from './options.js';

/** `lcow logs` */
export function logsCommand(): Command {
  return new Command('logs')
    .description('Show the output of a container')
    .argument('<container>', 'name or id')
    .option('-f, --follow', 'go on until the container exits')
    .option('-n, --tail <lines>', 'only so many lines from the end', tail)
    .option('-t, --timestamps', 'with times')
    .option('--since <time>', 'only what is newer: RFC 3339 time, or a span such as 10m', parsed(time))
    .action(
      async (
        name: string,
        options: { follow?: boolean; tail?: number; timestamps?: boolean; since?: Date },
      ): Promise<void> => {
        const engine = await Engine.open();
        using interruption = abortOnSignals();
        try {
          const entries = engine.logs(name, {
            follow: options.follow ?? false,
            signal: interruption.signal,
            ...(options.tail === undefined ? {} : { tail: options.tail }),
            ...(options.since ? { since: options.since } : {}),
          });
          for await (const { log, stream, time: at } of entries) {
            const out = stream === 'stderr' ? process.stderr : process.stdout;
            if (!out.write(options.timestamps ? `${at} ${log}` : log)) await once(out, 'drain');
          }
        } catch (error) {
          // Ctrl-C is how one stops following.
          if (!isLcowError(error, 'CANCELLED')) throw error;
        }
      },
    );
}
