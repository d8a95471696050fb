import { createHash } from 'node:crypto';
import { createReadStream, existsSync } from 'node:fs';
import { mkdir, mkdtemp, rm, stat } from 'node:fs/promises';
import { homedir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { createAtomic, sweepTemporary } from '../../src/state/index.js';

/** Where a step tells what it does: one line, no newline. */
export type Report = (line: string) => void;

/** A file to be had from a server, known by its content. */
export interface RemoteFile {
  readonly url: string;
  /** Lower-case hex. */
  readonly sha256: string;
  /** Bytes; checked before the digest when known. */
  readonly sizeBytes?: number;
}

/** The server answered, but does not have the file. Everything else that goes wrong with a server is a plain Error. */
export class NotOnServer extends Error {
  constructor(readonly url: string) {
    super(`${url} does not exist on the server.`);
    this.name = 'NotOnServer';
  }
}

/** What this builder keeps between runs: `$XDG_CACHE_HOME/lcow`, else `~/.cache/lcow`. */
export function cacheFolder(env: NodeJS.ProcessEnv = process.env): string {
  return join(env['XDG_CACHE_HOME'] || join(homedir(), '.cache'), 'lcow');
}

const workFolders = (): string => join(cacheFolder(), 'work');

/** Gives `use` an empty folder to build something in, and removes it afterwards. One build at a time has such folders. */
export async function inWorkFolder<T>(name: string, use: (folder: string) => Promise<T>): Promise<T> {
  await mkdir(workFolders(), { recursive: true });
  const folder = await mkdtemp(join(workFolders(), `${name}-`));
  try {
    return await use(folder);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

/** Removes what builds that were killed left: their work folders, and partial files in the cache and in `out`. */
export async function sweepKilledBuilds(out: string): Promise<void> {
  await rm(workFolders(), { recursive: true, force: true });
  const cache = cacheFolder();
  for (const folder of [cache, join(cache, 'deb'), join(cache, 'deb', 'index'), join(cache, 'crun'), out])
    if (existsSync(folder)) await sweepTemporary(folder);
}

/** SHA-256 of a file, lower-case hex. */
export async function sha256OfFile(path: string): Promise<string> {
  const hash = createHash('sha256');
  for await (const chunk of createReadStream(path) as AsyncIterable<Buffer>) hash.update(chunk);
  return hash.digest('hex');
}

/** Whether `path` is a file with this content. A damaged file in the cache counts as absent. */
export async function isCached(path: string, file: Pick<RemoteFile, 'sha256' | 'sizeBytes'>): Promise<boolean> {
  const found = await stat(path).catch(() => undefined);
  if (!found?.isFile()) return false;
  if (file.sizeBytes !== undefined && found.size !== file.sizeBytes) return false;
  return (await sha256OfFile(path)) === file.sha256;
}

const ATTEMPTS = 3;
const HEADERS_TIMEOUT_MS = 30_000;
const IDLE_TIMEOUT_MS = 30_000;

/**
 * The body of a URL (http, https or file), at most `limitBytes`.
 * @throws NotOnServer for 404 and 410; Error naming the URL otherwise, after three attempts.
 */
export async function fetchBytes(url: string, limitBytes = 64 * 1024 * 1024): Promise<Buffer> {
  const chunks: Buffer[] = [];
  await withAttempts(url, async () => {
    chunks.length = 0;
    await eachChunk(url, limitBytes, async (chunk) => void chunks.push(chunk));
  });
  return Buffer.concat(chunks);
}

/**
 * Makes `path` hold the remote file: from the cache when the content is already there, else downloaded whole under a
 * temporary name, checked and renamed.
 * @throws NotOnServer; Error when the server cannot be reached or delivers something else.
 */
export async function fetchToFile(file: RemoteFile, path: string, report: Report): Promise<void> {
  if (await isCached(path, file)) return;
  await mkdir(dirname(path), { recursive: true });
  const size = file.sizeBytes === undefined ? '' : ` (${(file.sizeBytes / 1e6).toFixed(1)} MB)`;
  report(`downloading ${file.url}${size}`);
  await withAttempts(file.url, async () => {
    await createAtomic(
      path,
      async (handle) => {
        const hash = createHash('sha256');
        await eachChunk(file.url, file.sizeBytes ?? Number.MAX_SAFE_INTEGER, async (chunk) => {
          hash.update(chunk);
          await handle.write(chunk);
        });
        if (hash.digest('hex') !== file.sha256) throw mismatch(file.url);
      },
      0o644,
    );
  });
}

function mismatch(url: string): Error {
  return new Error(`${url} does not have the expected sha256.`);
}

async function withAttempts(url: string, attempt: () => Promise<void>): Promise<void> {
  let last: unknown;
  for (let count = 0; count < ATTEMPTS; count++) {
    try {
      await attempt();
      return;
    } catch (error) {
      if (error instanceof NotOnServer) throw error;
      last = error;
    }
  }
  const reason =
    last instanceof Error ? (last.cause instanceof Error ? last.cause.message : last.message) : String(last);
  throw new Error(`${url} cannot be fetched: ${reason.replace(/\.$/, '')}.`, { cause: last });
}

async function eachChunk(url: string, limitBytes: number, take: (chunk: Buffer) => Promise<void>): Promise<void> {
  let received = 0;
  for await (const chunk of bodyOf(url)) {
    received += chunk.length;
    if (received > limitBytes) throw new Error(`${url} is longer than ${limitBytes} bytes.`);
    await take(chunk);
  }
}

async function* bodyOf(url: string): AsyncGenerator<Buffer> {
  if (url.startsWith('file:')) {
    try {
      yield* createReadStream(fileURLToPath(url)) as AsyncIterable<Buffer>;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') throw new NotOnServer(url);
      throw error;
    }
    return;
  }
  const idle = new AbortController();
  let timer = setTimeout(() => idle.abort(new Error('no answer')), HEADERS_TIMEOUT_MS);
  try {
    const response = await fetch(url, { signal: idle.signal });
    if (response.status === 404 || response.status === 410) throw new NotOnServer(url);
    if (!response.ok || !response.body) throw new Error(`HTTP status ${response.status}`);
    for await (const chunk of response.body as unknown as AsyncIterable<Uint8Array>) {
      clearTimeout(timer);
      timer = setTimeout(() => idle.abort(new Error('the transfer stalled')), IDLE_TIMEOUT_MS);
      yield Buffer.from(chunk.buffer, chunk.byteOffset, chunk.byteLength);
    }
  } finally {
    clearTimeout(timer);
    idle.abort();
  }
}
