import { Agent, EnvHttpProxyAgent, request, type Dispatcher } from 'undici';
import { LcowError } from '../../errors/index.js';
import { throwIfAborted, timeoutMs } from '../../lifetime/index.js';
import { unreachable } from './failures.js';

/** One HTTP exchange. */
export interface HttpRequest {
  readonly method: 'GET' | 'HEAD' | 'POST';
  readonly headers?: Readonly<Record<string, string>>;
  readonly body?: string;
}

/** The head of an answer, with its body still to be read or discarded. */
export interface HttpResponse {
  readonly url: URL;
  readonly status: number;
  readonly headers: Readonly<Record<string, string | string[] | undefined>>;
  readonly body: Dispatcher.ResponseData['body'];
}

/** The first value of a header. */
export function header(response: HttpResponse, name: string): string | undefined {
  const value = response.headers[name];
  return Array.isArray(value) ? value[0] : value;
}

/** Whether a host is this machine, by its name. */
export function isLoopback(hostname: string): boolean {
  const name = hostname.toLowerCase();
  return name === 'localhost' || name.endsWith('.localhost') || name === '[::1]' || /^127(?:\.\d{1,3}){3}$/.test(name);
}

/**
 * Sends requests, one connection pool for a pull. Proxies come from HTTP_PROXY, HTTPS_PROXY and NO_PROXY; this machine
 * is never reached by a proxy. Redirects and statuses are the caller's business.
 */
export class RegistryTransport implements AsyncDisposable {
  readonly #options: Agent.Options & { connect: { timeout: number; rejectUnauthorized: boolean } };
  #direct: Dispatcher | undefined;
  #proxied: Dispatcher | undefined;

  /** @param verify Whether servers have to prove who they are by a certificate. */
  constructor(verify: boolean) {
    const idle = timeoutMs('registryIdle');
    const connect = { timeout: timeoutMs('registryConnect'), rejectUnauthorized: verify };
    this.#options = { connect, headersTimeout: idle, bodyTimeout: idle };
  }

  /** @throws LcowError REGISTRY_UNREACHABLE with the transport's reason as cause; CANCELLED. */
  async send(url: URL, message: HttpRequest, signal?: AbortSignal): Promise<HttpResponse> {
    throwIfAborted(signal);
    const dispatcher = isLoopback(url.hostname) ? this.#directly() : this.#throughProxy();
    try {
      const { statusCode, headers, body } = await request(url, {
        dispatcher,
        method: message.method,
        headers: { 'user-agent': 'lcow', ...message.headers },
        ...(message.body !== undefined && { body: message.body }),
        ...(signal && { signal }),
      });
      return { url, status: statusCode, headers, body };
    } catch (cause) {
      throwIfAborted(signal);
      throw unreachable(url, cause);
    }
  }

  #directly(): Dispatcher {
    return (this.#direct ??= new Agent(this.#options));
  }

  #throughProxy(): Dispatcher {
    try {
      return (this.#proxied ??= new EnvHttpProxyAgent({ ...this.#options, requestTls: this.#options.connect }));
    } catch (cause) {
      throw new LcowError('INVALID_ARGUMENT', 'HTTP_PROXY or HTTPS_PROXY is not the URL of a proxy.', { cause });
    }
  }

  /** Breaks what is still under way. */
  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all([this.#direct?.destroy(), this.#proxied?.destroy()]);
  }
}

/** Reads a whole small body. @throws LcowError REGISTRY_FAILED when it is larger than `maxBytes`. */
export async function readBody(response: HttpResponse, maxBytes: number, signal?: AbortSignal): Promise<Buffer> {
  const chunks: Buffer[] = [];
  let size = 0;
  try {
    for await (const chunk of response.body as AsyncIterable<Buffer>) {
      size += chunk.byteLength;
      if (size > maxBytes)
        throw new LcowError('REGISTRY_FAILED', `The answer of ${response.url.href} is larger than ${maxBytes} bytes.`);
      chunks.push(chunk);
    }
  } catch (cause) {
    throwIfAborted(signal);
    if (cause instanceof LcowError) throw cause;
    throw unreachable(response.url, cause);
  }
  return Buffer.concat(chunks);
}

/** Lets go of a body nobody wants, so that its connection can be used again or is closed. */
export function discard(response: HttpResponse): void {
  response.body.on('error', () => {});
  // Reads at most this much to keep the connection; a larger body costs the connection.
  void response.body.dump({ limit: 64 * 1024 }).catch(() => {});
}
