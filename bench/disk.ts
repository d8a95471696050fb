import { execFile } from 'node:child_process';
import { createReadStream, createWriteStream, existsSync } from 'node:fs';
import { mkdtemp, open, readFile, rm, stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { promisify } from 'node:util';
import { createGunzip } from 'node:zlib';
import { pack } from 'tar-stream';
import { readFileChunks, tarToVhd } from '../src/disk/index.js';
import { median, type BenchRow } from './table.js';

const run = promisify(execFile);
const ROUNDS = 7;
const SMALL_FILES = 20_000;
const BIG_FILES = 4;
const BIG_BYTES = 64 * 1024 * 1024;
/** A layer of the Debian test image, when it was built. */
const DEBIAN = new URL('../test/images/out/debian/', import.meta.url).pathname;

/**
 * Times tar → ext4 in a VHD, in this process, beside `cat tar > file`: nothing that writes the content to a file can be
 * faster. Each round does both in turn, with a warm page cache, and neither is synced. LCOW_BENCH_TAR names a tar of one's own.
 */
export async function benchDisk(): Promise<BenchRow[]> {
  const folder = await mkdtemp(join(tmpdir(), 'lcow-bench-disk-'));
  try {
    const inputs: { name: string; tar: string }[] = [
      { name: `tar → VHD, ${SMALL_FILES} small files`, tar: await smallFiles(join(folder, 'small.tar')) },
      { name: `tar → VHD, ${BIG_FILES} files of 64 MiB`, tar: await bigFiles(join(folder, 'big.tar')) },
    ];
    const debian = await debianTar(join(folder, 'debian.tar'));
    if (debian !== undefined) inputs.push({ name: 'tar → VHD, Debian', tar: debian });
    const own = process.env['LCOW_BENCH_TAR'];
    if (own) inputs.push({ name: `tar → VHD, ${own}`, tar: own });
    const rows: BenchRow[] = [];
    for (const input of inputs) rows.push(await measure(input.name, input.tar, folder));
    return rows;
  } finally {
    await rm(folder, { recursive: true });
  }
}

async function measure(name: string, tar: string, folder: string): Promise<BenchRow> {
  const ours: number[] = [];
  const floor: number[] = [];
  const { size } = await stat(tar);
  for (let round = 0; round < ROUNDS; round++) {
    const vhd = join(folder, 'out.vhd');
    const copy = join(folder, 'out.tar');
    floor.push(await timed(() => run('sh', ['-c', 'cat "$0" > "$1"', tar, copy])));
    ours.push(await timed(() => convert(tar, vhd)));
    await rm(vhd);
    await rm(copy);
  }
  const ratio = median(ours.map((value, round) => value / floor[round]!));
  const label = `${name} (${Math.round(size / median(ours) / 1000)} MB/s)`;
  return {
    name: label,
    value: median(ours),
    unit: 'ms',
    floorName: 'cat tar > file',
    floorValue: median(floor),
    ratio,
  };
}

async function convert(tar: string, vhd: string): Promise<void> {
  const file = await open(vhd, 'w+');
  try {
    await tarToVhd(readFileChunks(tar), file);
  } finally {
    await file.close();
  }
}

/** Files of 1 to 4 KiB, fifty to a folder. */
async function smallFiles(path: string): Promise<string> {
  const tar = pack();
  const written = pipeline(tar, createWriteStream(path));
  const content = Buffer.alloc(4096, 'the content of a small file, which does not matter; ');
  for (let index = 0; index < SMALL_FILES; index++) {
    const name = `srv/folder-${Math.floor(index / 50)}/file-${index}`;
    tar.entry({ name, mtime: new Date(index * 1000) }, content.subarray(0, 1024 + ((index * 613) % 3072)));
    if (index % 500 === 0) await new Promise(setImmediate);
  }
  tar.finalize();
  await written;
  return path;
}

async function bigFiles(path: string): Promise<string> {
  const tar = pack();
  const written = pipeline(tar, createWriteStream(path));
  const content = Buffer.alloc(BIG_BYTES, 'not zeros');
  for (let index = 0; index < BIG_FILES; index++) tar.entry({ name: `big-${index}` }, content);
  tar.finalize();
  await written;
  return path;
}

/** The largest layer of the Debian test image, unpacked to `path`; undefined when the image was not built. */
async function debianTar(path: string): Promise<string | undefined> {
  if (!existsSync(join(DEBIAN, 'index.json'))) return undefined;
  const blob = (digest: string): string => join(DEBIAN, 'blobs', 'sha256', digest.replace('sha256:', ''));
  const json = async <T>(file: string): Promise<T> => JSON.parse(await readFile(file, 'utf8')) as T;
  const index = await json<{ manifests: { digest: string }[] }>(join(DEBIAN, 'index.json'));
  const manifest = await json<{ layers: { digest: string; size: number; mediaType: string }[] }>(
    blob(index.manifests[0]!.digest),
  );
  const layer = manifest.layers.sort((a, b) => b.size - a.size)[0];
  if (!layer?.mediaType.endsWith('+gzip')) return undefined;
  await pipeline(createReadStream(blob(layer.digest)), createGunzip({ chunkSize: 1 << 20 }), createWriteStream(path));
  return path;
}

async function timed(operation: () => Promise<unknown>): Promise<number> {
  const start = performance.now();
  await operation();
  return performance.now() - start;
}
