import { chmod, mkdir, readFile, rm } from 'node:fs/promises';
import { createWriteStream, existsSync } from 'node:fs';
import { dirname, join, resolve, sep } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { openPromise } from 'yauzl';
import { LcowError } from '../../src/errors/index.js';
import { createFolderAtomic } from '../../src/state/index.js';
import { cacheFolder, fetchToFile, type Report } from './download.js';
import { run } from './programs.js';

/** The Go release that is fetched where none is installed: the module golang.org/toolchain, as the go command itself would. */
const PINNED = {
  version: '1.26.8',
  sha256: '30c2b1bf7dcc88d3eb0a1364e47ddd9128edb3110a30e8a0ef61cd5856b31de7',
  sizeBytes: 71_680_185,
};

/** A go command and the release it is. */
export interface GoToolchain {
  readonly program: string;
  /** `1.26.8` */
  readonly version: string;
}

/** The first path of $PATH's `go`, if it runs and is at least of version `minimum`. */
async function installedGo(minimum: string): Promise<GoToolchain | undefined> {
  const output = await run('go', ['env', 'GOVERSION'], { env: goEnvironment() }).catch(() => undefined);
  const version = /^go(\d+(?:\.\d+)*)/.exec(output?.toString('utf8') ?? '')?.[1];
  return version !== undefined && atLeast(version, minimum) ? { program: 'go', version } : undefined;
}

function atLeast(version: string, minimum: string): boolean {
  const a = version.split('.').map(Number);
  const b = minimum.split('.').map(Number);
  for (let i = 0; i < b.length; i++) {
    const difference = (a[i] ?? 0) - (b[i] ?? 0);
    if (difference !== 0) return difference > 0;
  }
  return true;
}

/** The environment for go: the caller's, less what would change the output or fetch another toolchain. */
export function goEnvironment(): NodeJS.ProcessEnv {
  return {
    ...process.env,
    CGO_ENABLED: '0',
    GOOS: 'linux',
    GOARCH: 'amd64',
    GOAMD64: 'v1',
    GOTOOLCHAIN: 'local',
    GOFLAGS: '-mod=readonly',
    GOWORK: 'off',
    GO111MODULE: 'on',
    GOEXPERIMENT: '',
    GOROOT: '',
  };
}

/** The Go version a module asks for. */
export async function requiredGo(goMod: string): Promise<string> {
  const version = /^go\s+(\d+(?:\.\d+)*)/m.exec(await readFile(goMod, 'utf8'))?.[1];
  if (version === undefined) throw new Error(`${goMod} names no Go version.`);
  return version;
}

/** Which Go {@link goToolchain} will use, without fetching it. */
export async function plannedGo(minimum: string): Promise<GoToolchain> {
  const installed = await installedGo(minimum);
  if (installed) return installed;
  if (!atLeast(PINNED.version, minimum))
    throw new Error(`The guest agent needs Go ${minimum}; install it, or raise the version pinned in go-toolchain.ts.`);
  return { program: join(cacheFolder(), `go${PINNED.version}`, 'bin', 'go'), version: PINNED.version };
}

/** A Go toolchain of at least `minimum`: the installed one, else the pinned one from the cache or the Go module proxy. */
export async function goToolchain(minimum: string, report: Report): Promise<GoToolchain> {
  const planned = await plannedGo(minimum);
  if (planned.program !== 'go' && !existsSync(planned.program)) await fetchToolchain(report);
  return planned;
}

/** Proxies to ask, in order (https://go.dev/ref/mod#environment-variables). `direct` and `off` are of no use here. */
export function moduleProxies(env: NodeJS.ProcessEnv = process.env): string[] {
  return (env['GOPROXY'] || 'https://proxy.golang.org')
    .split(/[,|]/)
    .filter((proxy) => /^(https?|file):\/\//.test(proxy))
    .map((proxy) => proxy.replace(/\/+$/, ''));
}

async function fetchToolchain(report: Report): Promise<void> {
  const name = `v0.0.1-go${PINNED.version}.linux-amd64`;
  const archive = join(cacheFolder(), `go-toolchain-${name}.zip`);
  const failures: unknown[] = [];
  for (const proxy of moduleProxies()) {
    try {
      await fetchToFile({ ...PINNED, url: `${proxy}/golang.org/toolchain/@v/${name}.zip` }, archive, report);
      await unpack(archive, `golang.org/toolchain@${name}/`, join(cacheFolder(), `go${PINNED.version}`), report);
      await rm(archive, { force: true });
      return;
    } catch (error) {
      failures.push(error);
    }
  }
  throw new Error(
    `Go ${PINNED.version} is not installed and cannot be fetched: ${failures.map((e) => (e as Error).message).join('; ') || 'GOPROXY names no proxy'}`,
  );
}

/** Unpacks a module archive, all of whose names begin with `prefix`, as the folder `target`, which appears whole or not at all. */
async function unpack(archive: string, prefix: string, target: string, report: Report): Promise<void> {
  report(`unpacking Go ${PINNED.version}`);
  const zip = await openPromise(archive);
  const fill = async (temporary: string): Promise<void> => {
    for await (const entry of zip.eachEntry()) {
      if (!entry.fileName.startsWith(prefix))
        throw new Error(`${archive} holds ${entry.fileName}, outside of ${prefix}.`);
      if (entry.fileName.endsWith('/')) continue;
      const path = resolve(temporary, entry.fileName.slice(prefix.length));
      if (!path.startsWith(temporary + sep))
        throw new Error(`${archive} holds ${entry.fileName}, outside of its folder.`);
      await mkdir(dirname(path), { recursive: true });
      await pipeline(await zip.openReadStreamPromise(entry), createWriteStream(path));
      // Module archives carry no modes; the go command, too, marks these two folders.
      if (/^(bin|pkg\/tool)\//.test(entry.fileName.slice(prefix.length))) await chmod(path, 0o755);
    }
  };
  try {
    await createFolderAtomic(target, fill);
  } catch (error) {
    // Another process may have unpacked it meanwhile.
    if (!(error instanceof LcowError && error.code === 'ALREADY_EXISTS')) throw error;
  } finally {
    zip.close();
  }
}
