import { createHash } from 'node:crypto';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { buildGuest } from '../../../guest/image/build.js';

let folder: string;
const report = (): void => {};

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'lcow-guest-image-'));
});

afterAll(async () => {
  await rm(folder, { recursive: true });
});

async function digests(out: string): Promise<string[]> {
  const names = ['vmlinux', 'initrd.img', 'manifest.json'];
  return Promise.all(
    names.map(async (name) =>
      createHash('sha256')
        .update(await readFile(join(out, name)))
        .digest('hex'),
    ),
  );
}

describe('the guest image', () => {
  it(
    'has equal bytes when built twice from the packages, and is not built again while nothing changed',
    { timeout: 240_000 },
    async () => {
      const first = await buildGuest({ out: join(folder, 'a'), fresh: true, report });
      const second = await buildGuest({ out: join(folder, 'b'), fresh: true, report });
      expect(first.built && second.built).toBe(true);
      expect(await digests(join(folder, 'b'))).toEqual(await digests(join(folder, 'a')));

      const again = await buildGuest({ out: join(folder, 'a'), report });
      expect(again).toEqual({ built: false, manifest: first.manifest });

      // What the agent relies on.
      expect(first.manifest.modules.indexOf('virtio_console.ko')).toBeLessThan(
        first.manifest.modules.indexOf('ext4.ko'),
      );
      expect(first.manifest.crun).toBe('static');
    },
  );
});
