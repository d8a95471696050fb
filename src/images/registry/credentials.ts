import { execFile } from 'node:child_process';
import { readFile } from 'node:fs/promises';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { z } from 'zod';
import { LcowError, errorMessage } from '../../errors/index.js';

/** What a registry knows its user by. */
export type Credentials =
  | { readonly username: string; readonly password: string }
  /** An OAuth2 refresh token, traded for access tokens. */
  | { readonly identityToken: string }
  /** A bearer token, used as it is. */
  | { readonly registryToken: string };

/** What was found for a registry, and why there may be more that could not be had. */
export interface FoundCredentials {
  readonly credentials?: Credentials;
  /** A helper program that failed: anonymous access is tried, and an error that follows mentions it. */
  readonly problem?: string;
}

/** The key of docker.io in docker's config.json. */
const DOCKER_HUB_KEY = 'https://index.docker.io/v1/';
/** What helpers answer in place of a user name when the secret is an identity token. */
const TOKEN_USER = '<token>';
const HELPER_TIMEOUT_MS = 30_000;
const MAX_HELPER_OUTPUT_BYTES = 64 * 1024;

const authEntry = z.looseObject({
  auth: z.string().optional(),
  username: z.string().optional(),
  password: z.string().optional(),
  identitytoken: z.string().optional(),
  registrytoken: z.string().optional(),
});
const dockerConfig = z.looseObject({
  auths: z.record(z.string(), authEntry).optional(),
  credHelpers: z.record(z.string(), z.string()).optional(),
  credsStore: z.string().optional(),
});
const helperAnswer = z.looseObject({ Username: z.string(), Secret: z.string() });

/**
 * Looks a registry up in docker's config.json (`$DOCKER_CONFIG`, else `~/.docker`): the helper of the registry, the
 * general helper, then the file itself, as the docker CLI does.
 * @throws LcowError INVALID_ARGUMENT when config.json is not well formed.
 */
export async function findCredentials(domain: string, env: NodeJS.ProcessEnv = process.env): Promise<FoundCredentials> {
  const path = join(env['DOCKER_CONFIG'] || join(env['HOME'] || homedir(), '.docker'), 'config.json');
  const config = await readConfig(path);
  if (!config) return {};
  const key = domain === 'docker.io' ? DOCKER_HUB_KEY : domain;
  const helper = config.credHelpers?.[key] ?? config.credHelpers?.[domain] ?? config.credsStore;
  const fromHelper = helper ? await askHelper(helper, key, env) : {};
  if (fromHelper.credentials) return fromHelper;

  for (const [name, entry] of Object.entries(config.auths ?? {})) {
    if (hostOf(name) !== hostOf(key)) continue;
    const credentials = fromEntry(entry);
    if (credentials) return { credentials };
  }
  return fromHelper;
}

async function readConfig(path: string): Promise<z.infer<typeof dockerConfig> | undefined> {
  let text: string;
  try {
    text = await readFile(path, 'utf8');
  } catch (error) {
    // No file, or one of a user we are not: anonymous access.
    if (['ENOENT', 'ENOTDIR', 'EACCES'].includes((error as NodeJS.ErrnoException).code ?? '')) return undefined;
    throw error;
  }
  try {
    return dockerConfig.parse(JSON.parse(text));
  } catch (cause) {
    throw new LcowError('INVALID_ARGUMENT', `The credentials file ${path} is not well formed.`, { cause });
  }
}

/** Keys may be a host, or a URL with a path as old clients wrote them. */
function hostOf(key: string): string {
  const host = key.replace(/^https?:\/\//, '').split('/')[0]!;
  return host === 'docker.io' || host === 'registry-1.docker.io' ? 'index.docker.io' : host;
}

function fromEntry(entry: z.infer<typeof authEntry>): Credentials | undefined {
  if (entry.registrytoken) return { registryToken: entry.registrytoken };
  if (entry.identitytoken) return { identityToken: entry.identitytoken };
  if (entry.auth) {
    const decoded = Buffer.from(entry.auth, 'base64').toString('utf8');
    const colon = decoded.indexOf(':');
    // docker pads passwords with NULs.
    if (colon > 0) return { username: decoded.slice(0, colon), password: decoded.slice(colon + 1).replace(/\0+$/, '') };
  }
  if (entry.username && entry.password !== undefined) return { username: entry.username, password: entry.password };
  return undefined;
}

/** Runs `docker-credential-<helper> get` with the registry on its input (docker-credential-helpers protocol). */
async function askHelper(helper: string, key: string, env: NodeJS.ProcessEnv): Promise<FoundCredentials> {
  if (!/^[A-Za-z0-9][A-Za-z0-9._-]*$/.test(helper)) return { problem: `"${helper}" is no name of a credential helper` };
  const program = `docker-credential-${helper}`;
  try {
    const answer = helperAnswer.parse(JSON.parse(await runHelper(program, key, env)));
    return {
      credentials:
        answer.Username === TOKEN_USER
          ? { identityToken: answer.Secret }
          : { username: answer.Username, password: answer.Secret },
    };
  } catch (error) {
    const { code, stdout } = error as { code?: unknown; stdout?: unknown };
    if (typeof stdout === 'string' && /credentials not found/i.test(stdout)) return {};
    if (code === 'ENOENT') return { problem: `the credential helper ${program} is not installed` };
    return { problem: `the credential helper ${program} failed: ${errorMessage(error)}` };
  }
}

function runHelper(program: string, input: string, env: NodeJS.ProcessEnv): Promise<string> {
  return new Promise((resolve, reject) => {
    const options = { env, timeout: HELPER_TIMEOUT_MS, maxBuffer: MAX_HELPER_OUTPUT_BYTES };
    const child = execFile(program, ['get'], options, (error, stdout) => {
      // Only the exit tells: stdout has the reason, and never goes into a message, as it may hold the secret.
      if (error) reject(Object.assign(new Error(`exit ${String(error.code)}`), { code: error.code, stdout }));
      else resolve(stdout);
    });
    // A helper that ends without reading its input is judged by its exit.
    child.stdin?.on('error', () => {});
    child.stdin?.end(input);
  });
}
