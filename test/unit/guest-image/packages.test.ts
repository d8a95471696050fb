import { createHash } from 'node:crypto';
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { cachedDeb } from '../../../guest/image/debian-archive.js';
import { packagesToUse, type PinnedPackage } from '../../../guest/image/packages.js';

let folder: string;
let lines: string[];
const report = (line: string): void => void lines.push(line);

beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'lcow-packages-'));
  lines = [];
  vi.stubEnv('XDG_CACHE_HOME', join(folder, 'cache'));
  const mirror = pathToFileURL(join(folder, 'mirror')).href;
  vi.stubEnv('LCOW_DEBIAN_MIRROR', mirror);
  vi.stubEnv('LCOW_DEBIAN_SECURITY_MIRROR', mirror);
});

afterEach(async () => {
  vi.unstubAllEnvs();
  await rm(folder, { recursive: true });
});

function packageOf(content: string): PinnedPackage {
  const sha256 = createHash('sha256').update(content).digest('hex');
  return {
    name: content,
    version: '1',
    role: 'guest',
    archive: 'debian',
    path: `pool/${content}.deb`,
    sizeBytes: content.length,
    sha256,
  };
}

async function put(path: string, content: string): Promise<void> {
  await mkdir(dirname(path), { recursive: true });
  await writeFile(path, content);
}

describe('the packages of the guest image', () => {
  it('come from the mirror once and from the cache ever after', async () => {
    const pkg = packageOf('one');
    await put(join(folder, 'mirror', pkg.path), 'one');
    const fetched = await packagesToUse([pkg], undefined, report);
    expect(fetched.get(pkg)).toBe(cachedDeb(pkg));
    await rm(join(folder, 'mirror'), { recursive: true });
    expect(await packagesToUse([pkg], undefined, report)).toEqual(fetched);
  });

  it('are refused when the mirror has other content under the pinned name, and nothing is kept of it', async () => {
    const pkg = packageOf('one');
    await put(join(folder, 'mirror', pkg.path), 'two');
    await expect(packagesToUse([pkg], undefined, report)).rejects.toThrow(/does not have the expected sha256/);
    await rm(join(folder, 'mirror'), { recursive: true });
    await expect(packagesToUse([pkg], undefined, report)).rejects.toThrow(/does not exist on the server/);
  });

  it('are fetched anew when the cached file is damaged', async () => {
    const pkg = packageOf('one');
    await put(join(folder, 'mirror', pkg.path), 'one');
    await put(cachedDeb(pkg), 'eno');
    await packagesToUse([pkg], undefined, report);
    expect(lines.some((line) => line.startsWith('downloading'))).toBe(true);
  });

  it('are those of the last image when the mirror has neither the pinned ones nor an index', async () => {
    const last = packageOf('last');
    await put(cachedDeb(last), 'last');
    const used = await packagesToUse([packageOf('gone')], [last], report);
    expect([...used.keys()]).toEqual([last]);
    expect(lines.join('\n')).toMatch(/no longer on the mirror/);
    expect(lines.join('\n')).toMatch(/packages of the last guest image are taken/);
  });

  it('say which mirror to set when there is nothing to build from', async () => {
    await expect(packagesToUse([packageOf('gone')], undefined, report)).rejects.toThrow(/LCOW_DEBIAN_MIRROR/);
  });
});
