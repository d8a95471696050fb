/**
 * A small client of the Debian archive: release files, package indices, packages by content. It needs no apt, no root and
 * no Debian host; `xz` unpacks the indices, and `gpgv` with Debian's keyring checks signatures where the two are installed.
 */
import { existsSync } from 'node:fs';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { createReadStream } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, dirname, join } from 'node:path';
import { compareDebianVersions } from './debian-version.js';
import { cacheFolder, fetchBytes, fetchToFile, type Report } from './download.js';
import { run } from './programs.js';

/** One binary package, or one file of a source package, pinned by content. */
export interface DebianPackage {
  readonly name: string;
  readonly version: string;
  /** Which of the two archives: each has a mirror of its own. */
  readonly archive: 'debian' | 'debian-security';
  /** Below the archive's root: `pool/…/name_version_amd64.deb`, `pool/…/name_version.orig.tar.xz`. */
  readonly path: string;
  readonly sizeBytes: number;
  readonly sha256: string;
}

const SUITES = [
  { archive: 'debian', suite: 'bookworm' },
  { archive: 'debian', suite: 'bookworm-updates' },
  { archive: 'debian-security', suite: 'bookworm-security' },
] as const;

const KEYRING = '/usr/share/keyrings/debian-archive-keyring.gpg';

/** Root URL of an archive: `$LCOW_DEBIAN_MIRROR` and `$LCOW_DEBIAN_SECURITY_MIRROR`, else deb.debian.org. */
export function mirrorOf(archive: DebianPackage['archive'], env: NodeJS.ProcessEnv = process.env): string {
  const chosen = archive === 'debian' ? env['LCOW_DEBIAN_MIRROR'] : env['LCOW_DEBIAN_SECURITY_MIRROR'];
  return (chosen || `http://deb.debian.org/${archive}`).replace(/\/+$/, '');
}

/** Where a package lies in the cache once it has been fetched. */
export function cachedDeb(pkg: DebianPackage): string {
  // Two builds of one version differ in their digest, and both may be wanted.
  return join(cacheFolder(), 'deb', `${pkg.sha256.slice(0, 16)}_${basename(pkg.path)}`);
}

/** Makes sure of a package in the cache. @returns its path there. @throws NotOnServer when the mirror dropped it. */
export async function fetchDeb(pkg: DebianPackage, report: Report): Promise<string> {
  const path = cachedDeb(pkg);
  await fetchToFile({ ...pkg, url: `${mirrorOf(pkg.archive)}/${pkg.path}` }, path, report);
  return path;
}

/** The packages of bookworm with its updates and security fixes. */
export class PackageIndex {
  /** Name to the control paragraphs of its versions. */
  readonly #paragraphs = new Map<string, { archive: DebianPackage['archive']; text: string }[]>();

  /** Fetches the package indices. @throws Error as {@link readIndices} does */
  static async fetch(report: Report): Promise<PackageIndex> {
    const index = new PackageIndex();
    for await (const { archive, text } of readIndices('main/binary-amd64/Packages', report)) index.#add(archive, text);
    return index;
  }

  #add(archive: DebianPackage['archive'], packages: string): void {
    for (const text of packages.split('\n\n')) {
      const name = field(text, 'Package');
      if (name === undefined) continue;
      const known = this.#paragraphs.get(name);
      if (known) known.push({ archive, text });
      else this.#paragraphs.set(name, [{ archive, text }]);
    }
  }

  /** The highest version of a package, with what it depends on (the first of alternatives; version bounds are not read). */
  find(name: string): { pkg: DebianPackage; depends: string[] } {
    let best: { pkg: DebianPackage; depends: string[] } | undefined;
    for (const { archive, text } of this.#paragraphs.get(name) ?? []) {
      const pkg: DebianPackage = {
        name,
        version: need(text, 'Version', name),
        archive,
        path: need(text, 'Filename', name),
        sizeBytes: Number(need(text, 'Size', name)),
        sha256: need(text, 'SHA256', name),
      };
      if (best && compareDebianVersions(best.pkg.version, pkg.version) >= 0) continue;
      const depends = [field(text, 'Pre-Depends'), field(text, 'Depends')]
        .flatMap((list) => list?.split(',') ?? [])
        .map((item) => /^[a-z0-9][a-z0-9+.-]*/.exec(item.trim())?.[0])
        .filter((item) => item !== undefined);
      best = { pkg, depends };
    }
    if (!best) throw new Error(`Debian bookworm has no package ${name}.`);
    return best;
  }

  /** A package and all it depends on, sorted by name. */
  closure(name: string): DebianPackage[] {
    const found = new Map<string, DebianPackage>();
    const visit = (each: string): void => {
      if (found.has(each)) return;
      const { pkg, depends } = this.find(each);
      found.set(each, pkg);
      depends.forEach(visit);
    };
    visit(name);
    return [...found.values()].sort((a, b) => (a.name < b.name ? -1 : 1));
  }
}

/** The files of the highest version of a source package. */
export async function findSource(name: string, report: Report): Promise<DebianPackage[]> {
  let best: { version: string; files: DebianPackage[] } | undefined;
  for await (const { archive, text } of readIndices('main/source/Sources', report))
    for (const paragraph of text.split('\n\n')) {
      if (field(paragraph, 'Package') !== name) continue;
      const version = need(paragraph, 'Version', name);
      if (best && compareDebianVersions(best.version, version) >= 0) continue;
      const folder = need(paragraph, 'Directory', name);
      const list = /^Checksums-Sha256:\n((?: .*\n?)+)/m.exec(paragraph)?.[1] ?? '';
      const files = [...list.matchAll(/^ ([0-9a-f]{64}) (\d+) (\S+)$/gm)].map(([, sha256, size, file]) => {
        return { name, version, archive, path: `${folder}/${file!}`, sizeBytes: Number(size), sha256: sha256! };
      });
      best = { version, files };
    }
  if (!best) throw new Error(`Debian bookworm has no source package ${name}.`);
  return best.files;
}

/**
 * Fetches the signed release files and the indices of one kind that they vouch for.
 * @throws Error when a mirror cannot be reached, a signature is bad, a release has expired or an index does not match.
 */
async function* readIndices(
  path: string,
  report: Report,
): AsyncGenerator<{ archive: DebianPackage['archive']; text: string }> {
  const canVerify = await gpgvWorks();
  if (!canVerify)
    report(
      `signatures of the Debian archive are NOT checked: gpgv or ${KEYRING} is missing (packages gpgv, debian-archive-keyring)`,
    );
  for (const { archive, suite } of SUITES) {
    const root = `${mirrorOf(archive)}/dists/${suite}`;
    const release = await releaseText(`${root}/InRelease`, canVerify);
    checkRelease(release, suite);
    const file = indexOf(release, `${path}.xz`, suite);
    const cached = join(cacheFolder(), 'deb', 'index', `${file.sha256}.xz`);
    await fetchToFile({ ...file, url: `${root}/${dirname(path)}/by-hash/SHA256/${file.sha256}` }, cached, report);
    const text = await run('xz', ['--decompress', '--stdout'], { input: createReadStream(cached) });
    yield { archive, text: text.toString('utf8') };
  }
}

async function gpgvWorks(): Promise<boolean> {
  if (!existsSync(KEYRING)) return false;
  return run('gpgv', ['--version']).then(
    () => true,
    () => false,
  );
}

/** The signed text of an InRelease file. */
async function releaseText(url: string, verify: boolean): Promise<string> {
  const signed = await fetchBytes(url, 8 * 1024 * 1024);
  if (!verify) {
    const match = /^-----BEGIN PGP SIGNED MESSAGE-----\n(?:.+\n)*\n([\s\S]*)\n-----BEGIN PGP SIGNATURE-----$/m.exec(
      signed.toString('utf8'),
    );
    if (!match?.[1]) throw new Error(`${url} is not a signed release file.`);
    return match[1];
  }
  const folder = await mkdtemp(join(tmpdir(), 'lcow-release-'));
  try {
    await writeFile(join(folder, 'InRelease'), signed);
    const text = await run('gpgv', ['--quiet', '--keyring', KEYRING, '--output', '-', join(folder, 'InRelease')]);
    return text.toString('utf8');
  } catch (error) {
    throw new Error(`The signature of ${url} is not good: ${(error as Error).message}`, { cause: error });
  } finally {
    await rm(folder, { recursive: true });
  }
}

function checkRelease(release: string, suite: string): void {
  const codename = field(release, 'Codename');
  if (codename !== suite && codename !== 'bookworm')
    throw new Error(`The release file of ${suite} is of ${codename ?? 'no release'}.`);
  const until = field(release, 'Valid-Until');
  if (until !== undefined && Date.parse(until) < Date.now())
    throw new Error(
      `The release file of ${suite} expired on ${until}: the mirror is out of date, or this host's clock is wrong.`,
    );
}

/** Size and digest of an index, from the release file's SHA256 list. */
function indexOf(release: string, path: string, suite: string): { sha256: string; sizeBytes: number } {
  const list = /^SHA256:\n((?: .*\n?)+)/m.exec(release)?.[1] ?? '';
  const line = list
    .split('\n')
    .map((text) => text.trim().split(/\s+/))
    .find((words) => words[2] === path);
  if (!line?.[0] || !/^[0-9a-f]{64}$/.test(line[0]))
    throw new Error(`The release file of ${suite} does not list ${path}.`);
  return { sha256: line[0], sizeBytes: Number(line[1]) };
}

function field(paragraph: string, name: string): string | undefined {
  const start = paragraph.startsWith(`${name}: `) ? 0 : paragraph.indexOf(`\n${name}: `) + 1;
  if (start === 0 && !paragraph.startsWith(`${name}: `)) return undefined;
  const end = paragraph.indexOf('\n', start);
  return paragraph.slice(start + name.length + 2, end < 0 ? undefined : end).trim();
}

function need(paragraph: string, name: string, pkg: string): string {
  const value = field(paragraph, name);
  if (value === undefined) throw new Error(`The package index has no ${name} for ${pkg}.`);
  return value;
}
