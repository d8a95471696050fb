import { PassThrough, Writable } from 'node:stream';
import { describe, expect, it, vi } from 'vitest';
import { until } from '../../test/support/socket-pair.js';
import { OutputPump } from './output-pump.js';

function fakeLog(): { text: string; write: (source: string, chunk: Uint8Array) => Promise<void> } {
  const log = {
    text: '',
    write: async (_source: string, chunk: Uint8Array) => {
      log.text += Buffer.from(chunk).toString();
    },
  };
  return log;
}

describe('the output of a container', () => {
  it('goes to the log and to the writer', async () => {
    const [source, log, attached] = [new PassThrough(), fakeLog(), new PassThrough()];
    const pump = new OutputPump(source, 'stdout', { log, attached, onBroken: expect.unreachable });
    source.write('one ');
    source.end('two');
    await pump.finish(1000);
    expect([log.text, (attached.read() as Buffer).toString()]).toEqual(['one two', 'one two']);
    expect(attached.listenerCount('error')).toBe(new PassThrough().listenerCount('error'));
  });

  it('comes no faster than a slow writer takes it, who has all the time also after the exit', async () => {
    const [source, log] = [new PassThrough({ highWaterMark: 10 }), fakeLog()];
    const taken: (() => void)[] = [];
    const attached = new Writable({ highWaterMark: 1, write: (_chunk, _encoding, done) => void taken.push(done) });
    const pump = new OutputPump(source, 'stdout', { log, attached, onBroken: expect.unreachable });
    source.write('first');
    await until(() => taken.length === 1);
    source.end('second');
    const finished = pump.finish(1);
    // Longer than the limit, which is the guest's and not the writer's.
    await new Promise((resolve) => setTimeout(resolve, 20));
    expect(log.text).toBe('first');
    taken.shift()!();
    await until(() => taken.length === 1);
    taken.shift()!();
    await finished;
    expect(log.text).toBe('firstsecond');
  });

  it('is given up when the guest does not end it after the exit', async () => {
    const [source, log] = [new PassThrough(), fakeLog()];
    const pump = new OutputPump(source, 'stdout', { log, onBroken: expect.unreachable });
    source.write('half');
    await expect(pump.finish(10)).rejects.toMatchObject({ code: 'TIMED_OUT' });
    expect([log.text, source.destroyed]).toEqual(['half', true]);
  });

  it('stops when the writer breaks, which is told once', async () => {
    for (const when of ['before', 'while writing'] as const) {
      const [source, log] = [new PassThrough(), fakeLog()];
      const attached = new Writable({ highWaterMark: 1, write: (_chunk, _encoding, done) => done(new Error('EPIPE')) });
      if (when === 'before') attached.destroy();
      let broken = 0;
      const pump = new OutputPump(source, 'stdout', { log, attached, onBroken: () => broken++ });
      source.write('x');
      await pump.done;
      // Nothing is waited for any more: a timer would keep the process.
      vi.useFakeTimers({ toFake: ['setTimeout'] });
      await pump.finish(1000);
      expect([broken, source.destroyed, vi.getTimerCount()]).toEqual([1, true, 0]);
      vi.useRealTimers();
    }
  });

  it('fails with its source', async () => {
    const source = new PassThrough();
    const pump = new OutputPump(source, 'stdout', { log: fakeLog(), onBroken: expect.unreachable });
    source.destroy(new Error('the guest is gone'));
    await expect(pump.finish(1000)).rejects.toThrow('the guest is gone');
  });
});
