/** What e2fsprogs says of an ext4 image: the judge of what we write. Needs no root. */
import { execFile, spawn } from 'node:child_process';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

/** Runs `e2fsck -fn`. `complaints` is empty for a file system without any fault. */
export async function fsck(image: string): Promise<{ exitCode: number; complaints: string[] }> {
  const { exitCode, stdout } = await run('e2fsck', ['-fn', image]);
  const expected = /^(Pass \d|.*: \d+\/\d+ files )/;
  return { exitCode, complaints: stdout.split('\n').filter((line) => line !== '' && !expected.test(line)) };
}

/** One name in an image. */
export interface Seen {
  readonly inode: number;
  /** As debugfs names it: regular, directory, symlink, character special, block special, FIFO, socket. */
  readonly type: string;
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  readonly size: number;
  readonly links: number;
  /** Seconds and nanoseconds. */
  readonly mtime: readonly [number, number];
  /** Of short links. */
  readonly target: string | undefined;
  /** major:minor, decimal. */
  readonly device: string | undefined;
  /** Long values, which debugfs leaves out, are dashes of their length. */
  readonly xattrs: Readonly<Record<string, string>>;
}

/** Everything below the root by path without a leading slash; the root itself is ''. */
export async function listImage(image: string): Promise<Map<string, Seen>> {
  const paths = new Map<string, number>([['', 2]]);
  let folders: [string, number][] = [['', 2]];
  while (folders.length > 0) {
    const outputs = await debugfs(
      image,
      folders.map(([, inode]) => `ls -p <${inode}>`),
    );
    const next: [string, number][] = [];
    outputs.forEach((output, index) => {
      for (const line of output.split('\n')) {
        const match = /^\/(\d+)\/(\d+)\/-?\d+\/-?\d+\/(.*)\/(\d*)\/$/.exec(line);
        if (!match || match[1] === '0' || match[3] === '.' || match[3] === '..') continue;
        const path = folders[index]![0] === '' ? match[3]! : `${folders[index]![0]}/${match[3]!}`;
        paths.set(path, Number(match[1]));
        if (match[2]!.startsWith('04')) next.push([path, Number(match[1])]);
      }
    });
    folders = next;
  }
  const inodes = [...new Set(paths.values())];
  const stats = await debugfs(
    image,
    inodes.map((inode) => `stat <${inode}>`),
  );
  const seen = new Map(inodes.map((inode, index) => [inode, parseStat(inode, stats[index]!)] as const));
  return new Map([...paths].map(([path, inode]) => [path, seen.get(inode)!] as const));
}

/** The content of inodes. */
export async function readInodes(image: string, inodes: readonly number[]): Promise<Buffer[]> {
  const folder = await mkdtemp(join(tmpdir(), 'lcow-debugfs-'));
  try {
    await debugfs(
      image,
      inodes.map((inode, index) => `dump <${inode}> ${folder}/${index}`),
    );
    return await Promise.all(inodes.map((_, index) => readFile(join(folder, String(index)))));
  } finally {
    await rm(folder, { recursive: true });
  }
}

/** Runs debugfs commands, and returns what each printed. */
export async function debugfs(image: string, commands: readonly string[]): Promise<string[]> {
  const { stdout } = await run('debugfs', ['-f', '-', image], commands.join('\n') + '\n');
  return stdout
    .split(/^debugfs: .*\n/m)
    .slice(1)
    .map((output) => output.trimEnd());
}

function parseStat(inode: number, output: string): Seen {
  const field = (pattern: RegExp): string => pattern.exec(output)?.[1] ?? '';
  const time = /^ mtime: 0x([0-9a-f]{8}):([0-9a-f]{8})/m.exec(output);
  const extra = parseInt(time?.[2] ?? '0', 16);
  // Counted as the kernel does: 32 signed bits, and two more that extend them upwards.
  const seconds = (parseInt(time?.[1] ?? '0', 16) | 0) + (extra & 3) * 2 ** 32;
  const xattrs: Record<string, string> = {};
  for (const line of output.split('Extended attributes:\n')[1]?.split('\n') ?? []) {
    const match = /^ {2}(.+?) +\((\d+)\)(?: = (.*))?$/.exec(line);
    if (!match) break;
    xattrs[plain(match[1]!)] =
      match[3] === undefined ? '-'.repeat(Number(match[2])) : plain(match[3].replace(/^"(.*)"$/, '$1'));
  }
  return {
    inode,
    type: field(/Type: (.*?) +Mode:/),
    mode: parseInt(field(/Mode: +(\d+)/), 8),
    uid: Number(field(/User: +(-?\d+)/)) >>> 0,
    gid: Number(field(/Group: +(-?\d+)/)) >>> 0,
    size: Number(field(/Size: (\d+)/)),
    links: Number(field(/Links: (\d+)/)),
    mtime: [seconds, extra >>> 2],
    target: /^Fast link dest: "(.*)"$/m.exec(output)?.[1],
    device: / special +Mode:/.test(output) ? deviceOf(output) : undefined,
    xattrs,
  };
}

/** debugfs shows bytes that are not ASCII in hexadecimal. */
function plain(shown: string): string {
  return /^([0-9a-f]{2} )*[0-9a-f]{2} ?$/.test(shown)
    ? Buffer.from(shown.replaceAll(' ', ''), 'hex').toString()
    : shown;
}

/** debugfs says nothing of device 0:0. */
function deviceOf(output: string): string {
  const match = /Device major\/minor number: (\d+):(\d+)/.exec(output);
  return match ? `${Number(match[1])}:${Number(match[2])}` : '0:0';
}

function run(command: string, args: readonly string[], input?: string): Promise<{ exitCode: number; stdout: string }> {
  if (input === undefined)
    return new Promise((resolve, reject) => {
      execFile(command, args, { maxBuffer: 1 << 28 }, (error, stdout) => {
        if (error && typeof error.code !== 'number') reject(error);
        else resolve({ exitCode: typeof error?.code === 'number' ? error.code : 0, stdout });
      });
    });
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, { stdio: ['pipe', 'pipe', 'ignore'] });
    const chunks: Buffer[] = [];
    child.on('error', reject);
    child.stdin.on('error', reject);
    child.stdout.on('data', (chunk: Buffer) => chunks.push(chunk));
    child.on('close', (code) => resolve({ exitCode: code ?? -1, stdout: Buffer.concat(chunks).toString() }));
    child.stdin.end(input);
  });
}
