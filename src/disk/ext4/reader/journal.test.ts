import { execFileSync } from 'node:child_process';
import { copyFileSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { MemorySource } from '../../source/index.js';
import { openExt4 } from './index.js';

let work: string;
beforeAll(() => {
  work = mkdtempSync(join(tmpdir(), 'lcow-journal-'));
  mkdirSync(join(work, 'folder'));
  for (const name of ['a', 'b', 'c', 'd']) writeFileSync(join(work, 'folder', name), Buffer.alloc(4096, name));
});
afterAll(() => rmSync(work, { recursive: true }));

function debugfs(image: string, ...commands: string[]): string {
  return execFileSync('debugfs', ['-w', '-f', '-', image], {
    input: commands.join('\n') + '\n',
    encoding: 'utf8',
    stdio: ['pipe', 'pipe', 'ignore'],
  });
}

/** An image whose files a to d have one block each, of 1 KiB blocks four. */
function makeImage(...options: string[]): { image: string; blockOf: (name: string) => string } {
  const image = join(work, 'image');
  rmSync(image, { force: true });
  execFileSync('mke2fs', ['-q', '-t', 'ext4', ...options, '-d', join(work, 'folder'), image, '16m'], {
    stdio: 'ignore',
  });
  return { image, blockOf: (name) => debugfs(image, `blocks /${name}`).split('\n')[1]!.trim().split(' ')[0]! };
}

const first = async (image: string): Promise<string> => {
  const reader = await openExt4(new MemorySource(readFileSync(image), image));
  const letters: string[] = [];
  for (const name of ['a', 'b', 'c', 'd'])
    letters.push((await reader.read((await reader.lookup(name))!, 0, 5)).toString('latin1'));
  return letters.map((letter) => (letter.charCodeAt(0) === 0xc0 ? 'escaped' : letter)).join(' ');
};

describe('a journal that must be replayed', () => {
  test.each([
    ['tags without checksums', [], 'jo'],
    ['tags of 64 bits with checksums, version 3', ['-O', '64bit'], 'jo -c'],
    ['checksums, version 2', ['-O', '64bit'], 'jo -c -v 2'],
    ['32 bits with checksums', ['-O', '^64bit'], 'jo -c'],
    ['blocks of 1 KiB', ['-b', '1024'], 'jo -c'],
  ])('is replayed in memory as e2fsck does it: %s', async (_, options, open) => {
    const { image, blockOf } = makeImage(...options);
    const [a, b, c, d] = ['a', 'b', 'c', 'd'].map(blockOf);
    const blockBytes = options.includes('1024') ? 1024 : 4096;
    const content = (name: string, bytes: Buffer): string => {
      writeFileSync(join(work, name), bytes);
      return join(work, name);
    };
    const twos = content('twos', Buffer.concat([Buffer.alloc(blockBytes, 'A'), Buffer.alloc(blockBytes, 'B')]));
    const threes = content('threes', Buffer.alloc(blockBytes, '3'));
    // Begins like a block of the journal itself, and so must be escaped in it.
    const magic = content('magic', Buffer.concat([Buffer.from('c03b3998', 'hex'), Buffer.alloc(blockBytes - 4, 'm')]));
    debugfs(
      image,
      open,
      `jw -b ${a!},${b!} ${twos}`,
      `jw -b ${b!} ${threes}`,
      `jw -b ${c!} ${threes}`,
      `jw -r ${c!}`,
      `jw -b ${d!} ${magic}`,
      'jc',
    );
    const before = readFileSync(image);
    const seen = await first(image);
    expect(readFileSync(image).equals(before)).toBe(true);
    expect(seen).toBe('AAAAA 33333 ccccc escaped');

    const replayed = join(work, 'replayed');
    copyFileSync(image, replayed);
    execFileSync('sh', ['-c', 'e2fsck -fy "$0" >/dev/null 2>&1 || [ $? -le 1 ]', replayed]);
    expect(await first(replayed)).toBe(seen);
  });

  test('ends at a transaction that was not committed', async () => {
    const { image, blockOf } = makeImage();
    writeFileSync(join(work, 'new'), Buffer.alloc(4096, 'N'));
    debugfs(
      image,
      'jo -c',
      `jw -b ${blockOf('a')} ${join(work, 'new')}`,
      `jw -b ${blockOf('b')} -c ${join(work, 'new')}`,
      'jc',
    );
    expect(await first(image)).toBe('NNNNN bbbbb ccccc ddddd');
  });

  test('with fast commits is refused by name', async () => {
    const { image, blockOf } = makeImage();
    writeFileSync(join(work, 'new'), Buffer.alloc(4096, 'N'));
    debugfs(image, 'jo', `jw -b ${blockOf('a')} ${join(work, 'new')}`, 'jc');
    const bytes = readFileSync(image);
    const journal = bytes.indexOf(Buffer.from('c03b3998', 'hex'));
    bytes.writeUInt32BE(bytes.readUInt32BE(journal + 0x28) | 0x20, journal + 0x28);
    await expect(openExt4(new MemorySource(bytes))).rejects.toMatchObject({
      code: 'BAD_EXT4',
      message: expect.stringContaining('fast commits') as string,
    });
  });
});
