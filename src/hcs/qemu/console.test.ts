import { once } from 'node:events';
import { mkdtempSync, rmSync, statSync } from 'node:fs';
import { createConnection } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { afterAll, describe, expect, it } from 'vitest';
import { socketPair } from '../../../test/support/socket-pair.js';
import { CONSOLE_TAIL_BYTES, GuestConsole, TailBuffer, lastLine, printable, showsPanic } from './console.js';

const folder = mkdtempSync(join(tmpdir(), 'lcow-console-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

describe('the kept end of the console', () => {
  it.each([1, 7, 1000, 4096, 100_000])('is its last bytes, whatever the pieces (%i)', (piece) => {
    const tail = new TailBuffer(1000);
    const all = Buffer.from(Array.from({ length: 20_000 }, (_, index) => index % 251));
    for (let at = 0; at < all.length; at += piece) tail.push(all.subarray(at, at + piece));
    expect(tail.bytes().equals(all.subarray(-1000))).toBe(true);
  });

  it('cannot steer the terminal it is shown on', () => {
    const hostile = '\u001b]0;title\u0007a\u001b[31mred\u001b[0m\u001bc\u009b2J\rb\r\nc\td\u0000\u007f';

    expect(printable(Buffer.from(hostile))).not.toMatch(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f]/);
    expect(printable(Buffer.from('ok\r\nnext\n'))).toBe('ok\nnext\n');
  });

  it('shows a panic', () => {
    expect(showsPanic('[ 1.0] Kernel panic - not syncing: VFS')).toBe(true);
    expect(showsPanic('all is well')).toBe(false);
  });

  it('gives its last line as part of a sentence', () => {
    expect(lastLine('one\ntwo.\n\n')).toBe('two');
    expect(lastLine('')).toBe('');
  });
});

describe('a guest console', () => {
  it('is kept within its bound', async () => {
    const [near, guest] = await socketPair();
    const console = new GuestConsole();
    console.attach(near);
    guest.write('x'.repeat(3 * CONSOLE_TAIL_BYTES));
    guest.end('end');
    await once(near, 'close');
    expect(console.text()).toHaveLength(CONSOLE_TAIL_BYTES);
    expect(console.text().endsWith('end')).toBe(true);
    await console[Symbol.asyncDispose]();
  });

  it('is shown from its kept beginning to whoever connects, and can be typed into', async () => {
    const [near, guest] = await socketPair();
    const console = new GuestConsole();
    console.attach(near);
    guest.write('before ');
    await once(near, 'data');
    const path = join(folder, 'console.sock');
    await console.serve(path);
    expect(statSync(path).mode & 0o777).toBe(0o600);
    const client = createConnection(path);
    client.write('typed');
    expect(String((await once(guest, 'data'))[0])).toBe('typed');
    guest.write('after');
    await once(near, 'data');
    await console[Symbol.asyncDispose]();
    expect(await text(client)).toBe('before after');
    guest.destroy();
  });
});
