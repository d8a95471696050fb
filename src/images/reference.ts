import { LcowError } from '../errors/index.js';
import { isDigest, type Digest } from './digest.js';

/**
 * A normalised image reference: where an image comes from and which one it is. Made by {@link parseReference}.
 * At least one of `tag` and `digest` is set.
 */
export interface ImageReference {
  /** Registry host with optional port: `docker.io`, `localhost:5000`, `[::1]:5000`. */
  readonly domain: string;
  /** Repository within the registry: `library/busybox`. */
  readonly path: string;
  readonly tag?: string;
  readonly digest?: Digest;
}

/** Longest repository path (distribution's RepositoryNameTotalLengthMax). */
export const MAX_REPOSITORY_LENGTH = 255;
/** Longest tag (distribution-spec 1.1, "Pulling manifests"). */
export const MAX_TAG_LENGTH = 128;

const DEFAULT_DOMAIN = 'docker.io';
const LEGACY_DEFAULT_DOMAIN = 'index.docker.io';
const OFFICIAL_PREFIX = 'library/';
const DEFAULT_TAG = 'latest';

// The grammar of github.com/distribution/reference, each part anchored.
const PATH_COMPONENT = /^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*$/;
const DOMAIN =
  /^(?:\[[0-9a-fA-F:]+\]|(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])(?:\.(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9]))*)(?::[0-9]+)?$/;
const TAG = /^\w[\w.-]*$/;
const IDENTIFIER = /^[0-9a-f]{64}$/;
// Far above any valid reference (domain, path, tag and a sha512 digest): bounds the work on hostile text.
const MAX_TEXT_LENGTH = 1024;

function invalid(reason?: string): LcowError {
  return new LcowError('BAD_REFERENCE', reason ? `invalid reference format: ${reason}` : 'invalid reference format');
}

/**
 * Parses a reference as docker does: `busybox` is `docker.io/library/busybox:latest`; the first path segment is a
 * registry only when it has a dot, a colon or an upper-case letter, or is `localhost`.
 * @throws LcowError BAD_REFERENCE, worded as docker words it.
 */
export function parseReference(text: string): ImageReference {
  if (text.length === 0 || text.length > MAX_TEXT_LENGTH) throw invalid();
  if (IDENTIFIER.test(text))
    throw invalid(`invalid repository name (${text}), cannot specify 64-byte hexadecimal strings`);

  const { name, tag, digest } = cut(text);
  const { domain, path } = splitDomain(name);
  if (path.toLowerCase() !== path) throw invalid(`repository name (${path}) must be lowercase`);
  if (!DOMAIN.test(domain) || !path.split('/').every((component) => PATH_COMPONENT.test(component))) throw invalid();
  if (path.length > MAX_REPOSITORY_LENGTH)
    throw invalid(`repository name must not be more than ${MAX_REPOSITORY_LENGTH} characters`);
  if (tag !== undefined && (!TAG.test(tag) || tag.length > MAX_TAG_LENGTH)) throw invalid();
  if (digest !== undefined && !isDigest(digest)) throw invalid(digestComplaint(digest));

  if (digest === undefined) return { domain, path, tag: tag ?? DEFAULT_TAG };
  return tag === undefined ? { domain, path, digest } : { domain, path, tag, digest };
}

/** Cuts `name[:tag][@digest]`. A colon before the last slash belongs to the registry's port. */
function cut(text: string): { name: string; tag?: string; digest?: string } {
  const at = text.indexOf('@');
  const digest = at === -1 ? undefined : text.slice(at + 1);
  const named = at === -1 ? text : text.slice(0, at);
  const colon = named.lastIndexOf(':');
  const tagged = colon > named.lastIndexOf('/');
  return {
    name: tagged ? named.slice(0, colon) : named,
    ...(tagged && { tag: named.slice(colon + 1) }),
    ...(digest !== undefined && { digest }),
  };
}

function splitDomain(name: string): { domain: string; path: string } {
  const slash = name.indexOf('/');
  const first = name.slice(0, Math.max(slash, 0));
  const isDomain = slash !== -1 && (/[.:]/.test(first) || first === 'localhost' || first.toLowerCase() !== first);
  let domain = isDomain ? first : DEFAULT_DOMAIN;
  let path = isDomain ? name.slice(slash + 1) : name;
  if (domain === LEGACY_DEFAULT_DOMAIN) domain = DEFAULT_DOMAIN;
  if (domain === DEFAULT_DOMAIN && !path.includes('/')) path = OFFICIAL_PREFIX + path;
  return { domain, path };
}

function digestComplaint(digest: string): string | undefined {
  const algorithm = digest.slice(0, Math.max(digest.indexOf(':'), 0));
  if (algorithm === 'sha256' || algorithm === 'sha512') return 'invalid checksum digest length';
  return /^[A-Za-z][A-Za-z0-9+._-]*$/.test(algorithm) ? 'unsupported digest algorithm' : undefined;
}

/** `docker.io/library/busybox`: the repository without tag and digest. */
export function repositoryName(reference: ImageReference): string {
  return `${reference.domain}/${reference.path}`;
}

/** The full text: `docker.io/library/busybox:latest`, `host/path@sha256:...`. {@link parseReference} takes it back. */
export function formatReference(reference: ImageReference): string {
  return repositoryName(reference) + suffix(reference);
}

/** The repository as docker shows it: `busybox`, `localhost:5000/x`. */
export function familiarName(reference: ImageReference): string {
  if (reference.domain !== DEFAULT_DOMAIN) return repositoryName(reference);
  const { path } = reference;
  const short = path.startsWith(OFFICIAL_PREFIX) ? path.slice(OFFICIAL_PREFIX.length) : path;
  // Shortened names must lead back to the same image: library/localhost/x cannot lose its prefix.
  return short.includes('/') && short !== path ? path : short;
}

/** The whole reference as docker shows it: `busybox:latest`. */
export function familiarReference(reference: ImageReference): string {
  return familiarName(reference) + suffix(reference);
}

function suffix({ tag, digest }: ImageReference): string {
  return (tag === undefined ? '' : `:${tag}`) + (digest === undefined ? '' : `@${digest}`);
}
