import { readFileSync } from 'node:fs';
import { Command } from 'commander';
import { containerCommands } from './container-commands.js';
import { diskCommand } from './disk-command.js';
import { doctorCommand } from './doctor-command.js';
import { execCommand } from './exec-command.js';
import { imageCommand } from './image-command.js';
import { logsCommand } from './logs-command.js';
import { runCommand } from './run-command.js';

/** Exit code of docker's own failures, before any container ran. */
export const ENGINE_FAILURE = 125;

/** The whole command line. */
export function buildProgram(): Command {
  const { version } = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8')) as {
    version: string;
  };
  const program = new Command('lcow')
    .description('Linux containers, each in its own lightweight utility VM')
    .version(version)
    .option('-D, --debug', 'show the chain of causes and stack of an error')
    .enablePositionalOptions()
    .showHelpAfterError('(lcow COMMAND --help shows the options)');
  program.on('option:debug', () => {
    process.env['LCOW_DEBUG'] = '1';
  });
  const commands = [
    runCommand(),
    execCommand(),
    ...containerCommands(),
    logsCommand(),
    imageCommand(),
    diskCommand(),
    doctorCommand(),
  ];
  for (const command of commands) program.addCommand(command.copyInheritedSettings(program));
  return program;
}
