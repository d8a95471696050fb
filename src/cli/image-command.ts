import { Command } from 'commander';
import prettyBytes from 'pretty-bytes';
import { Engine } from '../engine/index.js';
import { forEach } from './for-each.js';
import { abortOnSignals } from './interruption.js';
import { repeated } from './options.js';
import { ago, printJson, printTable } from './output.js';
import { PullProgress } from './pull-progress.js';

/** `lcow image pull|import|ls|rm|inspect` */
export function imageCommand(): Command {
  return new Command('image')
    .description('Manage images')
    .addCommand(pullCommand())
    .addCommand(importCommand())
    .addCommand(lsCommand())
    .addCommand(rmCommand())
    .addCommand(inspectCommand());
}

function pullCommand(): Command {
  return new Command('pull')
    .description('Pull an image from a registry')
    .argument('<image>', 'reference, e.g. alpine:3.20 or registry.example/app@sha256:…')
    .option('--platform <os/arch>', 'platform to choose from an index')
    .option('--insecure', 'allow plain HTTP and unverified TLS (loopback registries need it not)')
    .option('-q, --quiet', 'print only the image id')
    .action(async (name: string, options: { platform?: string; insecure?: boolean; quiet?: boolean }) => {
      const engine = await Engine.open();
      using interruption = abortOnSignals();
      using progress = new PullProgress();
      const image = await engine.images.pull(name, {
        signal: interruption.signal,
        insecure: options.insecure ?? false,
        ...(options.quiet ? {} : { onProgress: progress.show }),
        ...(options.platform ? { platform: options.platform } : {}),
      });
      progress[Symbol.dispose]();
      console.log(options.quiet ? image.id : `${image.references[0] ?? image.id}\n${image.id}`);
    });
}

interface ImportOptions {
  readonly name?: string;
  readonly platform?: string;
  readonly cmd?: string[];
  readonly env?: string[];
}

function importCommand(): Command {
  return new Command('import')
    .description('Import an OCI layout folder, an OCI archive, a docker save archive, or a root file system tar')
    .argument('<path>', 'folder or file; - for standard input')
    .option('--name <reference>', 'name of the image; needed where the source has none')
    .option('--platform <os/arch>', 'platform to choose from an index')
    .option('--cmd <argument>', 'default command of a root file system (repeatable)', repeated)
    .option('-e, --env <K=V>', 'environment of a root file system (repeatable)', repeated)
    .action(async (path: string, options: ImportOptions) => {
      const engine = await Engine.open();
      using interruption = abortOnSignals();
      using progress = new PullProgress();
      const images = await engine.images.import(path === '-' ? process.stdin : path, {
        signal: interruption.signal,
        onProgress: progress.show,
        ...(options.name === undefined ? {} : { name: options.name }),
        ...(options.platform ? { platform: options.platform } : {}),
        ...(options.cmd ? { cmd: options.cmd } : {}),
        ...(options.env ? { env: options.env } : {}),
      });
      progress[Symbol.dispose]();
      for (const image of images) console.log(`${image.references.join(', ') || '<none>'} ${image.id}`);
    });
}

function lsCommand(): Command {
  return new Command('ls')
    .description('List images')
    .option('-q, --quiet', 'only ids')
    .option('--json', 'as JSON')
    .action(async (options: { quiet?: boolean; json?: boolean }) => {
      const images = await (await Engine.open()).images.list();
      if (options.json) printJson(images);
      else if (options.quiet) for (const { id } of images) console.log(shortId(id));
      else
        printTable(
          ['REPOSITORY', 'TAG', 'IMAGE ID', 'CREATED', 'SIZE'],
          images.map((image) => [
            image.repository,
            image.tag,
            shortId(image.id),
            image.created ? ago(new Date(image.created)) : 'N/A',
            prettyBytes(image.sizeBytes),
          ]),
        );
    });
}

function rmCommand(): Command {
  return new Command('rm')
    .description('Remove images')
    .argument('<image...>', 'names or ids')
    .option('-f, --force', 'also when several names stand for it')
    .action((names: string[], options: { force?: boolean }) =>
      forEach(
        names,
        (engine, name) => engine.removeImage(name, options.force ?? false),
        (_name, { untagged, deleted }) => [
          ...untagged.map((reference) => `Untagged: ${reference}`),
          ...deleted.map((id) => `Deleted: ${id}`),
        ],
      ),
    );
}

function inspectCommand(): Command {
  return new Command('inspect')
    .description('Show images as JSON')
    .argument('<image...>', 'names or ids')
    .action(async (names: string[]) => {
      const engine = await Engine.open();
      const found = [];
      for (const name of names) found.push(await engine.images.inspect(name));
      printJson(found);
    });
}

function shortId(id: string): string {
  return id.replace(/^sha256:/, '').slice(0, 12);
}
