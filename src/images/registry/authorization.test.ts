import { chmod, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { FakeRegistry, refuse, sendBlob } from '../../../test/support/fake-registry.js';
import { imageFixture, tarOf, type ImageFixture } from '../../../test/support/image-fixture.js';
import { ImageRoot } from '../../../test/support/image-root.js';
import { isLcowError, type LcowError } from '../../errors/index.js';
import type { Credentials, PullOptions } from '../index.js';
import { parseChallenges } from './challenge.js';
import { findCredentials } from './credentials.js';
import { parseRetryAfter } from './retry.js';

describe('a WWW-Authenticate header', () => {
  const read = (header: string | string[]): unknown =>
    parseChallenges(header).map(({ scheme, parameters }) => [scheme, Object.fromEntries(parameters)]);

  test.each<[string | string[], unknown]>([
    [
      'Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/busybox:pull,push"',
      [
        [
          'bearer',
          {
            realm: 'https://auth.docker.io/token',
            service: 'registry.docker.io',
            scope: 'repository:library/busybox:pull,push',
          },
        ],
      ],
    ],
    ['Basic realm="a \\"quoted\\" name"', [['basic', { realm: 'a "quoted" name' }]]],
    ['Basic realm=plain', [['basic', { realm: 'plain' }]]],
    [
      'Negotiate, Basic realm="x", Bearer realm = "y" , service="z"',
      [
        ['negotiate', {}],
        ['basic', { realm: 'x' }],
        ['bearer', { realm: 'y', service: 'z' }],
      ],
    ],
    [
      ['Bearer realm="y"', 'Basic realm="x"'],
      [
        ['bearer', { realm: 'y' }],
        ['basic', { realm: 'x' }],
      ],
    ],
    ['', []],
    ['"', []],
  ])('%j', (header, challenges) => {
    expect(read(header)).toEqual(challenges);
  });

  test('that is cut off has no parameters', () => {
    expect(parseChallenges('Bearer realm="http')[0]).toEqual({ scheme: 'bearer', parameters: new Map() });
  });

  test('of hostile length costs no time', () => {
    const start = performance.now();
    parseChallenges([`Bearer ${'a="'.repeat(5000)}`, `Bearer ${' '.repeat(16_000)}=`, 'x'.repeat(1e6)]);
    expect(performance.now() - start).toBeLessThan(1000);
  });
});

test.each([
  ['3', 3000],
  ['Wed, 21 Oct 2015 07:28:10 GMT', 10_000],
  ['Wed, 21 Oct 2015 07:27:00 GMT', 0],
  ['soon', undefined],
  [undefined, undefined],
])('Retry-After %s is %s ms', (value, ms) => {
  expect(parseRetryAfter(value, Date.parse('2015-10-21T07:28:00Z'))).toBe(ms);
});

describe('docker’s config.json', () => {
  let folder: string;
  const auth = (text: string): { auth: string } => ({ auth: Buffer.from(text).toString('base64') });

  beforeEach(async () => {
    folder = await mkdtemp(join(tmpdir(), 'lcow-credentials-'));
  });
  afterEach(() => rm(folder, { recursive: true }));

  async function find(domain: string, config: unknown): Promise<unknown> {
    if (config !== undefined) await writeFile(join(folder, 'config.json'), JSON.stringify(config));
    return findCredentials(domain, { DOCKER_CONFIG: folder, PATH: `${folder}:${process.env['PATH']!}` });
  }

  async function helper(name: string, script: string): Promise<void> {
    const path = join(folder, `docker-credential-${name}`);
    await writeFile(path, `#!/bin/sh\n${script}\n`);
    await chmod(path, 0o755);
  }

  test('that is not there gives anonymous access', async () => {
    expect(await find('docker.io', undefined)).toEqual({});
  });

  test.each([
    ['docker.io', 'https://index.docker.io/v1/'],
    ['docker.io', 'index.docker.io'],
    ['docker.io', 'docker.io'],
    ['quay.io', 'quay.io'],
    ['quay.io', 'https://quay.io/v2/'],
    ['localhost:5000', 'localhost:5000'],
  ])('gives %s what it has for %s', async (domain, key) => {
    const found = await find(domain, { auths: { 'other.io': auth('no:no'), [key]: auth('me:pass:word') } });
    expect(found).toEqual({ credentials: { username: 'me', password: 'pass:word' } });
  });

  test('gives one registry’s credentials to no other', async () => {
    for (const domain of ['quay.io.evil.io', 'evil.io', 'io', 'quay.io:5000'])
      expect(await find(domain, { auths: { 'quay.io': auth('a:b') } })).toEqual({});
  });

  test('gives identity tokens', async () => {
    expect(await find('x.io', { auths: { 'x.io': { ...auth('u:'), identitytoken: 'T' } } })).toEqual({
      credentials: { identityToken: 'T' },
    });
  });

  test('asks the helper of the registry, by argument vector and standard input', async () => {
    await helper(
      'mine',
      `[ "$1" = get ] && read -r url; echo "{\\"ServerURL\\":\\"$url\\",\\"Username\\":\\"$url\\",\\"Secret\\":\\"s\\"}"`,
    );
    expect(await find('x.io', { credHelpers: { 'x.io': 'mine' } })).toEqual({
      credentials: { username: 'x.io', password: 's' },
    });
    expect(await find('docker.io', { credsStore: 'mine' })).toEqual({
      credentials: { username: 'https://index.docker.io/v1/', password: 's' },
    });
  });

  test('takes a helper’s token for one', async () => {
    await helper('t', `echo '{"Username":"<token>","Secret":"refresh"}'`);
    expect(await find('x.io', { credsStore: 't' })).toEqual({ credentials: { identityToken: 'refresh' } });
  });

  test('takes a helper that knows nothing for anonymous access', async () => {
    await helper('empty', 'echo "credentials not found in native keychain"; exit 1');
    expect(await find('x.io', { credsStore: 'empty' })).toEqual({});
  });

  test.each([
    ['missing', /not installed/],
    ['../../bin/sh', /no name of a credential helper/],
    ['broken', /failed/],
    ['silent', /failed/],
  ])('remembers that the helper %s could not be asked', async (name, problem) => {
    await helper('broken', 'echo secret; exit 3');
    await helper('silent', 'true');
    const found = (await find('x.io', { credsStore: name })) as { problem: string };
    expect(found.problem).toMatch(problem);
    expect(found.problem).not.toContain('secret');
  });

  test('that is damaged is an error', async () => {
    await writeFile(join(folder, 'config.json'), '{');
    await expect(find('x.io', undefined)).rejects.toThrow(/not well formed/);
  });
});

describe('a registry that asks who is there', () => {
  let registry: FakeRegistry;
  let root: ImageRoot;
  let image: ImageFixture;
  let name: string;
  let folder: string;

  beforeEach(async () => {
    folder = await mkdtemp(join(tmpdir(), 'lcow-docker-config-'));
    process.env['DOCKER_CONFIG'] = folder;
    registry = await FakeRegistry.start();
    root = await ImageRoot.open();
    image = await imageFixture({ layers: [{ tar: await tarOf({ a: 'a' }) }, { tar: await tarOf({ b: 'b' }) }] });
    registry.putImage('team/app', 'latest', image);
    name = `${registry.host}/team/app`;
  });

  afterEach(async () => {
    delete process.env['DOCKER_CONFIG'];
    await registry[Symbol.asyncDispose]();
    await root[Symbol.asyncDispose]();
    await rm(folder, { recursive: true });
  });

  const pull = (credentials?: Credentials): Promise<unknown> => {
    const options: PullOptions = { retries: { attempts: 3, baseDelayMs: 1, maxDelayMs: 100 }, credentials };
    return root.store.pull(name, options);
  };

  async function denied(action: Promise<unknown>): Promise<LcowError> {
    const error: unknown = await action.then(
      () => undefined,
      (reason: unknown) => reason,
    );
    if (isLcowError(error, 'REGISTRY_DENIED')) return error;
    throw error ?? new Error('it was let in');
  }

  /** Wants a token from its own /token, which gives out `tokens` in order. */
  function wantToken(tokens: string[], good = tokens.at(-1)!): void {
    registry.misbehave((request, response) => {
      if (request.path === '/token') {
        response.end(JSON.stringify({ token: tokens.length > 1 ? tokens.shift() : tokens[0], expires_in: 300 }));
        return true;
      }
      if (request.authorization === `Bearer ${good}`) return false;
      refuse(response, 401, 'UNAUTHORIZED', 'authentication required', {
        'www-authenticate': `Bearer realm="http://${registry.host}/token",service="fake",scope="repository:team/app:pull"`,
      });
      return true;
    });
  }

  test('gives a token to anonymous users, once for the whole pull', async () => {
    wantToken(['T']);
    await pull();
    const asked = registry.seen(/token/);
    expect(asked).toHaveLength(1);
    expect(Object.fromEntries(asked[0]!.query)).toEqual({ service: 'fake', scope: 'repository:team/app:pull' });
    expect(asked[0]!.authorization).toBeUndefined();
  });

  test('gets name and password at its token server only', async () => {
    wantToken(['T']);
    await pull({ username: 'me', password: 'secret' });
    expect(registry.seen(/token/)[0]!.authorization).toBe(`Basic ${Buffer.from('me:secret').toString('base64')}`);
    for (const request of registry.seen(/v2/)) expect(request.authorization ?? 'Bearer').toMatch(/^Bearer/);
  });

  test('gets the credentials of docker’s config.json', async () => {
    const auth = Buffer.from('cfg:pw').toString('base64');
    await writeFile(join(folder, 'config.json'), JSON.stringify({ auths: { [registry.host]: { auth } } }));
    wantToken(['T']);
    await pull();
    expect(registry.seen(/token/)[0]!.authorization).toBe(`Basic ${auth}`);
  });

  test('trades an identity token by POST', async () => {
    wantToken(['T']);
    await pull({ identityToken: 'refresh me' });
    const [asked] = registry.seen(/token/);
    expect(asked!.method).toBe('POST');
    expect(Object.fromEntries(new URLSearchParams(asked!.body))).toEqual({
      grant_type: 'refresh_token',
      client_id: 'lcow',
      service: 'fake',
      scope: 'repository:team/app:pull',
      refresh_token: 'refresh me',
    });
  });

  test('gets a registry token as it is', async () => {
    wantToken(['R']);
    await pull({ registryToken: 'R' });
    expect(registry.seen(/token/)).toEqual([]);
  });

  test('that does not take a token any more is given a new one, once', async () => {
    wantToken(['old', 'new']);
    await pull();
    expect(registry.seen(/token/)).toHaveLength(2);
  });

  test('that takes no token refuses, without an endless loop', async () => {
    wantToken(['bad'], 'good');
    const error = await denied(pull());
    expect(error.message).toContain('authentication required');
    expect(error.hint).toContain(`docker login ${registry.host}`);
    expect(registry.requests.length).toBeLessThan(20);
  });

  test('whose token server refuses is a refusal in its words', async () => {
    registry.misbehave((request, response) => {
      if (request.path === '/token') response.writeHead(401).end('{"details":"incorrect username or password"}');
      else
        refuse(response, 401, 'UNAUTHORIZED', 'x', {
          'www-authenticate': `Bearer realm="http://${registry.host}/token"`,
        });
      return true;
    });
    expect((await denied(pull({ username: 'a', password: 'b' }))).message).toContain('incorrect username or password');
  });

  test.each([
    ['no token', '{}'],
    ['a token with a line break', '{"token":"a\\r\\nHost: evil"}'],
    ['no JSON', '<html>'],
  ])('whose token server answers with %s has failed', async (_, body) => {
    registry.misbehave((request, response) => {
      if (request.path === '/token') response.end(body);
      else
        refuse(response, 401, 'UNAUTHORIZED', 'x', {
          'www-authenticate': `Bearer realm="http://${registry.host}/token"`,
        });
      return true;
    });
    await expect(pull()).rejects.toMatchObject({ code: 'REGISTRY_FAILED' });
  });

  test('by Basic gets name and password, after its challenge', async () => {
    const expected = `Basic ${Buffer.from('me:secret').toString('base64')}`;
    registry.misbehave((request, response) => {
      if (request.authorization === expected) return false;
      refuse(response, 401, 'UNAUTHORIZED', 'x', { 'www-authenticate': 'Basic realm="here"' });
      return true;
    });
    await denied(pull());
    await denied(pull({ username: 'me', password: 'wrong' }));
    await pull({ username: 'me', password: 'secret' });
    expect(registry.requests[0]!.authorization).toBeUndefined();
  });

  test('mentions a credential helper that could not be asked', async () => {
    await writeFile(join(folder, 'config.json'), JSON.stringify({ credsStore: 'not-there' }));
    registry.misbehave((_, response) => {
      refuse(response, 401, 'UNAUTHORIZED', 'x');
      return true;
    });
    expect((await denied(pull())).hint).toMatch(/docker-credential-not-there is not installed/);
  });

  describe('and sends blobs from another host', () => {
    let storage: FakeRegistry;
    beforeEach(async () => {
      storage = await FakeRegistry.start();
      wantToken(['T']);
    });
    afterEach(() => storage[Symbol.asyncDispose]());

    test('has its token kept from that host', async () => {
      registry.misbehave((request, response) => {
        if (!request.path.includes('blobs') || request.authorization !== 'Bearer T') return false;
        response.writeHead(307, { location: `http://${storage.host}${request.path}?signature=x` }).end();
        return true;
      });
      storage.misbehave((request, response) => {
        sendBlob(request, response, image.blobs.get(request.path.split('/').at(-1)! as `sha256:${string}`)!);
        return true;
      });
      await pull();
      expect(storage.requests).toHaveLength(3);
      for (const request of storage.requests) expect(request.authorization).toBeUndefined();
    });

    test('keeps its token on its own host', async () => {
      registry.misbehave((request, response) => {
        if (!request.path.includes('blobs') || request.query.has('again') || request.authorization !== 'Bearer T')
          return false;
        response.writeHead(302, { location: `${request.path}?again=1` }).end();
        return true;
      });
      await pull();
    });

    test.each([
      ['in a circle', '?again', /redirected .* more than 10 times/],
      ['to a file', 'file:///etc/passwd', /redirected .* to file:\/\//],
      ['to nonsense', 'http://[', /no URL/],
    ])('%s fails', async (_, location, message) => {
      registry.misbehave((request, response) => {
        if (!request.path.includes('blobs') || request.authorization !== 'Bearer T') return false;
        response.writeHead(307, { location }).end();
        return true;
      });
      await expect(pull()).rejects.toThrow(message);
    });
  });
});
