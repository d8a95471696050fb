import { execFile } from 'node:child_process';
import { createReadStream, createWriteStream, existsSync } from 'node:fs';
import { mkdtemp, open, readFile, rm, stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { promisify } from 'node:util';
import { createGunzip } from 'node:zlib';
import { pack } from 'tar-stream';
import { readFileChunks, tarToVhd, vhdToTar } from '../src/disk/index.js';
import { median, type BenchRow } from './table.js';

const run = promisify(execFile);
const ROUNDS = 7;
const SMALL_FILES = 20_000;
const BIG_FILES = 4;
const BIG_BYTES = 64 * 1024 * 1024;
/** A layer of the Debian test image, when it was built. */
const DEBIAN = new URL('../test/images/out/debian/', import.meta.url).pathname;

/**
 * Times tar → ext4 in a VHD and back, in this process, beside `cat` of the source to a file: nothing that writes the
 * content to a file can be faster. Each round does both in turn, with a warm page cache, and neither is synced. LCOW_BENCH_TAR names a tar of one's own.
 */
export async function benchDisk(): Promise<BenchRow[]> {
  const folder = await mkdtemp(join(tmpdir(), 'lcow-bench-disk-'));
  try {
    const inputs: { name: string; tar: string }[] = [
      { name: `${SMALL_FILES} small files`, tar: await smallFiles(join(folder, 'small.tar')) },
      { name: `${BIG_FILES} files of 64 MiB`, tar: await bigFiles(join(folder, 'big.tar')) },
    ];
    const debian = await debianTar(join(folder, 'debian.tar'));
    if (debian !== undefined) inputs.push({ name: 'Debian', tar: debian });
    const own = process.env['LCOW_BENCH_TAR'];
    if (own) inputs.push({ name: own, tar: own });
    const rows: BenchRow[] = [];
    for (const input of inputs) rows.push(...(await measure(input.name, input.tar, folder)));
    return rows;
  } finally {
    await rm(folder, { recursive: true });
  }
}

/** There and back: the floor of the way back is `cat vhd > file`. */
async function measure(name: string, tar: string, folder: string): Promise<BenchRow[]> {
  const there = { ours: [] as number[], floor: [] as number[] };
  const back = { ours: [] as number[], floor: [] as number[] };
  const { size } = await stat(tar);
  const vhd = join(folder, 'out.vhd');
  const copy = join(folder, 'copy');
  const again = join(folder, 'again.tar');
  const cat = (from: string): Promise<number> => timed(() => run('sh', ['-c', 'cat "$0" > "$1"', from, copy]));
  for (let round = 0; round < ROUNDS; round++) {
    there.floor.push(await cat(tar));
    there.ours.push(await timed(() => convert(tar, vhd)));
    await rm(copy);
    back.floor.push(await cat(vhd));
    back.ours.push(await timed(() => convertBack(vhd, again)));
    for (const made of [vhd, copy, again]) await rm(made);
  }
  const row = (what: string, floorName: string, { ours, floor }: typeof there): BenchRow => ({
    name: `${what}, ${name} (${Math.round(size / median(ours) / 1000)} MB/s)`,
    value: median(ours),
    unit: 'ms',
    floorName,
    floorValue: median(floor),
    ratio: median(ours.map((value, round) => value / floor[round]!)),
  });
  return [row('tar → VHD', 'cat tar > file', there), row('VHD → tar', 'cat vhd > file', back)];
}

async function convertBack(vhd: string, tar: string): Promise<void> {
  const file = await open(tar, 'w');
  try {
    const chunks = vhdToTar(vhd, { reuseChunks: true });
    // One chunk is made while the one before it is written.
    for (let next = chunks.next(); ;) {
      const { value, done } = await next;
      if (done) return;
      next = chunks.next();
      await file.write(value);
    }
  } finally {
    await file.close();
  }
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
