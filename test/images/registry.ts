import { spawn } from 'node:child_process';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { run } from '../../guest/image/programs.js';

export interface RegistryOptions {
  /** Ask for this user (HTTP Basic). */
  readonly htpasswd?: { readonly user: string; readonly password: string };
  /** Where the registry keeps its content; a temporary folder, removed at the end, when absent. */
  readonly folder?: string;
}

/** A running registry of the distribution-spec on loopback, plain HTTP. */
export interface Registry extends AsyncDisposable {
  /** `127.0.0.1:PORT` */
  readonly host: string;
  /** Copies the one image of an OCI layout, with all its platforms and digests as they are, to `name` (`repository[:tag]`). */
  push(layoutFolder: string, name: string): Promise<void>;
  stop(): Promise<void>;
}

const START_LIMIT_MS = 30_000;

/**
 * Starts Debian's docker-registry on a free port of loopback. It ends with `stop()`, and with this process however that ends.
 * @throws Error with what the registry said when it does not come up
 */
export async function startRegistry(options: RegistryOptions = {}): Promise<Registry> {
  const folder = await mkdtemp(join(tmpdir(), 'lcow-registry-'));
  try {
    const config = join(folder, 'config.json');
    const auth = options.htpasswd && { htpasswd: { realm: 'lcow', path: join(folder, 'htpasswd') } };
    if (options.htpasswd) await writeFile(auth!.htpasswd.path, await htpasswdLine(options.htpasswd));
    // The configuration is YAML, of which JSON is a part.
    const settings = {
      version: '0.1',
      log: { level: 'info', accesslog: { disabled: true } },
      storage: { filesystem: { rootdirectory: options.folder ?? join(folder, 'data') }, delete: { enabled: true } },
      http: { addr: '127.0.0.1:0', secret: 'lcow' },
      ...(auth ? { auth } : {}),
    };
    await writeFile(config, JSON.stringify(settings));
    const { host, end } = await serve(config);
    const credentials = options.htpasswd ? [`--dest-creds=${options.htpasswd.user}:${options.htpasswd.password}`] : [];
    const stop = async (): Promise<void> => {
      await end();
      await rm(folder, { recursive: true, force: true });
    };
    return {
      host,
      push: async (layoutFolder, name) => {
        const copy = ['--insecure-policy', 'copy', '--quiet', '--all', '--preserve-digests', '--dest-tls-verify=false'];
        await run('skopeo', [...copy, ...credentials, `oci:${layoutFolder}`, `docker://${host}/${name}`]);
      },
      stop,
      [Symbol.asyncDispose]: stop,
    };
  } catch (error) {
    await rm(folder, { recursive: true, force: true });
    throw error;
  }
}

async function serve(config: string): Promise<{ host: string; end: () => Promise<void> }> {
  // setpriv lets the registry end with this process, even when that is killed.
  const child = spawn('setpriv', ['--pdeathsig=KILL', 'docker-registry', 'serve', config], {
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let log = '';
  const ended = new Promise<void>((resolve) => {
    child.once('close', () => resolve());
    child.once('error', () => resolve());
  });
  const end = async (): Promise<void> => {
    child.kill('SIGKILL');
    await ended;
  };
  const listening = new Promise<string>((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error(`docker-registry did not come up: ${log}`)), START_LIMIT_MS);
    const read = (text: string): void => {
      log = (log + text).slice(-16_384);
      const host = /listening on (127\.0\.0\.1:\d+)/.exec(log)?.[1];
      if (host === undefined) return;
      clearTimeout(timer);
      resolve(host);
    };
    child.stdout.setEncoding('utf8').on('data', read);
    child.stderr.setEncoding('utf8').on('data', read);
    child.once('error', (cause) =>
      reject(new Error('setpriv (Debian package util-linux) cannot be started.', { cause })),
    );
    void ended.then(() => {
      clearTimeout(timer);
      reject(new Error(`docker-registry (Debian package docker-registry) ended: ${log}`));
    });
  });
  try {
    return { host: await listening, end };
  } catch (error) {
    await end();
    throw error;
  }
}

/** A line of an htpasswd file. The registry accepts bcrypt only, which Node has not; Perl, on every Debian, takes it from libcrypt. */
async function htpasswdLine({ user, password }: { user: string; password: string }): Promise<string> {
  const hash = await run('perl', ['-e', 'print crypt($ARGV[0], q($2b$05$abcdefghijklmnopqrstuu))', '--', password]);
  return `${user}:${hash.toString('latin1')}\n`;
}
