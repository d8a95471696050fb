import { z } from 'zod';
import { LcowError } from '../../errors/index.js';
import type { Challenge } from './challenge.js';
import type { Credentials } from './credentials.js';
import { registryMessage, statusError, type Subject } from './failures.js';
import { isTransientStatus, parseRetryAfter, pauseForRetry, type RetryPolicy } from './retry.js';
import {
  header,
  isLoopback,
  readBody,
  type HttpRequest,
  type HttpResponse,
  type RegistryTransport,
} from './transport.js';

const MAX_TOKEN_BYTES = 1024 * 1024;
/** A token that says nothing is good for a minute (docker registry token specification). */
const DEFAULT_TOKEN_SECONDS = 60;
/** Tokens are renewed before they end, so that none ends on its way. */
const MARGIN_SECONDS = 5;

const tokenSchema = z.looseObject({
  token: z.string().nullish(),
  access_token: z.string().nullish(),
  expires_in: z.number().nullish(),
});

interface Token {
  readonly value: string;
  readonly expiresAt: number;
}

type Scheme =
  { readonly kind: 'basic' } | { readonly kind: 'bearer'; readonly realm: URL; readonly service: string | undefined };

export interface AuthorizerOptions {
  readonly transport: RegistryTransport;
  readonly credentials: Credentials | undefined;
  /** Whether credentials may travel without TLS. */
  readonly insecure: boolean;
  readonly retries: RetryPolicy;
}

/**
 * Answers a registry's challenges (docker registry v2 token authentication; Basic). It learns the scheme from the first
 * refusal, then sends the right header at once; tokens are kept per scope until they end.
 */
export class Authorizer {
  readonly #options: AuthorizerOptions;
  #scheme: Scheme | undefined;
  readonly #tokens = new Map<string, Promise<Token>>();

  constructor(options: AuthorizerOptions) {
    this.#options = options;
  }

  /**
   * The Authorization header for a scope (`repository:library/busybox:pull`); undefined before the first challenge.
   * @throws LcowError REGISTRY_DENIED when the token server refuses; REGISTRY_FAILED; REGISTRY_UNREACHABLE.
   */
  async authorization(scope: string, subject: Subject, signal?: AbortSignal): Promise<string | undefined> {
    const { credentials } = this.#options;
    if (credentials && 'registryToken' in credentials) return `Bearer ${credentials.registryToken}`;
    const scheme = this.#scheme;
    if (!scheme) return undefined;
    if (scheme.kind === 'basic') return basic(credentials);
    return `Bearer ${(await this.#token(scheme, scope, subject, signal)).value}`;
  }

  /**
   * Takes in the challenges of a 401.
   * @param sent The Authorization header that was refused.
   * @returns Whether another attempt can go better; the caller bounds their number.
   */
  async accept(challenges: readonly Challenge[], scope: string, sent: string | undefined): Promise<boolean> {
    const { credentials } = this.#options;
    if (credentials && 'registryToken' in credentials) return false;
    const bearer = challenges.find((challenge) => challenge.scheme === 'bearer');
    const realm = bearer?.parameters.get('realm');
    if (bearer && realm) {
      this.#scheme = { kind: 'bearer', realm: this.#realm(realm), service: bearer.parameters.get('service') };
      await this.#forget(scope, sent);
      return true;
    }
    if (challenges.some((challenge) => challenge.scheme === 'basic')) {
      this.#scheme = { kind: 'basic' };
      return sent === undefined && basic(credentials) !== undefined;
    }
    return false;
  }

  /** Drops the token that was refused, unless another request has renewed it already. */
  async #forget(scope: string, sent: string | undefined): Promise<void> {
    const held = this.#tokens.get(scope);
    const token = await held?.catch(() => undefined);
    if (token && sent === `Bearer ${token.value}` && this.#tokens.get(scope) === held) this.#tokens.delete(scope);
  }

  #realm(text: string): URL {
    let realm: URL;
    try {
      realm = new URL(text);
    } catch (cause) {
      throw new LcowError('REGISTRY_FAILED', 'The registry names a token server that is not a URL.', { cause });
    }
    const plain = realm.protocol === 'http:' && (this.#options.insecure || isLoopback(realm.hostname));
    if (realm.protocol !== 'https:' && !plain)
      throw new LcowError('REGISTRY_FAILED', `The registry's token server ${realm.origin} does not use TLS.`);
    return realm;
  }

  async #token(
    scheme: Scheme & { kind: 'bearer' },
    scope: string,
    subject: Subject,
    signal?: AbortSignal,
  ): Promise<Token> {
    const cached = this.#tokens.get(scope);
    if (cached) {
      const token = await cached;
      if (token.expiresAt > Date.now()) return token;
    }
    // Layers are fetched in parallel: those that come meanwhile share this request.
    const current = this.#tokens.get(scope);
    if (current && current !== cached) return current;
    const fresh = this.#fetchToken(scheme, scope, subject, signal);
    this.#tokens.set(scope, fresh);
    fresh.catch(() => {
      if (this.#tokens.get(scope) === fresh) this.#tokens.delete(scope);
    });
    return fresh;
  }

  async #fetchToken(
    scheme: Scheme & { kind: 'bearer' },
    scope: string,
    subject: Subject,
    signal?: AbortSignal,
  ): Promise<Token> {
    const { url, message } = this.#tokenRequest(scheme, scope);
    const response = await this.#sendPatiently(url, message, signal);
    const body = await readBody(response, MAX_TOKEN_BYTES, signal);
    if (response.status !== 200) {
      if (response.status === 401 || response.status === 403) throw statusError(response.status, body, subject);
      const { message: said } = registryMessage(body);
      throw new LcowError(
        'REGISTRY_FAILED',
        `The token server ${url.origin} answered with status ${response.status}${said ? `: ${said}` : ''}.`,
      );
    }
    return parseToken(body, url);
  }

  /** GET with Basic for passwords and for nobody; POST with the refresh token for identity tokens (OAuth2). */
  #tokenRequest(scheme: Scheme & { kind: 'bearer' }, scope: string): { url: URL; message: HttpRequest } {
    const { credentials } = this.#options;
    const url = new URL(scheme.realm);
    if (credentials && 'identityToken' in credentials) {
      const form = new URLSearchParams({
        grant_type: 'refresh_token',
        client_id: 'lcow',
        scope,
        refresh_token: credentials.identityToken,
        ...(scheme.service !== undefined && { service: scheme.service }),
      });
      const headers = { 'content-type': 'application/x-www-form-urlencoded' };
      return { url, message: { method: 'POST', headers, body: form.toString() } };
    }
    if (scheme.service !== undefined) url.searchParams.set('service', scheme.service);
    url.searchParams.set('scope', scope);
    const authorization = basic(credentials);
    return { url, message: { method: 'GET', headers: authorization ? { authorization } : {} } };
  }

  async #sendPatiently(url: URL, message: HttpRequest, signal?: AbortSignal): Promise<HttpResponse> {
    const { transport, retries } = this.#options;
    for (let attempt = 1; ; attempt++) {
      const response = await transport.send(url, message, signal);
      if (!isTransientStatus(response.status)) return response;
      const after = parseRetryAfter(header(response, 'retry-after'));
      if (attempt >= retries.attempts || (after ?? 0) > retries.maxDelayMs) return response;
      await response.body.dump();
      await pauseForRetry(retries, attempt, after, signal);
    }
  }
}

function basic(credentials: Credentials | undefined): string | undefined {
  if (!credentials || !('username' in credentials)) return undefined;
  return `Basic ${Buffer.from(`${credentials.username}:${credentials.password}`).toString('base64')}`;
}

function parseToken(body: Uint8Array, url: URL): Token {
  const parsed = tokenSchema.safeParse(safeJson(body));
  const value = parsed.success ? parsed.data.token || parsed.data.access_token : undefined;
  // What goes into a header must be one: no line breaks, no blanks.
  if (!parsed.success || !value || !/^[\x21-\x7e]+$/.test(value))
    throw new LcowError('REGISTRY_FAILED', `The token server ${url.origin} answered without a token.`);
  const seconds = Math.max(parsed.data.expires_in ?? DEFAULT_TOKEN_SECONDS, 2 * MARGIN_SECONDS);
  return { value, expiresAt: Date.now() + (seconds - MARGIN_SECONDS) * 1000 };
}

function safeJson(body: Uint8Array): unknown {
  try {
    return JSON.parse(Buffer.from(body).toString('utf8'));
  } catch {
    return undefined;
  }
}
