import type { FileHandle } from 'node:fs/promises';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { Command } from 'commander';
import {
  changes,
  openView,
  vhdToTar,
  type Ext4Inode,
  type FileView,
  type ViewEntry,
  type ViewLayer,
} from '../disk/index.js';
import { createAtomic } from '../state/index.js';
import { ExitWith } from './failure.js';
import { abortOnSignals } from './interruption.js';
import { repeated } from './options.js';
import { printJson, printTable } from './output.js';
import { spinner } from './spinner.js';

/** Exit code of a command whose reader went away: 128 + SIGPIPE, as shells have it. */
const BROKEN_PIPE = 141;

/** `lcow disk vhd2tar` */
export function vhd2tarCommand(): Command {
  return new Command('vhd2tar')
    .description('Write the files of a layer, or of a part of a disk, as a tar')
    .argument('<disk>', 'a VHD, VHDX or raw image with an ext4')
    .option('-o, --output <tar>', 'file to write; standard output when absent')
    .option(
      '--root <directory>',
      'directory of the disk whose content is written; /upper is what a container changed',
      '/',
    )
    .option('--keep-whiteouts', 'leave overlay’s marks as they are, in place of .wh. files')
    .option('--sparse', 'store sparse files without their holes')
    .action(
      async (disk: string, options: { output?: string; root: string; keepWhiteouts?: boolean; sparse?: boolean }) => {
        using interruption = abortOnSignals();
        using _spinner = spinner(`Reading ${disk}`);
        const chunks = vhdToTar(disk, {
          root: bytesOf(options.root),
          whiteouts: options.keepWhiteouts ? 'keep' : 'oci',
          sparse: options.sparse ?? false,
          reuseChunks: options.output !== undefined,
          signal: interruption.signal,
          onSkipped: (path, reason) => {
            process.stderr.write(`lcow: ${textOf(path)} is left out: ${reason}\n`);
          },
        });
        if (options.output === undefined) await writeOut(chunks);
        else await createAtomic(options.output, (file) => writeTo(file, chunks), 0o644);
      },
    );
}

/** `lcow disk ls` */
export function diskLsCommand(): Command {
  return withLayers(
    new Command('ls')
      .description('List a directory of a disk, or of a chain of layers')
      .argument('<disk>')
      .argument('[path]', 'directory or file', '/')
      .option('--json', 'as JSON'),
  ).action(async (disk: string, path: string, options: LayerOptions & { json?: boolean }) => {
    await using view = await openView(layersOf(disk, options));
    const entries = await listed(view, bytesOf(path));
    const described = await Promise.all(entries.map((entry) => describe(view, bytesOf(path), entry)));
    if (options.json) printJson(described);
    else if (described.length > 0)
      printTable(
        ['mode', 'links', 'uid', 'gid', 'size', 'modified', 'name'].map((head) => head.toUpperCase()),
        described.map(({ kind, mode, links, uid, gid, size, modified, name, target, device }) => [
          `${LETTERS[kind]}${permissions(mode)}`,
          String(links),
          String(uid),
          String(gid),
          device ?? String(size),
          modified.slice(0, 19).replace('T', ' '),
          shown(name) + (target === undefined ? '' : ` -> ${shown(target)}`),
        ]),
      );
  });
}

/** `lcow disk cat` */
export function diskCatCommand(): Command {
  return withLayers(
    new Command('cat')
      .description('Print a file of a disk, or of a chain of layers')
      .argument('<disk>')
      .argument('<path>'),
  ).action(async (disk: string, path: string, options: LayerOptions) => {
    await using view = await openView(layersOf(disk, options));
    await writeOut(view.stream(bytesOf(path)));
  });
}

/** `lcow disk diff` */
export function diskDiffCommand(): Command {
  return withLayers(
    new Command('diff')
      .description('List what a layer changes of the layers below it: A added, C changed, D deleted')
      .argument('<disk>')
      .option('--json', 'as JSON'),
  ).action(async (disk: string, options: LayerOptions & { json?: boolean }) => {
    const [upper, ...lower] = layersOf(disk, options);
    const found = (await changes(lower, upper)).map(({ path, kind }) => ({ path: textOf(path), kind }));
    if (options.json) printJson(found);
    else for (const { path, kind } of found) console.log(`${CHANGES[kind]} ${shown(path)}`);
  });
}

interface LayerOptions {
  readonly root: string;
  readonly lower?: string[];
}

function withLayers(command: Command): Command {
  return command
    .option('--root <directory>', 'directory of the disk to begin at; /upper in the disk of a container', '/')
    .option('--lower <disk>', 'a layer below, nearest first; can be given several times', repeated);
}

function layersOf(disk: string, { root, lower = [] }: LayerOptions): [ViewLayer, ...ViewLayer[]] {
  return [{ disk, root: bytesOf(root) }, ...lower.map((path) => ({ disk: path }))];
}

const CHANGES = { added: 'A', modified: 'C', deleted: 'D' } as const;
const LETTERS: Readonly<Record<Ext4Inode['kind'], string>> = {
  file: '-',
  directory: 'd',
  symbolicLink: 'l',
  characterDevice: 'c',
  blockDevice: 'b',
  fifo: 'p',
  socket: 's',
};

/** The names in a directory; of anything else, itself. */
async function listed(view: FileView, path: string): Promise<ViewEntry[]> {
  const inode = await view.stat(path);
  if (inode.kind === 'directory') return view.readdir(path);
  return [{ name: path.slice(path.lastIndexOf('/') + 1), kind: inode.kind, inode }];
}

async function describe(view: FileView, folder: string, { name, kind, inode }: ViewEntry) {
  const device = kind === 'characterDevice' || kind === 'blockDevice';
  return {
    name: textOf(name),
    kind,
    mode: inode.mode,
    links: inode.nlink,
    uid: inode.uid,
    gid: inode.gid,
    size: inode.size,
    modified: new Date(inode.mtime * 1000 + inode.mtimeNs / 1e6).toISOString(),
    ...(kind === 'symbolicLink' ? { target: textOf(await view.readlink(`${folder}/${name}`)) } : {}),
    ...(device ? { device: `${inode.deviceMajor}, ${inode.deviceMinor}` } : {}),
  };
}

/** rwxr-xr-x, with the bits above as ls shows them. */
function permissions(mode: number): string {
  const letters = Array.from('rwxrwxrwx', (letter, index) => (mode & (0o400 >> index) ? letter : '-'));
  const special = (bit: number, at: number, letter: string): void => {
    if (mode & bit) letters[at] = letters[at] === 'x' ? letter : letter.toUpperCase();
  };
  special(0o4000, 2, 's');
  special(0o2000, 5, 's');
  special(0o1000, 8, 't');
  return letters.join('');
}

/** Names in images are bytes; those given here and shown are UTF-8. */
function bytesOf(text: string): string {
  return Buffer.from(text).toString('latin1');
}

function textOf(byteString: string): string {
  return Buffer.from(byteString, 'latin1').toString();
}

/** A name from an image as a terminal may have it. */
function shown(name: string): string {
  return name.replace(/[\u0000-\u001f\u007f-\u009f]/g, '?');
}

/** Writes chunks to standard output, as fast as it takes them. */
async function writeOut(chunks: AsyncIterable<Uint8Array>): Promise<void> {
  try {
    await pipeline(Readable.from(chunks, { objectMode: false }), process.stdout);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EPIPE') throw new ExitWith(BROKEN_PIPE);
    throw error;
  }
}

/** Writes chunks to a file, the next one being made meanwhile. */
async function writeTo(file: FileHandle, chunks: AsyncGenerator<Uint8Array, void, undefined>): Promise<void> {
  let position = 0;
  try {
    for (let next = chunks.next(); ;) {
      const { value, done } = await next;
      if (done) return;
      next = chunks.next();
      // Looked at above, or never when the write fails.
      next.catch(() => undefined);
      for (let at = 0; at < value.length;) {
        const { bytesWritten } = await file.write(value, at, value.length - at, position);
        at += bytesWritten;
        position += bytesWritten;
      }
    }
  } finally {
    await chunks.return();
  }
}
