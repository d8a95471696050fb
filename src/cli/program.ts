import { readFileSync } from 'node:fs';
import { Command } from 'commander';

/** Every command, and the module that has it: only what is called is loaded, so that a command starts at once. */
const COMMANDS: Readonly<Record<string, () => Promise<Command>>> = {
  run: async () => (await import('./run-command.js')).runCommand(),
  exec: async () => (await import('./exec-command.js')).execCommand(),
  ps: async () => (await import('./container-commands.js')).psCommand(),
  logs: async () => (await import('./logs-command.js')).logsCommand(),
  inspect: async () => (await import('./container-commands.js')).inspectCommand(),
  stop: async () => (await import('./container-commands.js')).stopCommand(),
  kill: async () => (await import('./container-commands.js')).killCommand(),
  rm: async () => (await import('./container-commands.js')).rmCommand(),
  wait: async () => (await import('./container-commands.js')).waitCommand(),
  image: async () => (await import('./image-command.js')).imageCommand(),
  disk: async () => (await import('./disk-command.js')).diskCommand(),
  doctor: async () => (await import('./doctor-command.js')).doctorCommand(),
};

/** The command that is called: the first argument that is no option, since options of `lcow` itself take no values. */
export function commandName(args: readonly string[]): string | undefined {
  return args.find((argument) => !argument.startsWith('-'));
}

/**
 * The command line as far as the arguments need it: the named command, or all of them for help and for what is no command.
 * @param args behind the program's name
 */
export async function buildProgram(args: readonly string[]): Promise<Command> {
  const { version } = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8')) as {
    version: string;
  };
  const program = new Command('lcow')
    .description('Linux containers, each in its own lightweight utility VM')
    .version(version)
    .option('-D, --debug', 'show the chain of causes and stack of an error')
    .enablePositionalOptions()
    .exitOverride()
    .showHelpAfterError('(lcow COMMAND --help shows the options)');
  program.on('option:debug', () => {
    process.env['LCOW_DEBUG'] = '1';
  });
  const named = commandName(args) ?? '';
  const wanted = Object.hasOwn(COMMANDS, named) ? [COMMANDS[named]!] : Object.values(COMMANDS);
  for (const load of wanted) program.addCommand((await load()).copyInheritedSettings(program));
  return program;
}
