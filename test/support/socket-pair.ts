import { mkdtemp, rm } from 'node:fs/promises';
import { createServer, connect, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { once } from 'node:events';

/** Two connected unix sockets, as between QEMU and the host. */
export async function socketPair(options: { allowHalfOpen?: boolean } = {}): Promise<[Socket, Socket]> {
  const folder = await mkdtemp(join(tmpdir(), 'lcow-pair-'));
  const server = createServer({ allowHalfOpen: options.allowHalfOpen ?? false });
  try {
    server.listen(join(folder, 's'));
    await once(server, 'listening');
    const accepted = once(server, 'connection') as Promise<[Socket]>;
    const near = connect({ path: join(folder, 's'), allowHalfOpen: options.allowHalfOpen ?? false });
    await once(near, 'connect');
    const [far] = await accepted;
    return [near, far];
  } finally {
    server.close();
    await rm(folder, { recursive: true });
  }
}

/** Resolves when the condition holds, looked at after every turn of the event loop; the test's own time-out ends it. */
export async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await new Promise((resolve) => setImmediate(resolve));
}
