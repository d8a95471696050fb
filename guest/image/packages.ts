import { existsSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { writeFileAtomic } from '../../src/state/index.js';
import { readDeb } from './deb.js';
import { CRUN_BUILD_PACKAGES } from './crun.js';
import { cachedDeb, fetchDeb, findSource, mirrorOf, PackageIndex, type DebianPackage } from './debian-archive.js';
import { isCached, NotOnServer, type Report } from './download.js';
import { userland, type PackageFile } from './userland.js';

/** What a package is for: it may have files in the image, compiles what is in the image, or is source of that. */
export type Role = 'guest' | 'build' | 'source';

/** A package of the lock file. */
export interface PinnedPackage extends DebianPackage {
  readonly role: Role;
}

/** Packages with their files in the cache. */
export type FetchedPackages = ReadonlyMap<PinnedPackage, string>;

/** Root packages of the guest image. The kernel's is the one that linux-image-amd64 stands for. */
const KERNEL_META = 'linux-image-amd64';
const ROOTS = ['busybox-static', 'crun'];

/** Whether this is the package with the kernel itself. */
export function isKernelPackage(pkg: DebianPackage): boolean {
  return /^linux-image-\d/.test(pkg.name);
}

/** The newest packages that the guest image may need, kernel first. */
async function resolvePackages(report: Report): Promise<PinnedPackage[]> {
  report('resolving the packages of Debian bookworm');
  const index = await PackageIndex.fetch(report);
  const kernel = index.find(KERNEL_META).depends.find((name) => name.startsWith('linux-image-'));
  if (kernel === undefined) throw new Error(`${KERNEL_META} depends on no kernel.`);
  const found = new Map<string, PinnedPackage>();
  const add = (pkg: DebianPackage, role: Role, key = pkg.name): void => {
    if (!found.has(key)) found.set(key, { ...pkg, role });
  };
  add(index.find(kernel).pkg, 'guest');
  for (const root of ROOTS) for (const pkg of index.closure(root)) add(pkg, 'guest');
  for (const name of CRUN_BUILD_PACKAGES) add(index.find(name).pkg, 'build');
  for (const file of await findSource('crun', report)) if (/\.tar\.xz$/.test(file.path)) add(file, 'source', file.path);
  return [...found.values()];
}

/** The pinned packages. @throws Error when the lock file is missing or damaged. */
export async function readLock(path: string): Promise<PinnedPackage[]> {
  const lock = JSON.parse(await readFile(path, 'utf8')) as { packages?: PinnedPackage[] };
  if (!Array.isArray(lock.packages)) throw new Error(`${path} lists no packages.`);
  return lock.packages;
}

/** Pins the newest packages, those only of which a file is used. */
export async function updateLock(path: string, report: Report): Promise<void> {
  const packages = await fetchPackages(await resolvePackages(report), report);
  const used = userland(await packageFiles(packages)).packages;
  const pinned = [...packages.keys()].filter(
    (pkg) => pkg.role !== 'guest' || isKernelPackage(pkg) || used.has(pkg.name),
  );
  const note = 'Packages of the guest image; written by npm run build:guest -- --update';
  await writeFileAtomic(path, `${JSON.stringify({ note, packages: pinned }, undefined, 2)}\n`, 0o644);
  for (const { name, version } of pinned) report(`pinned ${name} ${version}`);
}

/** Fetches packages into the cache, a few at a time. Tells of the whole and, on failure, of the package that failed. */
async function fetchPackages(packages: readonly PinnedPackage[], report: Report): Promise<FetchedPackages> {
  const fetched = new Map<PinnedPackage, string>();
  const waiting = [...packages];
  const absent = packages.filter((pkg) => !existsSync(cachedDeb(pkg)));
  if (absent.length > 0) {
    const megabytes = absent.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0) / 1e6;
    const mirrors = new Set(absent.map(({ archive }) => mirrorOf(archive)));
    report(`downloading ${absent.length} Debian packages (${megabytes.toFixed(1)} MB) from ${[...mirrors].join(', ')}`);
  }
  const worker = async (): Promise<void> => {
    for (let pkg = waiting.shift(); pkg; pkg = waiting.shift()) {
      // One that is there and still fetched is damaged: that is worth a line of its own.
      const tell = absent.includes(pkg) ? (): void => {} : report;
      fetched.set(pkg, await fetchDeb(pkg, tell));
    }
  };
  const results = await Promise.allSettled(
    Array.from({ length: 4 }, async () =>
      worker().catch((error: unknown) => {
        waiting.length = 0;
        throw error;
      }),
    ),
  );
  const failures = results.filter((result) => result.status === 'rejected').map(({ reason }) => reason as unknown);
  if (failures.length > 0) throw failures.find((error) => error instanceof NotOnServer) ?? failures[0];
  return new Map(packages.map((pkg) => [pkg, fetched.get(pkg) ?? '']));
}

/**
 * The packages to build from: the pinned ones; the newest ones when the mirror has dropped a pinned one, as it does at a point
 * release; those of the last image when the mirror cannot be asked but they are all in the cache.
 */
export async function packagesToUse(
  pinned: readonly PinnedPackage[],
  last: readonly PinnedPackage[] | undefined,
  report: Report,
): Promise<FetchedPackages> {
  try {
    return await fetchPackages(pinned, report);
  } catch (error) {
    if (error instanceof NotOnServer) {
      report(`NOTE: ${error.message}`);
      report('NOTE: the pinned packages are no longer on the mirror; the newest ones are taken instead.');
      report('NOTE: run npm run build:guest -- --update and commit guest/image/packages.lock.json.');
    }
    try {
      if (!(error instanceof NotOnServer)) throw error;
      return await fetchPackages(await resolvePackages(report), report);
    } catch (cause) {
      if (last && (await allCached(last))) {
        report(`NOTE: ${(cause as Error).message}`);
        report('NOTE: the packages of the last guest image are taken instead; they are all in the cache.');
        return fetchPackages(last, report);
      }
      throw new Error(
        `${(cause as Error).message} The guest image needs its Debian packages once from the network; LCOW_DEBIAN_MIRROR names another mirror.`,
        { cause },
      );
    }
  }
}

async function allCached(packages: readonly DebianPackage[]): Promise<boolean> {
  for (const pkg of packages) if (!(await isCached(cachedDeb(pkg), pkg))) return false;
  return packages.length > 0;
}

/** The files of all packages but the kernel's, by path; relative links in one folder are followed. */
export async function packageFiles(packages: FetchedPackages): Promise<(path: string) => PackageFile | undefined> {
  const files = new Map<string, PackageFile | string>();
  for (const [pkg, deb] of packages) {
    if (isKernelPackage(pkg) || pkg.role !== 'guest') continue;
    for (const entry of (await readDeb(deb, (path) => /^(usr\/)?(s?bin|lib|lib64)\//.test(path))).values()) {
      const target = entry.linkTarget;
      if (target === undefined) files.set(entry.path, { pkg: pkg.name, content: entry.content });
      else files.set(entry.path, target.startsWith('/') ? target.slice(1) : join(dirname(entry.path), target));
    }
  }
  const find = (path: string, depth = 0): PackageFile | undefined => {
    const found = files.get(path);
    return typeof found === 'string' ? (depth < 8 ? find(found, depth + 1) : undefined) : found;
  };
  return (path) => find(path);
}
