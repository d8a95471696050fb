import { createHash, randomBytes } from 'node:crypto';
import { PassThrough, Readable, Writable } from 'node:stream';
import { setImmediate } from 'node:timers/promises';
import { describe, expect, it } from 'vitest';
import { copyBytes } from './copy.js';

/** A sink that takes each chunk in its own turn of the event loop. */
function slowSink(highWaterMark = 1024): { sink: Writable; bytes: () => Buffer } {
  const chunks: Buffer[] = [];
  const sink = new Writable({
    highWaterMark,
    write(chunk: Buffer, _encoding, done) {
      chunks.push(chunk);
      setImmediate().then(() => {
        done();
      }, done);
    },
  });
  return { sink, bytes: () => Buffer.concat(chunks) };
}

describe('copyBytes', () => {
  it('copies all bytes in order and ends neither stream', async () => {
    const data = randomBytes(300_000);
    const { sink, bytes } = slowSink();
    expect(await copyBytes(Readable.from([data.subarray(0, 1), data.subarray(1)]), sink)).toBe(300_000);
    expect(sink.writableEnded).toBe(false);
    sink.end();
    await new Promise((resolve) => sink.on('finish', resolve));
    expect(createHash('sha256').update(bytes()).digest('hex')).toBe(createHash('sha256').update(data).digest('hex'));
  });

  it('reads no further ahead of a sink that does not take bytes than the buffers of both', async () => {
    let produced = 0;
    const source = new Readable({
      highWaterMark: 4096,
      read() {
        produced += 4096;
        this.push(Buffer.alloc(4096));
      },
    });
    const stuck = new Writable({ highWaterMark: 4096, write() {} });
    const stop = new AbortController();
    const copying = copyBytes(source, stuck, { signal: stop.signal });
    for (let turn = 0; turn < 50; turn++) await setImmediate();
    expect(produced).toBeLessThanOrEqual(5 * 4096);
    stop.abort();
    await expect(copying).rejects.toMatchObject({ code: 'CANCELLED' });
    expect([source.destroyed, stuck.destroyed]).toEqual([false, false]);
  });

  it('stops at the limit and leaves the rest to be read', async () => {
    const source = Readable.from([Buffer.from('abc'), Buffer.from('defgh')]);
    const sink = new PassThrough();
    expect(await copyBytes(source, sink, { limitBytes: 5 })).toBe(5);
    expect((sink.read() as Buffer).toString()).toBe('abcde');
    expect((await source.toArray()).join('')).toBe('fgh');
  });

  it('ends before the limit when the source does', async () => {
    expect(await copyBytes(Readable.from([Buffer.from('abc')]), new PassThrough(), { limitBytes: 50 })).toBe(3);
  });

  it('copies nothing from a source that has ended', async () => {
    const source = Readable.from([]);
    await source.toArray();
    expect(await copyBytes(source, new PassThrough())).toBe(0);
  });

  it('names the side that failed', async () => {
    const broken = new Error('broken');
    const source = new PassThrough();
    const one = copyBytes(source, new PassThrough());
    source.destroy(broken);
    await expect(one).rejects.toMatchObject({ side: 'source', cause: broken });

    const sink = new PassThrough();
    const two = copyBytes(new PassThrough(), sink);
    sink.destroy(broken);
    await expect(two).rejects.toMatchObject({ side: 'sink', cause: broken });

    await expect(copyBytes(new PassThrough(), sink)).rejects.toMatchObject({ side: 'sink', cause: broken });
    await expect(copyBytes(source, new PassThrough())).rejects.toMatchObject({ side: 'source', cause: broken });
  });

  it('takes a source that closes before its end for a failure, not for the end', async () => {
    const source = new PassThrough();
    source.write('half');
    const copying = copyBytes(source, new PassThrough());
    await setImmediate();
    source.destroy();
    await expect(copying).rejects.toMatchObject({ side: 'source' });
  });
});
