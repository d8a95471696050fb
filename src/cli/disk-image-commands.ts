import { Command, InvalidArgumentError, Option } from 'commander';
import prettyBytes from 'pretty-bytes';
import {
  checkDisk,
  convertDisk,
  ext4Info,
  repairVhdx,
  resizeVhdx,
  verifyVerity,
  vhdInfo,
  type DiskCheck,
} from '../disk/index.js';
import { parseSize } from '../engine/index.js';
import { ExitWith } from './failure.js';
import { abortOnSignals } from './interruption.js';
import { count, parsed } from './options.js';
import { printJson } from './output.js';
import { spinner } from './spinner.js';

/** Exit codes of `disk check`, as `qemu-img check` has them. */
const CHECK_ERRORS = 2;
const CHECK_LEAKS = 3;

/** `lcow disk info`, which was `vhd-info` at first. */
export function diskInfoCommand(): Command {
  return new Command('info')
    .alias('vhd-info')
    .description('Check the headers of a VHD or VHDX file and show what it holds')
    .argument('<file>')
    .option('--json', 'as JSON')
    .action(async (file: string, options: { json?: boolean }) => {
      print(await vhdInfo(file), options.json);
    });
}

/** `lcow disk check` */
export function diskCheckCommand(): Command {
  return new Command('check')
    .description(
      'Check all structures of a VHD or VHDX file; exit code 2 for errors, 3 for what a repair or writer mends',
    )
    .argument('<file>')
    .option('--repair', 'replay the log of a VHDX and renew damaged copies first')
    .option('--json', 'as JSON')
    .action(async (file: string, options: { repair?: boolean; json?: boolean }) => {
      const repair = options.repair ? await repairVhdx(file) : undefined;
      const check = await checkDisk(file);
      if (options.json) printJson({ ...check, ...(repair ? { repair } : {}) });
      else {
        if (repair) console.log(`repaired: ${repair.repaired.join(', ') || 'nothing'}`);
        for (const { severity, message } of check.findings) console.log(`${severity}: ${message}`);
        console.log(summary(check));
      }
      if (check.errors > 0) throw new ExitWith(CHECK_ERRORS);
      if (check.findings.length > 0) throw new ExitWith(CHECK_LEAKS);
    });
}

function summary({ findings, totalBlocks, presentBlocks, imageEndBytes }: DiskCheck): string {
  const blocks = totalBlocks === undefined ? '' : `; ${presentBlocks} of ${totalBlocks} blocks are in the file`;
  const end = imageEndBytes === undefined ? '' : `, which ends at byte ${imageEndBytes}`;
  const found = findings.length === 0 ? 'No fault' : `${findings.length} ${findings.length === 1 ? 'fault' : 'faults'}`;
  return `${found}${blocks}${end}.`;
}

/** `lcow disk verity` */
export function diskVerityCommand(): Command {
  return new Command('verity')
    .description('Compare a disk with its dm-verity hash tree and show the root hash; exit code 1 when they differ')
    .argument('<file>', 'a disk with a hash tree behind its file system, as tar2vhd --verity makes it')
    .addOption(new Option('--root-hash <hex>', 'what the root hash must be').argParser(rootHash))
    .option('--hash-offset <bytes>', 'where the super block of the tree is; the end of the ext4 when absent', count)
    .option('--json', 'as JSON')
    .action(async (file: string, options: { rootHash?: string; hashOffset?: number; json?: boolean }) => {
      using interruption = abortOnSignals();
      using busy = spinner(`Hashing ${file}`);
      const hashOffset = options.hashOffset ?? (await ext4Info(file)).sizeBytes;
      const check = await verifyVerity(file, { hashOffset, rootHash: options.rootHash, signal: interruption.signal });
      busy.stop();
      print(check, options.json);
      if (!check.good) throw new ExitWith(1);
    });
}

function rootHash(text: string): string {
  if (!/^[0-9a-f]{64}$/i.test(text)) throw new InvalidArgumentError('It must have 64 hexadecimal digits.');
  return text;
}

/** `lcow disk resize` */
export function diskResizeCommand(): Command {
  return new Command('resize')
    .description('Make the disk in a VHDX larger; the file system in it stays as it is')
    .argument('<file>')
    .argument('<size>', 'the new size, such as 40g', parsed(parseSize))
    .option('--json', 'as JSON')
    .action(async (file: string, size: number, options: { json?: boolean }) => {
      const result = await resizeVhdx(file, size);
      if (options.json) printJson(result);
    });
}

/** `lcow disk convert` */
export function diskConvertCommand(): Command {
  const formats = ['raw', 'vhd', 'vhdx'] as const;
  type Format = (typeof formats)[number];
  return new Command('convert')
    .description('Convert a disk into a raw image, a fixed VHD or a dynamic VHDX, with holes for zeros')
    .argument('<source>')
    .argument('<target>', 'file to make; it must not exist')
    .addOption(new Option('--to <format>', 'format of the target').choices(formats).makeOptionMandatory())
    .addOption(new Option('--from <format>', 'format of the source; told by its content when absent').choices(formats))
    .option('--block-size <size>', 'block of a VHDX: a power of two from 1m to 256m', parsed(parseSize))
    .option('--json', 'print what was made as JSON')
    .action(
      async (
        source: string,
        target: string,
        options: { to: Format; from?: Format; blockSize?: number; json?: boolean },
      ) => {
        using interruption = abortOnSignals();
        using busy = spinner(`Converting to ${target}`);
        const made = await convertDisk(source, target, {
          to: options.to,
          from: options.from,
          blockSizeBytes: options.blockSize,
          signal: interruption.signal,
        });
        busy.stop();
        if (options.json) printJson(made);
      },
    );
}

/** Prints the facts of an object, a line each, or as JSON. */
function print(facts: object, json: boolean | undefined): void {
  if (json) printJson(facts);
  else
    for (const [name, value] of Object.entries(facts) as [string, unknown][])
      console.log(`${name}: ${typeof value === 'object' ? JSON.stringify(value) : describe(name, value)}`);
}

function describe(name: string, value: unknown): string {
  return name.endsWith('Bytes') && typeof value === 'number' ? `${value} (${prettyBytes(value)})` : String(value);
}
