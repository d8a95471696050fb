import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { existsSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { startRegistry } from '../../images/registry.js';

const layouts = join(import.meta.dirname, '..', '..', 'images', 'out');

async function manifestDigest(layout: string): Promise<string> {
  const index = JSON.parse(await readFile(join(layouts, layout, 'index.json'), 'utf8')) as {
    manifests: { digest: string }[];
  };
  return index.manifests[0]!.digest;
}

describe('the loopback registry of the tests', () => {
  it('serves pushed layouts under their own digests', async () => {
    const registry = await startRegistry();
    try {
      for (const name of ['busybox', 'busybox-zstd', 'whiteout', 'platforms'] as const) {
        await registry.push(join(layouts, name), `test/${name}:1`);
        const response = await fetch(`http://${registry.host}/v2/test/${name}/manifests/1`, {
          headers: { accept: 'application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json' },
        });
        expect(response.headers.get('docker-content-digest')).toBe(await manifestDigest(name));
      }
    } finally {
      await registry.stop();
    }
    await expect(fetch(`http://${registry.host}/v2/`)).rejects.toThrow();
  });

  it('asks for the user it was given, and keeps its content in the folder it was given', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'lcow-registry-content-'));
    try {
      await using registry = await startRegistry({ htpasswd: { user: 'ann', password: 'se cret' }, folder });
      expect((await fetch(`http://${registry.host}/v2/`)).status).toBe(401);
      const authorization = `Basic ${Buffer.from('ann:se cret').toString('base64')}`;
      expect((await fetch(`http://${registry.host}/v2/`, { headers: { authorization } })).status).toBe(200);
      await registry.push(join(layouts, 'busybox'), 'busybox');
      expect(existsSync(join(folder, 'docker', 'registry', 'v2', 'repositories', 'busybox'))).toBe(true);
    } finally {
      await rm(folder, { recursive: true });
    }
  });
});
