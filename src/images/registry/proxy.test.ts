import { once } from 'node:events';
import { createServer, type IncomingMessage, type Server } from 'node:http';
import { connect, type AddressInfo, type Socket } from 'node:net';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { FakeRegistry } from '../../../test/support/fake-registry.js';
import { imageFixture, tarOf, type ImageFixture } from '../../../test/support/image-fixture.js';
import { ImageRoot } from '../../../test/support/image-root.js';

const VARIABLES = ['HTTP_PROXY', 'HTTPS_PROXY', 'NO_PROXY', 'http_proxy', 'https_proxy', 'no_proxy'];
let saved: Record<string, string | undefined>;
let proxy: Server;
let asked: string[];
let registry: FakeRegistry;
let root: ImageRoot;
let image: ImageFixture;

beforeEach(async () => {
  saved = Object.fromEntries(VARIABLES.map((name) => [name, process.env[name]]));
  for (const name of VARIABLES) Reflect.deleteProperty(process.env, name);
  registry = await FakeRegistry.start();
  root = await ImageRoot.open();
  image = await imageFixture({ layers: [{ tar: await tarOf({ a: 'a' }) }] });
  registry.putImage('app', 'latest', image);
  // Every tunnel leads to the registry, whatever its name is.
  asked = [];
  proxy = createServer();
  proxy.on('connect', (request: IncomingMessage, client: Socket) => {
    asked.push(request.url!);
    const upstream = connect(registry.port, '127.0.0.1', () => {
      client.write('HTTP/1.1 200 Connection Established\r\n\r\n');
      upstream.pipe(client).pipe(upstream);
    });
    for (const socket of [client, upstream]) socket.on('error', () => {});
  });
  proxy.listen(0, '127.0.0.1');
  await once(proxy, 'listening');
});

afterEach(async () => {
  for (const [name, value] of Object.entries(saved))
    if (value === undefined) Reflect.deleteProperty(process.env, name);
    else process.env[name] = value;
  proxy.closeAllConnections();
  proxy.close();
  await registry[Symbol.asyncDispose]();
  await root[Symbol.asyncDispose]();
});

const proxyUrl = (): string => `http://127.0.0.1:${(proxy.address() as AddressInfo).port}`;

test('a registry elsewhere is reached through the proxy of the environment', async () => {
  process.env['HTTP_PROXY'] = proxyUrl();
  process.env['HTTPS_PROXY'] = proxyUrl();
  expect((await root.store.pull('registry.test/app', { insecure: true })).id).toBe(image.id);
  // TLS was tried first; an insecure registry may do without.
  expect(new Set(asked)).toEqual(new Set(['registry.test:443', 'registry.test:80']));
});

test('a registry on this machine is reached without the proxy', async () => {
  process.env['HTTP_PROXY'] = proxyUrl();
  expect((await root.store.pull(`${registry.host}/app`)).id).toBe(image.id);
  expect(asked).toEqual([]);
});

test('a registry that has no TLS is not spoken to unless it is said to be insecure', async () => {
  process.env['HTTPS_PROXY'] = proxyUrl();
  await expect(root.store.pull('registry.test/app')).rejects.toMatchObject({ code: 'REGISTRY_UNREACHABLE' });
  expect(registry.requests).toEqual([]);
});

test('a proxy that is no URL is named', async () => {
  process.env['HTTPS_PROXY'] = 'http://[';
  await expect(root.store.pull('registry.test/app')).rejects.toMatchObject({
    code: 'INVALID_ARGUMENT',
    message: 'HTTP_PROXY or HTTPS_PROXY is not the URL of a proxy.',
  });
});
