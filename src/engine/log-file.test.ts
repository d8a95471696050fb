import { appendFile, mkdtemp, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { LogWriter, MAX_FILES, MAX_LINE_BYTES, readLog, type LogEntry, type ReadLogOptions } from './log-file.js';

let folder: string;
let path: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'lcow-log-'));
  path = join(folder, 'x-json.log');
});
afterEach(() => rm(folder, { recursive: true }));

async function read(options?: ReadLogOptions): Promise<LogEntry[]> {
  const entries: LogEntry[] = [];
  for await (const entry of readLog(path, options)) entries.push(entry);
  return entries;
}

describe('a container log', () => {
  it('keeps lines whole, whatever pieces they came in, and both outputs apart', async () => {
    const log = await LogWriter.open(path);
    await log.write('stdout', Buffer.from('on'));
    await log.write('stderr', Buffer.from('oops\n'));
    await log.write('stdout', Buffer.from('e\ntwo\nthr'));
    await log.write('stdout', Buffer.from('ee'));
    await log.close();
    expect((await read()).map(({ log: text, stream }) => [stream, text])).toEqual([
      ['stderr', 'oops\n'],
      ['stdout', 'one\n'],
      ['stdout', 'two\n'],
      ['stdout', 'three'],
    ]);
  });

  it('does not break a character that arrives in two pieces', async () => {
    const log = await LogWriter.open(path);
    const bytes = Buffer.from('é\n');
    await log.write('stdout', bytes.subarray(0, 1));
    await log.write('stdout', bytes.subarray(1));
    await log.close();
    expect((await read())[0]?.log).toBe('é\n');
  });

  it('splits a line longer than 16 KiB', async () => {
    const log = await LogWriter.open(path);
    await log.write('stdout', Buffer.from(`${'x'.repeat(MAX_LINE_BYTES + 5)}\n`));
    await log.close();
    expect((await read()).map((entry) => entry.log.length)).toEqual([MAX_LINE_BYTES, 6]);
  });

  it('yields only the last lines when asked for a tail, across rotated files', async () => {
    const log = await LogWriter.open(path, 1000);
    for (let i = 0; i < 100; i++) await log.write('stdout', Buffer.from(`line ${i}\n`));
    await log.close();
    expect((await readdir(folder)).length).toBe(MAX_FILES);
    expect((await read({ tail: 20 })).map((entry) => entry.log)).toEqual(
      Array.from({ length: 20 }, (_, i) => `line ${80 + i}\n`),
    );
    expect(await read({ tail: 0 })).toEqual([]);
  });

  it('follows across a rotation until told that nothing more comes', async () => {
    const log = await LogWriter.open(path, 200);
    let written = 0;
    const follow = async (): Promise<boolean> => {
      if (written === 50) return true;
      await log.write('stdout', Buffer.from(`line ${written++}\n`));
      return false;
    };
    const entries = await read({ tail: 0, follow });
    await log.close();
    expect(entries.map((entry) => entry.log)).toEqual(Array.from({ length: 50 }, (_, i) => `line ${i}\n`));
  });

  it('follows across many rotations between two looks, as far as they are kept', async () => {
    const log = await LogWriter.open(path, 100);
    await log.write('stdout', Buffer.from('first\n'));
    let looks = 0;
    const follow = async (): Promise<boolean> => {
      // Each line is more than a third of a file: three more files come to be, and the one that is followed is rotated.
      for (let i = 0; i < 6; i++) await log.write('stdout', Buffer.from(`line ${looks * 6 + i}\n`));
      return ++looks === 4;
    };
    const entries = await read({ follow });
    await log.close();
    expect(entries.map((entry) => entry.log)).toEqual([
      'first\n',
      ...Array.from({ length: 24 }, (_, i) => `line ${i}\n`),
    ]);
  });

  it('of a writer that was killed in a line goes on behind it', async () => {
    await writeFile(
      path,
      `${JSON.stringify({ log: 'a\n', stream: 'stdout', time: '2026-01-01T00:00:00Z' })}\n{"log":"ha`,
    );
    const log = await LogWriter.open(path);
    await log.write('stdout', Buffer.from('b\n'));
    await log.close();
    expect((await read()).map((entry) => entry.log)).toEqual(['a\n', 'b\n']);
  });

  it('passes over what is no entry', async () => {
    const good = JSON.stringify({ log: 'a\n', stream: 'stderr', time: '2026-01-01T00:00:00Z' });
    await writeFile(path, `null\n7\n{"log":1}\n{"log":"x","stream":"__proto__","time":""}\n${good}\n`);
    expect((await read()).map((entry) => entry.log)).toEqual(['a\n']);
  });

  it('shows only what is newer than a time, also of what comes later', async () => {
    const at = (time: string): string => `${JSON.stringify({ log: `${time}\n`, stream: 'stdout', time })}\n`;
    await writeFile(path, at('2026-01-01T00:00:00Z') + at('2026-01-03T00:00:00Z'));
    const follow = async (): Promise<boolean> => {
      await appendFile(path, at('2026-01-01T12:00:00Z') + at('2026-01-04T00:00:00Z'));
      return true;
    };
    const entries = await read({ since: new Date('2026-01-02'), follow });
    expect(entries.map(({ time }) => time)).toEqual(['2026-01-03T00:00:00Z', '2026-01-04T00:00:00Z']);
  });
});
