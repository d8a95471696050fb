import { LcowError, isLcowError } from '../../errors/index.js';
import { digestAlgorithm, digestOf, isDigest, type Digest } from '../digest.js';
import { MAX_MANIFEST_BYTES } from '../manifest.js';
import { ACCEPTED_MANIFESTS } from '../media-types.js';
import { familiarName, repositoryName, type ImageReference } from '../reference.js';
import { Authorizer } from './authorizer.js';
import { parseChallenges } from './challenge.js';
import { findCredentials, type Credentials, type FoundCredentials } from './credentials.js';
import { isTransient, safeUrl, statusError, type Subject } from './failures.js';
import { DEFAULT_RETRIES, isTransientStatus, parseRetryAfter, pauseForRetry, type RetryPolicy } from './retry.js';
import {
  RegistryTransport,
  discard,
  header,
  isLoopback,
  readBody,
  type HttpRequest,
  type HttpResponse,
} from './transport.js';

export interface RegistryOptions {
  /** Credentials; those of docker's config.json when not given. */
  readonly credentials?: Credentials | undefined;
  /** Accept a registry without TLS or with an unknown certificate. Always so for this machine, as docker has it. */
  readonly insecure?: boolean | undefined;
  readonly retries?: RetryPolicy | undefined;
}

/** A manifest as a registry serves it. */
export interface ServedManifest {
  readonly digest: Digest;
  readonly mediaType: string | undefined;
  readonly bytes: Buffer;
}

const DOCKER_HUB = 'registry-1.docker.io';
const MAX_REDIRECTS = 10;
/** Without authorization, with a token that may have ended, with a new one. */
const MAX_ROUNDS = 3;
const MAX_ERROR_BYTES = 64 * 1024;
const REDIRECTS = new Set([301, 302, 303, 307, 308]);

/** A client of one repository of one registry (distribution-spec 1.1, pull). Dispose of it to close its connections. */
export class RegistryClient implements AsyncDisposable {
  readonly #reference: ImageReference;
  readonly #transport: RegistryTransport;
  readonly #authorizer: Authorizer;
  readonly #insecure: boolean;
  readonly #problem: string | undefined;
  readonly #retries: RetryPolicy;
  #base: Promise<URL> | undefined;

  private constructor(reference: ImageReference, options: RegistryOptions, insecure: boolean, problem?: string) {
    this.#reference = reference;
    this.#insecure = insecure;
    this.#problem = problem;
    this.#retries = options.retries ?? DEFAULT_RETRIES;
    this.#transport = new RegistryTransport(!insecure);
    this.#authorizer = new Authorizer({
      transport: this.#transport,
      credentials: options.credentials,
      insecure,
      retries: this.#retries,
    });
  }

  /** Finds the credentials; nothing is sent yet. */
  static async open(reference: ImageReference, options: RegistryOptions = {}): Promise<RegistryClient> {
    const found: FoundCredentials = options.credentials ? {} : await findCredentials(reference.domain);
    const insecure = options.insecure === true || isLoopback(reference.domain.replace(/:\d+$/, ''));
    return new RegistryClient(
      reference,
      { ...options, credentials: options.credentials ?? found.credentials },
      insecure,
      found.problem,
    );
  }

  /**
   * The digest a tag stands for, without its manifest, which some registries count.
   * @returns undefined when the registry does not say.
   */
  async resolve(signal?: AbortSignal): Promise<Digest | undefined> {
    const { tag, digest } = this.#reference;
    if (digest) return digest;
    const response = await this.#get(`manifests/${tag!}`, this.#manifestSubject(), { method: 'HEAD' }, signal);
    discard(response);
    const stated = header(response, 'docker-content-digest');
    return response.status === 200 && isDigest(stated) ? stated : undefined;
  }

  /**
   * Fetches a manifest or index by digest, or by the reference's tag.
   * @throws LcowError IMAGE_NOT_FOUND, REGISTRY_DENIED, DIGEST_MISMATCH, REGISTRY_FAILED, REGISTRY_UNREACHABLE.
   */
  async manifest(digest: Digest | undefined, signal?: AbortSignal): Promise<ServedManifest> {
    const subject = this.#manifestSubject(digest);
    for (let attempt = 1; ; attempt++) {
      const response = await this.#get(
        `manifests/${digest ?? this.#reference.tag!}`,
        subject,
        { method: 'GET' },
        signal,
      );
      if (response.status !== 200) throw await this.#failure(response, subject);
      try {
        return served(await readBody(response, MAX_MANIFEST_BYTES, signal), response, digest, subject);
      } catch (error) {
        if (!isTransient(error) || !(await pauseForRetry(this.#retries, attempt, undefined, signal))) throw error;
      }
    }
  }

  /**
   * Asks for a blob from an offset on.
   * @returns The answer with status 200 (from the start, whatever was asked) or 206, its body unread.
   * @throws LcowError IMAGE_NOT_FOUND, REGISTRY_DENIED, REGISTRY_FAILED, REGISTRY_UNREACHABLE.
   */
  async blob(digest: Digest, offset: number, signal?: AbortSignal): Promise<HttpResponse> {
    const subject = {
      repository: repositoryName(this.#reference),
      object: `blob ${digest} of ${familiarName(this.#reference)}`,
    };
    const headers: Record<string, string> = { 'accept-encoding': 'identity' };
    if (offset > 0) headers['range'] = `bytes=${offset}-`;
    const response = await this.#get(`blobs/${digest}`, subject, { method: 'GET', headers }, signal);
    if (response.status === 200 || response.status === 206) return response;
    if (response.status === 416 && offset > 0) {
      discard(response);
      return this.blob(digest, 0, signal);
    }
    throw await this.#failure(response, subject);
  }

  get retries(): RetryPolicy {
    return this.#retries;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#transport[Symbol.asyncDispose]();
  }

  #manifestSubject(digest?: Digest): Subject {
    const { tag, digest: named } = this.#reference;
    const version = digest ?? named;
    const name = familiarName(this.#reference);
    return {
      repository: repositoryName(this.#reference),
      object: `manifest for ${version ? `${name}@${version}` : `${name}:${tag!}`}`,
    };
  }

  async #failure(response: HttpResponse, subject: Subject): Promise<LcowError> {
    const body = await readBody(response, MAX_ERROR_BYTES).catch(() => new Uint8Array());
    const hint = this.#problem && `Anonymous access was tried, because ${this.#problem}.`;
    return statusError(response.status, body, subject, hint);
  }

  /** Sends a request for something of the repository: with authorization, redirects and retries. */
  async #get(path: string, subject: Subject, message: HttpRequest, signal?: AbortSignal): Promise<HttpResponse> {
    const base = await this.#baseUrl(signal);
    const url = new URL(`/v2/${this.#reference.path}/${path}`, base);
    const headers = path.startsWith('manifests/') ? { accept: ACCEPTED_MANIFESTS.join(', ') } : {};
    const request: HttpRequest = { ...message, headers: { ...headers, ...message.headers } };
    for (let attempt = 1; ; attempt++) {
      let retryAfter: number | undefined;
      let failed: unknown;
      try {
        const response = await this.#authorized(url, subject, request, signal);
        // A refused HEAD tells nothing of its reason; the GET that follows does.
        if (!isTransientStatus(response.status) || request.method === 'HEAD') return response;
        retryAfter = parseRetryAfter(header(response, 'retry-after'));
        failed = await this.#failure(response, subject);
      } catch (error) {
        if (!isTransient(error)) throw error;
        failed = error;
      }
      if (!(await pauseForRetry(this.#retries, attempt, retryAfter, signal))) throw failed;
    }
  }

  /** One request with the authorization we have; after a challenge, once more with what it takes. */
  async #authorized(url: URL, subject: Subject, request: HttpRequest, signal?: AbortSignal): Promise<HttpResponse> {
    const scope = `repository:${this.#reference.path}:pull`;
    for (let round = 1; ; round++) {
      const authorization = await this.#authorizer.authorization(scope, subject, signal);
      const response = await this.#redirected(url, request, authorization, signal);
      // Only the registry's own challenge counts, not that of a host it sent us to.
      if (response.status !== 401 || response.url.origin !== url.origin) return response;
      const challenges = parseChallenges(response.headers['www-authenticate']);
      if (round === MAX_ROUNDS || !(await this.#authorizer.accept(challenges, scope, authorization))) return response;
      discard(response);
    }
  }

  /** Follows redirects. The Authorization header stays with the host it was made for. */
  async #redirected(
    start: URL,
    request: HttpRequest,
    authorization: string | undefined,
    signal?: AbortSignal,
  ): Promise<HttpResponse> {
    let url = start;
    for (let count = 0; count <= MAX_REDIRECTS; count++) {
      const credentials = authorization && url.origin === start.origin ? { authorization } : {};
      const response = await this.#transport.send(
        url,
        { ...request, headers: { ...request.headers, ...credentials } },
        signal,
      );
      const location = header(response, 'location');
      if (!REDIRECTS.has(response.status) || location === undefined) return response;
      discard(response);
      url = this.#redirectTarget(url, location);
    }
    throw new LcowError(
      'REGISTRY_FAILED',
      `The registry redirected ${safeUrl(start)} more than ${MAX_REDIRECTS} times.`,
    );
  }

  #redirectTarget(from: URL, location: string): URL {
    let target: URL;
    try {
      target = new URL(location, from);
    } catch (cause) {
      throw new LcowError('REGISTRY_FAILED', `The registry redirected ${safeUrl(from)} to what is no URL.`, { cause });
    }
    const plain = target.protocol === 'http:' && (from.protocol === 'http:' || this.#insecure);
    if (target.protocol !== 'https:' && !plain)
      throw new LcowError(
        'REGISTRY_FAILED',
        `The registry redirected ${safeUrl(from)} to ${target.protocol}//, which is not allowed.`,
      );
    return target;
  }

  /** HTTPS; where that may be missing, what the registry speaks. */
  #baseUrl(signal?: AbortSignal): Promise<URL> {
    const { domain } = this.#reference;
    const host = domain === 'docker.io' ? DOCKER_HUB : domain;
    if (!this.#insecure) return Promise.resolve(new URL(`https://${host}`));
    this.#base ??= this.#probe(host, signal).catch((error: unknown) => {
      this.#base = undefined;
      throw error;
    });
    return this.#base;
  }

  /** TLS first, as docker does, so that no password goes in the clear where TLS is to be had. */
  async #probe(host: string, signal?: AbortSignal): Promise<URL> {
    for (let attempt = 1; ; attempt++) {
      try {
        return await this.#ping(new URL(`https://${host}/v2/`), signal);
      } catch (error) {
        if (!isLcowError(error, 'REGISTRY_UNREACHABLE') || isRefused(error)) throw error;
      }
      try {
        return await this.#ping(new URL(`http://${host}/v2/`), signal);
      } catch (error) {
        if (!isTransient(error) || !(await pauseForRetry(this.#retries, attempt, undefined, signal))) throw error;
      }
    }
  }

  async #ping(url: URL, signal?: AbortSignal): Promise<URL> {
    discard(await this.#transport.send(url, { method: 'GET' }, signal));
    return new URL('/', url);
  }
}

/** Nobody listens or there is no such host: the other scheme would find the same. */
function isRefused(error: LcowError): boolean {
  const code = (error.cause as { code?: unknown } | undefined)?.code;
  return code === 'ECONNREFUSED' || code === 'ENOTFOUND' || code === 'EHOSTUNREACH' || code === 'ENETUNREACH';
}

function served(bytes: Buffer, response: HttpResponse, wanted: Digest | undefined, subject: Subject): ServedManifest {
  const stated = header(response, 'docker-content-digest');
  const expected = wanted ?? (isDigest(stated) ? stated : undefined);
  const digest = digestOf(bytes, expected ? digestAlgorithm(expected) : 'sha256');
  if (expected && digest !== expected)
    throw new LcowError(
      'DIGEST_MISMATCH',
      `The ${subject.object} was served with the digest ${digest} instead of ${expected}.`,
    );
  return { digest, mediaType: header(response, 'content-type')?.split(';')[0]?.trim(), bytes };
}
