import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pack } from 'tar-stream';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { tarToVhd } from '../convert/index.js';
import { ext4Info } from '../ext4/index.js';
import { appendVerity, verifyVerity } from './index.js';

const BLOCK = 4096;

let folder: string;
let path: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'lcow-verity-'));
  path = join(folder, 'disk');
});
afterAll(() => rmSync(folder, { recursive: true }));

/** Some data, every block another. */
function image(blocks: number): Buffer {
  const data = Buffer.alloc(blocks * BLOCK);
  for (let block = 0; block < blocks; block++) data.fill(`block ${block} `, block * BLOCK, (block + 1) * BLOCK);
  return data;
}

async function append(blocks: number): ReturnType<typeof appendVerity> {
  writeFileSync(path, image(blocks));
  await using file = await open(path, 'r+');
  return await appendVerity(file, blocks * BLOCK);
}

/** The judge. @throws when it finds the disk bad. */
function veritysetup(hashOffset: number, rootHash: string): void {
  execFileSync('veritysetup', ['verify', `--hash-offset=${hashOffset}`, path, path, rootHash], { stdio: 'pipe' });
}

describe('A dm-verity tree', () => {
  // On both sides of each new level: 128 hashes fit in a block.
  test.each([1, 2, 127, 128, 129, 128 * 128, 128 * 128 + 1])(
    'over %i blocks is good to veritysetup',
    async (blocks) => {
      const { rootHash, hashOffset, hashBytes, dataBlocks } = await append(blocks);
      expect([dataBlocks, hashOffset]).toEqual([blocks, blocks * BLOCK]);
      expect(statSync(path).size).toBe(hashOffset + hashBytes);
      veritysetup(hashOffset, rootHash);
      expect(await verifyVerity(path, { hashOffset, rootHash })).toMatchObject({
        good: true,
        badTreeBlocks: [],
        rootHash,
      });
    },
  );

  test('is what veritysetup makes itself, but for the UUID', async () => {
    const { rootHash, hashOffset } = await append(300);
    const ours = readFileSync(path);
    writeFileSync(path, image(300));
    const salt = '0'.repeat(64);
    const said = execFileSync(
      'veritysetup',
      ['format', `--hash-offset=${hashOffset}`, `--salt=${salt}`, '--data-blocks=300', path, path],
      { encoding: 'utf8' },
    );
    expect(said).toContain(rootHash);
    const theirs = readFileSync(path);
    for (const bytes of [ours, theirs]) bytes.fill(0, hashOffset + 16, hashOffset + 32);
    // It pads the last block of the file as well.
    expect(theirs.subarray(0, ours.length).equals(ours)).toBe(true);
    expect(await verifyVerity(path, { hashOffset, rootHash })).toMatchObject({ good: true, salt });
  });

  test('finds any changed byte, of data, tree or root hash, as veritysetup does', async () => {
    const { rootHash, hashOffset, hashBytes } = await append(300);
    const good = readFileSync(path);
    for (const at of [0, 299 * BLOCK + 7, hashOffset + BLOCK + 5, hashOffset + hashBytes - BLOCK + 40]) {
      const bad = Buffer.from(good);
      bad[at]! ^= 1;
      writeFileSync(path, bad);
      expect(await verifyVerity(path, { hashOffset, rootHash })).toMatchObject({ good: false });
      expect(() => veritysetup(hashOffset, rootHash)).toThrow();
    }
    writeFileSync(path, good);
    expect(await verifyVerity(path, { hashOffset, rootHash: 'f'.repeat(64) })).toMatchObject({ good: false });
    expect(await verifyVerity(path, { hashOffset })).toMatchObject({ good: true });
  });

  test.each<[string, (bytes: Buffer, at: number) => Buffer | undefined, RegExp]>([
    ['without a super block', (bytes, at) => void bytes.fill(0, at, at + 8), /has no verity super block/],
    ['of another version', (bytes, at) => void bytes.writeUInt32LE(2, at + 8), /version at byte 40968 is 2/],
    ['of sha1', (bytes, at) => void bytes.write('sha1\0\0', at + 32), /algorithm .* is "sha1"/],
    ['with more blocks than there are', (bytes, at) => void bytes.writeUInt32LE(11, at + 72), /dataBlocks .* is 11/],
    ['with too long a salt', (bytes, at) => void bytes.writeUInt16LE(257, at + 80), /saltSize/],
    ['cut off in the tree', (bytes) => bytes.subarray(0, bytes.length - 1), /is cut off/],
  ])('is refused %s', async (_, damage, message) => {
    await append(10);
    const bytes = readFileSync(path);
    writeFileSync(path, damage(bytes, 10 * BLOCK) ?? bytes);
    const verified = verifyVerity(path, { hashOffset: 10 * BLOCK });
    await expect(verified).rejects.toThrow(message);
    await expect(verified).rejects.toMatchObject({ code: 'BAD_EXT4' });
  });

  test('is appended by tarToVhd: the same bytes each time, a file system without fault, a disk of the footer’s size', async () => {
    const made: Buffer[] = [];
    for (let round = 0; round < 2; round++) {
      const tar = pack();
      tar.entry({ name: 'a/file' }, 'content'.repeat(5000));
      tar.finalize();
      const result = await tarToVhd(tar as AsyncIterable<Uint8Array>, path, { appendDMVerity: true });
      const { sizeBytes } = await ext4Info(path);
      expect(result.verity).toMatchObject({ hashOffset: sizeBytes, dataBlocks: sizeBytes / BLOCK });
      veritysetup(sizeBytes, result.verity!.rootHash);
      execFileSync('e2fsck', ['-fn', path], { stdio: 'pipe' });
      const said = execFileSync('qemu-img', ['info', '--output=json', '-f', 'vpc', path], { encoding: 'utf8' });
      expect(JSON.parse(said)).toMatchObject({ 'virtual-size': result.sizeBytes - 512 });
      made.push(readFileSync(path));
    }
    expect(made[0]!.equals(made[1]!)).toBe(true);
  });
});
