import { once } from 'node:events';
import { Command } from 'commander';
import { isLcowError, LcowError } from '../errors/index.js';
import { Engine } from '../engine/index.js';
import { abortOnSignals } from './interruption.js';
import { count, parsed } from './options.js';

/** `lcow logs` */
export function logsCommand(): Command {
  return new Command('logs')
    .description('Show the output of a container')
    .argument('<container>', 'name or id')
    .option('-f, --follow', 'go on until the container exits')
    .option('-n, --tail <lines>', 'only so many lines from the end', (text) =>
      text === 'all' ? undefined : count(text),
    )
    .option('-t, --timestamps', 'with times')
    .option('--since <time>', 'only what is newer: RFC 3339 time, or a span such as 10m', parsed(parseSince))
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
          for await (const { log, stream, time } of entries) {
            const out = stream === 'stderr' ? process.stderr : process.stdout;
            if (!out.write(options.timestamps ? `${time} ${log}` : log)) await once(out, 'drain');
          }
        } catch (error) {
          // Ctrl-C is how one stops following.
          if (!isLcowError(error, 'CANCELLED')) throw error;
        }
      },
    );
}

const SPAN_MS: Readonly<Record<string, number>> = { s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 };

function parseSince(text: string): Date {
  const span = /^(\d+(?:\.\d+)?)([smhd])$/.exec(text);
  const date = span
    ? new Date(Date.now() - Number(span[1]) * SPAN_MS[span[2]!]!)
    : new Date(/^\d+$/.test(text) ? Number(text) * 1000 : text);
  if (Number.isNaN(date.getTime())) throw new LcowError('INVALID_ARGUMENT', `Invalid time: '${text}'.`);
  return date;
}
