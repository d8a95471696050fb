// The wire format, judged by containerd's own library: test/go-ttrpc is run as the server of our client and as the client
// of our server.
import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { connect, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { StringValueSchema } from '@bufbuild/protobuf/wkt';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { goEnvironment, goToolchain, requiredGo } from '../../guest/image/go-toolchain.js';
import {
  errorDetail,
  packDetail,
  serviceClient,
  StatusCode,
  TransportError,
  TtrpcClient,
  TtrpcError,
  TtrpcServer,
} from '../../src/ttrpc/index.js';
import { Echo } from '../go-ttrpc/echo_pb.js';

const run = promisify(execFile);
const source = join(import.meta.dirname, '..', 'go-ttrpc');
let folder: string;
let program: string | undefined;
let whyNot = '';

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'lcow-interop-'));
  let go: string;
  try {
    go = (await goToolchain(await requiredGo(join(source, 'go.mod')), () => {})).program;
  } catch (error) {
    whyNot = `no Go to build containerd's ttrpc with: ${String(error)}`;
    return;
  }
  program = join(folder, 'go-ttrpc');
  await run(go, ['build', '-o', program, '.'], { cwd: source, env: goEnvironment() });
});
afterAll(async () => rm(folder, { recursive: true }));

test("our client understands containerd's server", async (context) => {
  if (!program) return context.skip(whyNot);
  const socket = join(folder, 'go.sock');
  const server = spawn(program, ['serve', socket], { stdio: ['pipe', 'pipe', 'ignore'] });
  try {
    await once(server.stdout, 'data');
    const connection = connect(socket);
    const client = new TtrpcClient(connection);
    const echo = serviceClient(Echo, client);
    for (const size of [0, 1, 3 << 20]) {
      const value = Buffer.alloc(size, 'x');
      expect(Buffer.from((await echo.say({ value })).value).equals(value)).toBe(true);
    }
    const many = Array.from({ length: 500 }, (_, i) => echo.say({ value: Buffer.from(String(i)) }));
    for (const [i, { value }] of (await Promise.all(many)).entries())
      expect(Buffer.from(value).toString()).toBe(String(i));
    const failure = (await echo.fail({ value: StatusCode.NOT_FOUND }).catch((e: unknown) => e)) as TtrpcError;
    expect(failure).toMatchObject({ name: 'TtrpcError', code: StatusCode.NOT_FOUND, message: 'as asked' });
    expect(errorDetail(failure, StringValueSchema)?.value).toBe('the detail');
    const unknown = client.call(Echo.typeName, 'Nothing', StringValueSchema, StringValueSchema, {});
    await expect(unknown).rejects.toMatchObject({ code: StatusCode.UNIMPLEMENTED, message: 'method Nothing' });
    expect((await echo.metadata({ value: 'k' }, { metadata: { k: 'v' } })).value).toBe('v');
    await expect(echo.hang({}, { timeoutMs: 50 })).rejects.toMatchObject({ code: StatusCode.DEADLINE_EXCEEDED });
    // The Go server answers the call above as well, when its own deadline comes: that response is dropped.
    await expect(echo.zeros({ value: 5 << 20 })).rejects.toBeInstanceOf(TransportError);
  } finally {
    server.stdin.end();
    await once(server, 'exit');
  }
});

test("containerd's client understands our server", async (context) => {
  if (!program) return context.skip(whyNot);
  const ttrpc = new TtrpcServer().addService(Echo, {
    say: ({ value }) => ({ value }),
    fail: ({ value }) => {
      throw new TtrpcError(value, 'as asked', [packDetail(StringValueSchema, { value: 'the detail' })]);
    },
    hang: (_, { signal }) =>
      new Promise((_resolve, reject) => signal.addEventListener('abort', () => reject(signal.reason as Error))),
    metadata: ({ value }, { metadata }) => ({ value: metadata.get(value)?.[0] ?? '' }),
    zeros: ({ value }) => ({ value: new Uint8Array(value) }),
  });
  const socket = join(folder, 'node.sock');
  const server = createServer((connection) => void ttrpc.serve(connection));
  server.listen(socket);
  await once(server, 'listening');
  try {
    const { stdout } = await run(program, ['call', socket]);
    expect(stdout.match(/^ok /gm)?.length).toBe(7);
  } finally {
    server.close();
  }
});
