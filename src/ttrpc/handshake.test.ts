import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import type { Socket } from 'node:net';
import { afterEach, describe, expect, test } from 'vitest';
import { socketPair, until } from '../../test/support/socket-pair.js';
import { LcowError } from '../errors/index.js';
import { handshake } from './handshake.js';

const QUICK = { resendMs: 5, readyMs: 40 };
const sockets: Socket[] = [];
afterEach(() => {
  for (const socket of sockets.splice(0)) socket.destroy();
});

async function pair(): Promise<[Socket, Socket]> {
  const made = await socketPair();
  sockets.push(...made);
  return made;
}

/** The guest's end, spoken by the test: collects what the host says. */
function listen(socket: Socket): { kinds: () => string[]; nonce: (index: number) => Buffer } {
  let all = Buffer.alloc(0);
  socket.on('error', () => {});
  socket.on('data', (chunk) => (all = Buffer.concat([all, chunk])));
  const count = (): number => Math.floor(all.length / 24);
  return {
    kinds: () => Array.from({ length: count() }, (_, i) => all.toString('latin1', 24 * i + 4, 24 * i + 8)),
    nonce: (index) => all.subarray(24 * index + 8, 24 * index + 24),
  };
}

const say = (kind: string, nonce: Buffer): Buffer => Buffer.concat([Buffer.from(`LCOW${kind}`), nonce]);

describe('a session', () => {
  test('begins when both sides are there, and its first bytes are not lost', async () => {
    const [near, far] = await pair();
    // The guest speaks at once, so that its bytes arrive together with REDY.
    const guest = handshake(far, 'guest').then((port) => port.write('first words'));
    const host = await handshake(near, 'host', QUICK);
    const [chunk] = (await once(host.resume(), 'data')) as [Buffer];
    expect(chunk.toString()).toBe('first words');
    await guest;
  });

  test('begins after any bytes of an earlier one, in any portions', async () => {
    for (const portion of [1, 7, 23, 24, 25, 1000]) {
      const [near, far] = await pair();
      const stale = Buffer.concat([
        randomBytes(50),
        say('ECHO', randomBytes(16)),
        Buffer.from('LCOW'),
        Buffer.from('LCOWECHO'),
        say('REDY', randomBytes(16)),
        Buffer.from('LCO'),
      ]);
      const toGuest = Buffer.concat([randomBytes(30), say('STRT', randomBytes(16)), Buffer.from('LCOWHEL')]);
      for (let at = 0; at < stale.length; at += portion) far.write(stale.subarray(at, at + portion));
      for (let at = 0; at < toGuest.length; at += portion) near.write(toGuest.subarray(at, at + portion));
      const guest = handshake(far, 'guest');
      const host = await handshake(near, 'host', QUICK);
      (await guest).write('new');
      host.write('also new');
      expect(String((await once(host.resume(), 'data'))[0])).toBe('new');
      expect(String((await once(far.resume(), 'data'))[0])).toBe('also new');
    }
  });

  test('is asked for again and again with one nonce until the guest answers', async () => {
    const [near, far] = await pair();
    const heard = listen(far);
    const host = handshake(near, 'host', QUICK);
    await until(() => heard.kinds().length >= 4);
    expect(new Set(heard.kinds())).toEqual(new Set(['HELO']));
    expect(heard.nonce(3).equals(heard.nonce(0))).toBe(true);
    far.write(say('ECHO', heard.nonce(0)));
    await until(() => heard.kinds().includes('STRT'));
    far.write(say('REDY', heard.nonce(0)));
    await host;
    const said = heard.kinds().length;
    await new Promise((resolve) => setTimeout(resolve, 30));
    expect(heard.kinds().length).toBe(said);
    expect(heard.kinds().filter((kind) => kind === 'STRT').length).toBe(1);
  });

  test('is begun anew with another nonce when REDY does not come, and a late REDY does not count', async () => {
    const [near, far] = await pair();
    const heard = listen(far);
    let done = false;
    const host = handshake(near, 'host', QUICK).then(() => (done = true));
    await until(() => heard.kinds().length > 0);
    const first = Buffer.from(heard.nonce(0));
    far.write(say('ECHO', first));
    await until(() => heard.kinds().slice(-1)[0] === 'HELO' && heard.kinds().includes('STRT'));
    const last = heard.kinds().length - 1;
    const second = Buffer.from(heard.nonce(last));
    expect(second.equals(first)).toBe(false);
    far.write(Buffer.concat([say('REDY', first), Buffer.from('of the old session'), say('ECHO', second)]));
    await until(() => heard.kinds().filter((kind) => kind === 'STRT').length === 2);
    expect(done).toBe(false);
    far.write(Buffer.concat([say('REDY', second), Buffer.from('of the new session')]));
    await host;
    expect(String((await once(near.resume(), 'data'))[0])).toBe('of the new session');
  });

  test('is not begun by the guest for a STRT of another nonce', async () => {
    const [near, far] = await pair();
    const guest = handshake(near, 'guest');
    const heard = listen(far);
    const nonces = [randomBytes(16), randomBytes(16)] as const;
    far.write(Buffer.concat([say('HELO', nonces[0]), say('HELO', nonces[1]), say('STRT', nonces[0])]));
    await until(() => heard.kinds().length === 2);
    far.write(say('STRT', nonces[1]));
    await guest;
    await until(() => heard.kinds().length === 3);
    expect(heard.kinds()).toEqual(['ECHO', 'ECHO', 'REDY']);
    expect(heard.nonce(2).equals(nonces[1])).toBe(true);
  });
});

test('a connection that ends before the session begins is told', async () => {
  const [near, far] = await pair();
  const host = handshake(near, 'host', QUICK);
  far.destroy();
  await expect(host).rejects.toMatchObject({ name: 'TransportError', kind: 'closed' });
  await expect(handshake(near, 'host', QUICK)).rejects.toMatchObject({ kind: 'closed' });
});

test('the caller can give up, for a reason of its own', async () => {
  const [near, far] = await pair();
  const heard = listen(far);
  const abort = new AbortController();
  const host = handshake(near, 'host', { ...QUICK, signal: abort.signal });
  await until(() => heard.kinds().length > 1);
  const reason = new LcowError('TIMED_OUT', 'enough');
  abort.abort(reason);
  await expect(host).rejects.toBe(reason);
  const said = heard.kinds().length;
  await new Promise((resolve) => setTimeout(resolve, 30));
  expect(heard.kinds().length - said).toBeLessThanOrEqual(1);
});

test('a guest that takes no bytes yet is not sent one HELO after another', async () => {
  const [near, far] = await pair();
  far.pause();
  // Fills the connection, as a port does whose guest is still booting.
  while (near.write(Buffer.alloc(65_536)));
  const before = near.writableLength;
  const abort = new AbortController();
  const host = handshake(near, 'host', { ...QUICK, signal: abort.signal });
  await new Promise((resolve) => setTimeout(resolve, 60));
  expect(near.writableLength).toBeLessThanOrEqual(before);
  abort.abort();
  await expect(host).rejects.toMatchObject({ code: 'CANCELLED' });
});
