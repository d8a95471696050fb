import type { Socket } from 'node:net';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { socketPair } from '../../../test/support/socket-pair.js';
import { QmpClient, QmpError, type QmpEvent } from './qmp-client.js';

const GREETING = '{"QMP": {"version": {"qemu": {"major": 7}}, "capabilities": ["oob"]}}\r\n';

interface Command {
  readonly execute: string;
  readonly arguments: Record<string, unknown>;
  readonly id: number;
}

/** The other end: greets, and answers as the test says. */
class FakeQemu {
  readonly socket: Socket;
  readonly commands: Command[] = [];
  answer: (command: Command) => void = (command) => this.reply(command, {});

  constructor(socket: Socket) {
    this.socket = socket;
    let rest = '';
    socket.on('error', () => {});
    socket.on('data', (chunk: Buffer) => {
      const lines = (rest + chunk.toString()).split('\n');
      rest = lines.pop() ?? '';
      for (const line of lines) {
        const command = JSON.parse(line) as Command;
        this.commands.push(command);
        this.answer(command);
      }
    });
  }

  send(message: object): void {
    this.socket.write(`${JSON.stringify(message)}\r\n`);
  }

  reply({ id }: Command, value: unknown): void {
    this.send({ return: value, id });
  }
}

let qemu: FakeQemu;
let near: Socket;

beforeEach(async () => {
  const [a, b] = await socketPair();
  near = a;
  qemu = new FakeQemu(b);
});
afterEach(() => {
  near.destroy();
  qemu.socket.destroy();
  vi.unstubAllEnvs();
});

async function connected(): Promise<QmpClient> {
  qemu.socket.write(GREETING);
  return QmpClient.connect(near);
}

describe('a QMP client', () => {
  it('negotiates capabilities after the greeting, however it is cut', async () => {
    const connecting = QmpClient.connect(near);
    for (const byte of GREETING) qemu.socket.write(byte);
    await connecting;
    expect(qemu.commands.map(({ execute }) => execute)).toEqual(['qmp_capabilities']);
  });

  it('gives each command its own answer, in whatever order they come', async () => {
    const client = await connected();
    const held: Command[] = [];
    qemu.answer = (command) => {
      held.push(command);
      if (held.length === 3) for (const each of held.reverse()) qemu.reply(each, each.execute);
    };
    expect(await Promise.all(['a', 'b', 'c'].map((name) => client.execute(name)))).toEqual(['a', 'b', 'c']);
  });

  it('tells a refusal with its class and words', async () => {
    const client = await connected();
    qemu.answer = ({ id }) => qemu.send({ error: { class: 'DeviceNotFound', desc: 'no such device' }, id });
    const error = await client.execute('device_del', { id: 'x' }).catch((reason: unknown) => reason);
    expect(error).toBeInstanceOf(QmpError);
    expect(error).toMatchObject({ class: 'DeviceNotFound', message: 'no such device', command: 'device_del' });
  });

  it('tells events, and waits for one', async () => {
    const client = await connected();
    const events: QmpEvent[] = [];
    client.on('event', (event) => events.push(event));
    const waited = client.waitFor(({ event, data }) => event === 'DEVICE_DELETED' && data['device'] === 'b', 'b');
    qemu.send({ event: 'DEVICE_DELETED', data: { device: 'a' }, timestamp: {} });
    qemu.send({ event: 'DEVICE_DELETED', data: { device: 'b' }, timestamp: {} });
    expect((await waited).data).toEqual({ device: 'b' });
    expect(events.map(({ data }) => data['device'])).toEqual(['a', 'b']);
  });

  it('gives up on a command that is not answered, and goes on with the next', async () => {
    const client = await connected();
    vi.stubEnv('LCOW_TIMEOUT_QMPCOMMAND', '0.05');
    let late: Command | undefined;
    qemu.answer = (command) => {
      late = command;
    };
    await expect(client.execute('slow')).rejects.toMatchObject({ code: 'TIMED_OUT' });
    qemu.answer = (command) => {
      // The late answer comes first and belongs to nobody.
      qemu.reply(late!, 'late');
      qemu.reply(command, 'mine');
    };
    expect(await client.execute('next')).toBe('mine');
  });

  it('gives up waiting for an event', async () => {
    const client = await connected();
    vi.stubEnv('LCOW_TIMEOUT_QMPCOMMAND', '0.05');
    await expect(client.waitFor(() => true, 'The event')).rejects.toMatchObject({ code: 'TIMED_OUT' });
    expect(client.listenerCount('event')).toBe(0);
  });

  it('gives up on a QEMU that never greets', async () => {
    vi.stubEnv('LCOW_TIMEOUT_QMPCOMMAND', '0.05');
    await expect(QmpClient.connect(near)).rejects.toMatchObject({ code: 'TIMED_OUT' });
    expect(near.destroyed).toBe(true);
  });

  it('rejects everything that waits when the connection is lost, and what comes later', async () => {
    const client = await connected();
    qemu.answer = () => qemu.socket.destroy();
    const event = client.waitFor(() => true, 'The event');
    await expect(client.execute('quit')).rejects.toMatchObject({ code: 'VM_EXITED' });
    await expect(event).rejects.toMatchObject({ code: 'VM_EXITED' });
    await client.closed;
    await expect(client.execute('again')).rejects.toMatchObject({ code: 'VM_EXITED' });
    await expect(client.waitFor(() => true, 'The event')).rejects.toMatchObject({ code: 'VM_EXITED' });
  });

  it('stops at the abort of a command', async () => {
    const client = await connected();
    qemu.answer = () => {};
    const stop = new AbortController();
    const waiting = client.execute('slow', {}, stop.signal);
    stop.abort();
    await expect(waiting).rejects.toMatchObject({ code: 'CANCELLED' });
  });

  it.each([
    ['what is not JSON', 'hello\r\n'],
    ['a list', '[]\r\n'],
    ['an error for no command', '{"error": {"class": "GenericError", "desc": "JSON parse error"}}\r\n'],
    ['a line without end', 'x'.repeat((4 << 20) + 1)],
  ])('ends the session at %s', async (_, text) => {
    const client = await connected();
    qemu.answer = () => qemu.socket.write(text);
    await expect(client.execute('query-status')).rejects.toMatchObject({ code: 'QEMU_FAILED' });
    await client.closed;
  });
});
