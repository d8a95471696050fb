import { Command } from 'commander';
import prettyBytes from 'pretty-bytes';
import { createScratch, readFileChunks, tarToVhd, vhdInfo } from '../disk/index.js';
import { parseSize } from '../engine/index.js';
import { asIoError } from '../state/index.js';
import { abortOnSignals } from './interruption.js';
import { parsed } from './options.js';
import { printJson } from './output.js';
import { spinner } from './spinner.js';

/** `lcow disk tar2vhd|vhd-info|scratch` */
export function diskCommand(): Command {
  return new Command('disk')
    .description('Make and look at disk images')
    .addCommand(tar2vhdCommand())
    .addCommand(vhdInfoCommand())
    .addCommand(scratchCommand());
}

function tar2vhdCommand(): Command {
  return new Command('tar2vhd')
    .description('Convert a tar into a read-only ext4 layer in a fixed VHD')
    .requiredOption('-o, --output <vhd>', 'file to write')
    .option('-i, --input <tar>', 'file to read; standard input when absent')
    .option('--keep-whiteouts', 'leave .wh. files as they are, in place of overlay’s form')
    .option('--no-footer', 'a bare ext4 image, without the VHD footer')
    .option('--json', 'print what was made as JSON')
    .action(
      async (options: { output: string; input?: string; keepWhiteouts?: boolean; footer: boolean; json?: boolean }) => {
        using interruption = abortOnSignals();
        using _spinner = spinner(`Converting to ${options.output}`);
        const source = options.input ? readFileChunks(options.input) : process.stdin;
        try {
          const made = await tarToVhd(source, options.output, {
            convertWhiteout: !options.keepWhiteouts,
            appendVhdFooter: options.footer,
            signal: interruption.signal,
          });
          if (options.json) printJson(made);
        } catch (error) {
          throw asIoError(error, `${options.input ?? 'The standard input'} cannot be converted`);
        }
      },
    );
}

function vhdInfoCommand(): Command {
  return new Command('vhd-info')
    .description('Check the headers of a VHD or VHDX file and show what it holds')
    .argument('<file>')
    .option('--json', 'as JSON')
    .action(async (file: string, options: { json?: boolean }) => {
      const info = await vhdInfo(file);
      if (options.json) printJson(info);
      else
        for (const [name, value] of Object.entries(info))
          console.log(`${name}: ${typeof value === 'object' ? JSON.stringify(value) : describe(name, value)}`);
    });
}

function describe(name: string, value: unknown): string {
  return name.endsWith('Bytes') && typeof value === 'number' ? `${value} (${prettyBytes(value)})` : String(value);
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
