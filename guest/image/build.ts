/**
 * Builds the guest image (kernel, initrd, manifest) into guest/out. Modules that only a real build needs are loaded when it comes to that, so that an up-to-date image costs little.
 */
import { readdir, readFile } from 'node:fs/promises';
import { join, relative, resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { withLock } from '../../src/state/index.js';
import { agentSources } from './agent.js';
import { cacheFolder, sweepKilledBuilds } from './download.js';
import { plannedGo, requiredGo } from './go-toolchain.js';
import { inputsDigest } from './inputs.js';
import { GUEST_FILES, isUpToDate, readManifest, type GuestManifest } from './manifest.js';

const USAGE = `Usage: npm run build:guest -- [options]
  --out DIR   where to put the image (guest/out)
  --force     build even when the image is up to date
  --fresh     as --force, and unpack the kernel anew instead of taking its parts from the cache
  --update    take the newest Debian packages and pin them in guest/image/packages.lock.json`;

const HERE = import.meta.dirname;
const LOCK_FILE = join(HERE, 'packages.lock.json');
const AGENT_FOLDER = resolve(HERE, '..', 'agent');

/** What {@link buildGuest} is asked for; see USAGE. */
export interface BuildOptions {
  readonly out: string;
  readonly force?: boolean;
  readonly fresh?: boolean;
  readonly update?: boolean;
  readonly report: (line: string) => void;
}

/** Builds the guest image unless it is up to date. @returns whether it was built, and what it is made of. */
export async function buildGuest(options: BuildOptions): Promise<{ built: boolean; manifest: GuestManifest }> {
  const { out, report } = options;
  if (options.update) {
    const { updateLock } = await import('./packages.js');
    await updateLock(LOCK_FILE, report);
  }
  const builderSources = (await readdir(HERE))
    .filter((name) => name.endsWith('.ts'))
    .sort()
    .map((name) => join(HERE, name));
  const agentVersion = await packageVersion();
  const digest = async (): Promise<string> => {
    const go = await plannedGo(await requiredGo(join(AGENT_FOLDER, 'go.mod')));
    const files = [LOCK_FILE, ...builderSources, ...(await agentSources(AGENT_FOLDER))];
    return inputsDigest(files, [agentVersion, go.version]);
  };
  const mayReuse = !options.force && !options.fresh;
  const upToDate = async (inputs: string): Promise<GuestManifest | undefined> =>
    mayReuse && (await isUpToDate(out, inputs)) ? readManifest(out) : undefined;
  const found = await upToDate(await digest());
  if (found) return { built: false, manifest: found };

  return withLock(join(cacheFolder(), 'locks'), 'guest image', async () => {
    // Whoever held the lock may have built what is wanted; and sources may have changed since.
    const inputs = await digest();
    const meanwhile = await upToDate(inputs);
    if (meanwhile) return { built: false, manifest: meanwhile };
    await sweepKilledBuilds(out);
    const { packagesToUse, readLock } = await import('./packages.js');
    const { buildImage } = await import('./image.js');
    const packages = await packagesToUse(await readLock(LOCK_FILE), (await readManifest(out))?.packages, report);
    const ingredients = { packages, agentFolder: AGENT_FOLDER, agentVersion, inputs, builderSources };
    const manifest = await buildImage({ ...ingredients, fresh: options.fresh ?? false }, out, report);
    return { built: true, manifest };
  });
}

async function packageVersion(): Promise<string> {
  const text = await readFile(resolve(HERE, '..', '..', 'package.json'), 'utf8');
  return (JSON.parse(text) as { version: string }).version;
}

function describe(manifest: GuestManifest): string {
  const megabytes = (bytes: number): string => `${(bytes / 1e6).toFixed(1)} MB`;
  const packages = manifest.packages.filter(({ role }) => role === 'guest');
  const isIn = (name: string): boolean => /^(linux-image|busybox|crun)/.test(name) || manifest.crun === 'dynamic';
  const rows = packages.filter(({ name }) => isIn(name)).map(({ name, version }) => [name, version] as const);
  const crun = [
    '',
    `crun is ${manifest.crun === 'static' ? 'compiled from its source, static' : "Debian's, dynamic"}`,
  ] as const;
  const agent = ['lcow-agent', `${manifest.agentVersion} (Go ${manifest.goVersion})`] as const;
  const width = Math.max(...rows.map(([name]) => name.length));
  return [
    ...[...rows, crun, agent].map(([name, version]) => `  ${name.padEnd(width)}  ${version}`),
    `  ${GUEST_FILES.kernel} ${megabytes(manifest.files.vmlinux.sizeBytes)}, kernel ${manifest.kernelRelease}`,
    `  ${GUEST_FILES.initrd} ${megabytes(manifest.files['initrd.img'].sizeBytes)}, ${manifest.modules.length} modules`,
  ].join('\n');
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      out: { type: 'string', default: resolve(HERE, '..', 'out') },
      force: { type: 'boolean', default: false },
      fresh: { type: 'boolean', default: false },
      update: { type: 'boolean', default: false },
      help: { type: 'boolean', short: 'h', default: false },
    },
  });
  if (values.help) {
    console.log(USAGE);
    return;
  }
  const started = performance.now();
  const out = resolve(values.out);
  const { built, manifest } = await buildGuest({
    ...values,
    out,
    report: (line) => console.log(`guest image: ${line}`),
  });
  if (!built) {
    console.log('guest image is up to date');
    return;
  }
  const seconds = ((performance.now() - started) / 1000).toFixed(1);
  console.log(`guest image built in ${seconds} s: ${relative(process.cwd(), out) || '.'}\n${describe(manifest)}`);
}

if (import.meta.filename === resolve(process.argv[1] ?? '')) {
  try {
    await main();
  } catch (error) {
    console.error(`guest image: ${error instanceof Error ? error.message : String(error)}`);
    process.exitCode = 1;
  }
}
