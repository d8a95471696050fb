import { Command } from 'commander';
import { createScratch, readFileChunks, tarToVhd } from '../disk/index.js';
import { parseSize } from '../engine/index.js';
import { asIoError } from '../state/index.js';
import { diskCatCommand, diskDiffCommand, diskLsCommand, vhd2tarCommand } from './disk-files-command.js';
import {
  diskCheckCommand,
  diskConvertCommand,
  diskInfoCommand,
  diskResizeCommand,
  diskVerityCommand,
} from './disk-image-commands.js';
import { abortOnSignals } from './interruption.js';
import { parsed } from './options.js';
import { printJson } from './output.js';
import { spinner } from './spinner.js';

/** `lcow disk tar2vhd|vhd2tar|ls|cat|diff|info|check|verity|resize|convert|scratch` */
export function diskCommand(): Command {
  return new Command('disk')
    .description('Make and look at disk images')
    .addCommand(tar2vhdCommand())
    .addCommand(vhd2tarCommand())
    .addCommand(diskLsCommand())
    .addCommand(diskCatCommand())
    .addCommand(diskDiffCommand())
    .addCommand(diskInfoCommand())
    .addCommand(diskCheckCommand())
    .addCommand(diskVerityCommand())
    .addCommand(diskResizeCommand())
    .addCommand(diskConvertCommand())
    .addCommand(scratchCommand());
}

function tar2vhdCommand(): Command {
  return new Command('tar2vhd')
    .description('Convert a tar into a read-only ext4 layer in a fixed VHD')
    .requiredOption('-o, --output <vhd>', 'file to write')
    .option('-i, --input <tar>', 'file to read; standard input when absent')
    .option('--keep-whiteouts', 'leave .wh. files as they are, in place of overlay’s form')
    .option('--no-footer', 'a bare ext4 image, without the VHD footer')
    .option('--verity', 'append a dm-verity hash tree; --json tells its root hash')
    .option('--json', 'print what was made as JSON')
    .action(
      async (options: {
        output: string;
        input?: string;
        keepWhiteouts?: boolean;
        footer: boolean;
        verity?: boolean;
        json?: boolean;
      }) => {
        using interruption = abortOnSignals();
        using _spinner = spinner(`Converting to ${options.output}`);
        const source = options.input ? readFileChunks(options.input) : process.stdin;
        try {
          const made = await tarToVhd(source, options.output, {
            convertWhiteout: !options.keepWhiteouts,
            appendVhdFooter: options.footer,
            appendDMVerity: options.verity ?? false,
            signal: interruption.signal,
          });
          if (options.json) printJson(made);
        } catch (error) {
          throw asIoError(error, `${options.input ?? 'The standard input'} cannot be converted`);
        }
      },
    );
}

function scratchCommand(): Command {
  return new Command('scratch')
    .description('Make a blank ext4 file system in a dynamic VHDX')
    .argument('<file>')
    .option('--size <size>', 'size of the file system', parsed(parseSize), parseSize('20g'))
    .action(async (file: string, options: { size: number }) => {
      await createScratch(file, { sizeBytes: options.size });
    });
}
