/**
 * Builds the test images, OCI image layouts in test/images/out/<name>: `npm run build:images -- [--force] [name…]`, all without names.
 * What a real build needs is loaded only then, so that images up to date cost little.
 */
import { createHash } from 'node:crypto';
import { mkdir, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { IMAGE_NAMES, isImageName, type ImageName } from './names.js';

const HERE = import.meta.dirname;
const OUT = join(HERE, 'out');

/** What decides an image's content, besides what mmdebstrap finds on the mirror. */
async function inputsDigest(): Promise<string> {
  const hash = createHash('sha256');
  const sources = (await readdir(HERE)).filter((name) => name.endsWith('.ts') && name !== 'registry.ts').sort();
  for (const path of [...sources, join('..', '..', 'guest', 'image', 'packages.lock.json')])
    hash.update(await readFile(join(HERE, path)));
  return hash.digest('hex');
}

const stampOf = (name: string): string => join(OUT, `.${name}.stamp`);

async function isUpToDate(name: string, inputs: string): Promise<boolean> {
  if (!existsSync(join(OUT, name, 'index.json'))) return false;
  return (await readFile(stampOf(name), 'utf8').catch(() => '')) === inputs;
}

async function build(name: ImageName, inputs: string): Promise<void> {
  const { RECIPES } = await import('./recipes.js');
  const { LayoutWriter } = await import('./layout.js');
  const { createFolderAtomic, sweepTemporary } = await import('../../src/state/index.js');
  const started = performance.now();
  console.log(`test images: building ${name}`);
  await mkdir(OUT, { recursive: true });
  await sweepTemporary(OUT);
  await rm(stampOf(name), { force: true });
  await rm(join(OUT, name), { recursive: true, force: true });
  await createFolderAtomic(join(OUT, name), async (folder) => RECIPES[name](await LayoutWriter.begin(folder)), 0o755);
  await writeFile(stampOf(name), inputs);
  console.log(`test images: ${name} built in ${((performance.now() - started) / 1000).toFixed(1)} s`);
}

async function main(): Promise<void> {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: { force: { type: 'boolean', default: false }, all: { type: 'boolean', default: false } },
  });
  const unknown = positionals.find((name) => !isImageName(name));
  if (unknown !== undefined) throw new Error(`There is no test image ${unknown}; there are ${IMAGE_NAMES.join(', ')}.`);
  const asked = positionals.filter(isImageName);
  const names = asked.length > 0 && !values.all ? asked : IMAGE_NAMES;
  const inputs = await inputsDigest();
  const stale = async (): Promise<ImageName[]> => {
    const found: ImageName[] = [];
    for (const name of names) if (values.force || !(await isUpToDate(name, inputs))) found.push(name);
    return found;
  };
  if ((await stale()).length === 0) {
    console.log('test images are up to date');
    return;
  }
  const { withLock } = await import('../../src/state/index.js');
  const { cacheFolder } = await import('../../guest/image/download.js');
  await withLock(join(cacheFolder(), 'locks'), 'test images', async () => {
    // Whoever held the lock may have built some of them.
    for (const name of await stale()) await build(name, inputs);
  });
}

try {
  await main();
} catch (error) {
  console.error(`test images: ${error instanceof Error ? error.message : String(error)}`);
  process.exitCode = 1;
}
