import { once } from 'node:events';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { sha256, type ImageFixture } from './image-fixture.js';

/** A request as the registry saw it. */
export interface SeenRequest {
  readonly method: string;
  readonly path: string;
  readonly query: URLSearchParams;
  readonly authorization: string | undefined;
  readonly range: string | undefined;
  readonly body: string;
}

/** Answers a request in place of the registry; returns false to leave it to the registry. */
export type Misbehaviour = (request: SeenRequest, response: ServerResponse) => boolean;

interface StoredManifest {
  readonly bytes: Buffer;
  readonly mediaType: string;
}

/** A registry in this process that does what its misbehaviours say, and is correct otherwise. */
export class FakeRegistry implements AsyncDisposable {
  readonly #server: Server;
  readonly #manifests = new Map<string, StoredManifest>();
  readonly #blobs = new Map<string, Buffer>();
  readonly #misbehaviours: Misbehaviour[] = [];
  readonly requests: SeenRequest[] = [];

  private constructor(server: Server) {
    this.#server = server;
  }

  static async start(): Promise<FakeRegistry> {
    const server = createServer();
    const registry = new FakeRegistry(server);
    server.on(
      'request',
      (request: IncomingMessage, response: ServerResponse) => void registry.#serve(request, response),
    );
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    return registry;
  }

  get host(): string {
    return `127.0.0.1:${this.port}`;
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port;
  }

  /** Later ones are asked first. */
  misbehave(misbehaviour: Misbehaviour): void {
    this.#misbehaviours.unshift(misbehaviour);
  }

  behave(): void {
    this.#misbehaviours.length = 0;
  }

  /** Requests for paths that match. */
  seen(path: RegExp): SeenRequest[] {
    return this.requests.filter((request) => path.test(request.path));
  }

  putBlob(bytes: Buffer, digest = sha256(bytes) as string): void {
    this.#blobs.set(digest, bytes);
  }

  putManifest(repository: string, reference: string, bytes: Buffer, mediaType: string): void {
    for (const key of [reference, sha256(bytes)]) this.#manifests.set(`${repository}/${key}`, { bytes, mediaType });
  }

  putImage(repository: string, tag: string, image: ImageFixture): void {
    for (const [digest, bytes] of image.blobs) this.putBlob(bytes, digest);
    this.putManifest(repository, tag, image.manifest, image.manifestType);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#server.closeAllConnections();
    this.#server.close();
    await once(this.#server, 'close');
  }

  async #serve(incoming: IncomingMessage, response: ServerResponse): Promise<void> {
    response.on('error', () => {});
    let body = '';
    for await (const chunk of incoming.setEncoding('utf8') as AsyncIterable<string>) body += chunk;
    const url = new URL(incoming.url!, 'http://fake');
    const request: SeenRequest = {
      method: incoming.method!,
      path: decodeURIComponent(url.pathname),
      query: url.searchParams,
      authorization: incoming.headers.authorization,
      range: incoming.headers.range,
      body,
    };
    this.requests.push(request);
    if (this.#misbehaviours.some((misbehaviour) => misbehaviour(request, response))) return;
    this.#answer(request, response);
  }

  #answer(request: SeenRequest, response: ServerResponse): void {
    const [, repository, kind, reference] = /^\/v2\/(.+)\/(manifests|blobs)\/([^/]+)$/.exec(request.path) ?? [];
    if (request.path === '/v2/') {
      response.end('{}');
      return;
    }
    if (kind === 'manifests') {
      const manifest = this.#manifests.get(`${repository}/${reference}`);
      if (!manifest) {
        refuse(response, 404, 'MANIFEST_UNKNOWN', 'manifest unknown');
        return;
      }
      response.writeHead(200, {
        'content-type': manifest.mediaType,
        'content-length': manifest.bytes.length,
        'docker-content-digest': sha256(manifest.bytes),
      });
      response.end(request.method === 'HEAD' ? undefined : manifest.bytes);
      return;
    }
    const blob = kind === 'blobs' ? this.#blobs.get(reference!) : undefined;
    if (blob) sendBlob(request, response, blob);
    else refuse(response, 404, 'BLOB_UNKNOWN', 'blob unknown to registry');
  }
}

/** Sends a blob, or what the Range header asks for of it. */
export function sendBlob(request: SeenRequest, response: ServerResponse, blob: Buffer): void {
  const start = Number(/^bytes=(\d+)-$/.exec(request.range ?? '')?.[1] ?? 0);
  if (request.range !== undefined) {
    response.writeHead(206, {
      'content-length': blob.length - start,
      'content-range': `bytes ${start}-${blob.length - 1}/${blob.length}`,
    });
  } else response.writeHead(200, { 'content-length': blob.length });
  response.end(blob.subarray(start));
}

/** An error in the registry's form. */
export function refuse(
  response: ServerResponse,
  status: number,
  code: string,
  message: string,
  headers: Record<string, string> = {},
): void {
  response.writeHead(status, { 'content-type': 'application/json', ...headers });
  response.end(JSON.stringify({ errors: [{ code, message, detail: null }] }));
}
