import { mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import { createHash } from 'node:crypto';
import { dirname, join } from 'node:path';
import { createFolderAtomic, writeFileAtomic } from '../../src/state/index.js';
import { buildAgent } from './agent.js';
import { CRUN_BUILD_PACKAGES, staticCrun } from './crun.js';
import { readDeb } from './deb.js';
import type { DebianPackage } from './debian-archive.js';
import { cacheFolder, type Report } from './download.js';
import { writeInitrd } from './initrd-cpio.js';
import { extractVmlinux } from './kernel.js';
import { inputsDigest } from './inputs.js';
import { GUEST_FILES, type GuestManifest } from './manifest.js';
import { mayBeModule, selectModules, type KernelModule } from './modules.js';
import { isKernelPackage, packageFiles, type FetchedPackages, type PinnedPackage } from './packages.js';
import { skeleton, userland } from './userland.js';

/** Where the guest finds its modules, and in this folder the file that lists them in the order of loading. */
const MODULES_FOLDER = 'lib/modules/lcow';

interface KernelParts {
  readonly release: string;
  readonly vmlinux: Buffer;
  readonly modules: readonly KernelModule[];
}

export interface ImageInputs {
  readonly packages: FetchedPackages;
  readonly agentFolder: string;
  readonly agentVersion: string;
  /** Digest of all inputs, for the manifest. */
  readonly inputs: string;
  /** Source files of this builder: they decide what the kernel parts in the cache are good for. */
  readonly builderSources: readonly string[];
  /** Do not take the kernel's unpacked parts from the cache. */
  readonly fresh: boolean;
}

/** Builds the image and puts it in `out`: each file whole or as it was, the manifest last. */
export async function buildImage(inputs: ImageInputs, out: string, report: Report): Promise<GuestManifest> {
  const [kernel, agent, crun, files] = await Promise.all([
    kernelParts(inputs, report),
    buildAgent(inputs.agentFolder, inputs.agentVersion, report),
    compiledCrun(inputs, report),
    packageFiles(inputs.packages),
  ]);
  const user = userland(files, crun);
  const entries = new Map([...skeleton(), ...user.entries]);
  for (const { file, content } of kernel.modules) entries.set(`${MODULES_FOLDER}/${file}`, { type: 'file', content });
  const modules = kernel.modules.map(({ file }) => file);
  entries.set(`${MODULES_FOLDER}/order`, { type: 'file', content: Buffer.from(modules.map((m) => `${m}\n`).join('')) });
  entries.set('init', { type: 'file', content: agent.program, mode: 0o755 });
  entries.set('sbin/lcow-agent', { type: 'link', target: '/init' });
  // The agent tells it to the host; running crun to ask would cost time at every start.
  const runtime = [...inputs.packages.keys()].find(({ name }) => name === 'crun')?.version ?? 'unknown';
  entries.set('etc/lcow', { type: 'folder' });
  entries.set('etc/lcow/runtime-version', { type: 'file', content: Buffer.from(`crun ${runtime}\n`) });
  const initrd = writeInitrd(entries);

  const describe = (content: Buffer): { sizeBytes: number; sha256: string } => ({
    sizeBytes: content.length,
    sha256: createHash('sha256').update(content).digest('hex'),
  });
  const manifest: GuestManifest = {
    formatVersion: 1,
    inputs: inputs.inputs,
    kernelRelease: kernel.release,
    agentVersion: inputs.agentVersion,
    goVersion: agent.goVersion,
    files: { vmlinux: describe(kernel.vmlinux), 'initrd.img': describe(initrd) },
    modules,
    crun: crun ? 'static' : 'dynamic',
    packages: [...inputs.packages.keys()],
  };
  await mkdir(out, { recursive: true });
  await writeFileAtomic(join(out, GUEST_FILES.kernel), kernel.vmlinux, 0o644);
  await writeFileAtomic(join(out, GUEST_FILES.initrd), initrd, 0o644);
  await writeFileAtomic(join(out, GUEST_FILES.manifest), `${JSON.stringify(manifest, undefined, 2)}\n`, 0o644);
  return manifest;
}

/** crun compiled as a static program, or undefined where Debian's compiler cannot run. */
async function compiledCrun(inputs: ImageInputs, report: Report): Promise<Buffer | undefined> {
  const packages = [...inputs.packages].filter(
    ([pkg]) => pkg.role === 'source' || CRUN_BUILD_PACKAGES.includes(pkg.name),
  );
  const sourceFile = (kind: RegExp): [PinnedPackage, string] => {
    const found = packages.find(([pkg]) => pkg.role === 'source' && kind.test(pkg.path));
    if (!found) throw new Error(`The guest image's packages lack the source of crun, ${kind.source}.`);
    return found;
  };
  const [{ version }, original] = sourceFile(/\.orig\.tar\.xz$/);
  const [, debian] = sourceFile(/\.debian\.tar\.xz$/);
  const debs = packages.filter(([pkg]) => pkg.role !== 'source').map(([, deb]) => deb);
  const digests = packages.map(([pkg]) => pkg.sha256).sort();
  try {
    return await staticCrun({ version, original, debian }, debs, digests, inputs.fresh, report);
  } catch (error) {
    report(`NOTE: crun cannot be compiled here: ${(error as Error).message}`);
    report("NOTE: Debian's own crun is taken instead. It works, but starts containers more slowly.");
    return undefined;
  }
}

/** vmlinux and modules. Unpacking them takes most of a build, and they change seldom: they are kept in the cache. */
async function kernelParts(inputs: ImageInputs, report: Report): Promise<KernelParts> {
  const [pkg, deb] = [...inputs.packages].find(([each]) => isKernelPackage(each)) ?? [];
  if (!pkg || deb === undefined) throw new Error('The guest image has no kernel package.');
  const key = await inputsDigest(inputs.builderSources, [pkg.sha256]);
  const folder = join(cacheFolder(), 'kernel', `${pkg.version}-${key.slice(0, 16)}`);
  if (!inputs.fresh) {
    const cached = await cachedParts(folder);
    if (cached) return cached;
  }
  const parts = await unpackKernel(pkg, deb, report);
  try {
    // One set of parts is enough: those of older builders and kernels go.
    await rm(dirname(folder), { recursive: true, force: true });
    await mkdir(dirname(folder), { recursive: true });
    await createFolderAtomic(folder, async (temporary) => {
      await writeFile(join(temporary, 'vmlinux'), parts.vmlinux);
      for (const { file, content } of parts.modules) await writeFile(join(temporary, file), content);
      const index = { release: parts.release, modules: parts.modules.map(({ file }) => file) };
      await writeFile(join(temporary, 'index.json'), JSON.stringify(index));
    });
  } catch {
    report('the unpacked kernel cannot be kept in the cache; the next build unpacks it again');
  }
  return parts;
}

async function cachedParts(folder: string): Promise<KernelParts | undefined> {
  try {
    const index = JSON.parse(await readFile(join(folder, 'index.json'), 'utf8')) as {
      release: string;
      modules: string[];
    };
    return {
      release: index.release,
      vmlinux: await readFile(join(folder, 'vmlinux')),
      modules: await Promise.all(
        index.modules.map(async (file) => ({ file, content: await readFile(join(folder, file)) })),
      ),
    };
  } catch {
    return undefined;
  }
}

async function unpackKernel(pkg: DebianPackage, deb: string, report: Report): Promise<KernelParts> {
  report(`unpacking ${pkg.name} ${pkg.version}`);
  const files = await readDeb(deb, (path) => path.startsWith('boot/vmlinuz-') || mayBeModule(path));
  const image = [...files.values()].find(({ path }) => path.startsWith('boot/vmlinuz-'));
  if (!image) throw new Error(`${pkg.name} has no kernel in /boot.`);
  return {
    release: image.path.slice('boot/vmlinuz-'.length),
    vmlinux: await extractVmlinux(image.content),
    modules: selectModules(new Map([...files.values()].map(({ path, content }) => [path, content]))),
  };
}
