import { mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { writeFileAtomic } from '../../src/state/index.js';
import { Compiler, COMPILER_PACKAGES } from './compiler.js';
import { readTarXz } from './deb.js';
import { cacheFolder, inWorkFolder, type Report } from './download.js';
import { interpreter } from './elf.js';
import { inputsDigest } from './inputs.js';
import { applyPatch } from './patch.js';

/** Packages to build crun with, besides its source. */
export const CRUN_BUILD_PACKAGES = [...COMPILER_PACKAGES, 'libseccomp-dev', 'libcap-dev', 'libyajl-dev'];

/** Debian's source package of crun, as files in the cache. */
export interface CrunSource {
  /** Debian version, `1.8.1-1+deb12u1`. */
  readonly version: string;
  readonly original: string;
  /** The `.debian.tar.xz` with Debian's patches. */
  readonly debian: string;
}

/** What crun's configure script finds out, for Debian bookworm; systemd, CRIU and loadable handlers are left out. */
const CONFIGURATION = [
  ...['CAP', 'COPY_FILE_RANGE', 'DLFCN_H', 'EBPF', 'ERROR_H', 'FGETPWENT_R', 'FGETXATTR', 'INTTYPES_H', 'LINUX_BPF_H'],
  ...['FSCONFIG_CMD_CREATE_LINUX_MOUNT_H', 'FSCONFIG_CMD_CREATE_SYS_MOUNT_H', 'LINUX_OPENAT2_H', 'MEMORY_H', 'SECCOMP'],
  ...['SECCOMP_GET_NOTIF_SIZES', 'SECCOMP_H', 'STATX', 'STDATOMIC_H', 'STDINT_H', 'STDLIB_H', 'STRINGS_H', 'STRING_H'],
  ...['SYS_CAPABILITY_H', 'SYS_STAT_H', 'SYS_TYPES_H', 'UNISTD_H'],
].map((name) => `#define HAVE_${name} 1\n`);

const FLAGS = [
  ...['-O2', '-fno-pie', '-ffunction-sections', '-fdata-sections', '-fstack-protector-strong', '-w'],
  ...['-D_FORTIFY_SOURCE=2', '-DHAVE_CONFIG_H', '-DCRUN_LIBDIR="/usr/lib/crun"'],
  ...['-I.', '-Isrc', '-Ilibocispec/src'],
];

function isSource(path: string): boolean {
  // The image specification, tests and generators of the OCI bindings are of no use to a runtime.
  if (path.startsWith('libocispec/src/ocispec/')) return /\/(json_common|read-file|runtime_spec_\w+)\.c$/.test(path);
  return /^src\/([^/]+|libcrun\/[^/]+|libcrun\/handlers\/[^/]+)\.c$/.test(path);
}

/**
 * crun as a static program, compiled from Debian's source package with Debian's compiler: under emulation the dynamic one spends
 * two thirds of its time on linking its eleven libraries. Kept in the cache, for it takes some seconds and changes seldom.
 * @param debs - the files of {@link CRUN_BUILD_PACKAGES}
 * @throws Error when it does not compile; where the compiler cannot run
 */
export async function staticCrun(
  source: CrunSource,
  debs: readonly string[],
  digests: readonly string[],
  fresh: boolean,
  report: Report,
): Promise<Buffer> {
  const here = ['crun.ts', 'compiler.ts', 'patch.ts'].map((name) => join(import.meta.dirname, name));
  const key = await inputsDigest(here, digests);
  const cached = join(cacheFolder(), 'crun', key.slice(0, 32));
  if (!fresh) {
    const found = await readFile(cached).catch(() => undefined);
    if (found) return found;
  }
  report(`compiling crun ${source.version} as a static program`);
  return inWorkFolder('crun', async (folder) => {
    const compiler = await Compiler.unpack(debs, join(folder, 'compiler'));
    const sources = await unpackSource(source, join(folder, 'crun'));
    const cwd = join(folder, 'crun');
    const objects = await compiler.compile(sources, FLAGS, cwd);
    await compiler.link(objects, ['seccomp', 'cap', 'yajl_s'], 'crun', cwd);
    const program = await readFile(join(cwd, 'crun'));
    if (interpreter(program) !== undefined) throw new Error('The compiled crun is not static.');
    await rm(dirname(cached), { recursive: true, force: true });
    await mkdir(dirname(cached), { recursive: true });
    await writeFileAtomic(cached, program, 0o755);
    return program;
  });
}

/** Unpacks and patches the source as dpkg-source does. @returns the C files, sorted */
async function unpackSource(source: CrunSource, folder: string): Promise<string[]> {
  const files = new Map<string, string>();
  for (const { path, content } of (await readTarXz(source.original, (each) => /\.[ch]$/.test(each))).values())
    files.set(path.slice(path.indexOf('/') + 1), content.toString('utf8'));
  const patches = await readTarXz(source.debian, (path) => path.startsWith('debian/patches/'));
  const text = (name: string): string => patches.get(`debian/patches/${name}`)?.content.toString('utf8') ?? '';
  for (const name of text('series').split('\n')) {
    if (name.trim() === '' || name.startsWith('#')) continue;
    const changed = applyPatch(text(name.trim()), (path) => files.get(path) ?? '');
    for (const [path, content] of changed) files.set(path, content);
  }
  files.set('config.h', configuration(source.version));
  files.set('git-version.h', files.get('.tarball-git-version.h') ?? '#define GIT_VERSION "unknown"\n');
  for (const [path, content] of files) {
    await mkdir(join(folder, dirname(path)), { recursive: true });
    await writeFile(join(folder, path), content);
  }
  return [...files.keys()].filter(isSource).sort();
}

function configuration(version: string): string {
  const upstream = version.replace(/-[^-]*$/, '');
  return [
    ...CONFIGURATION,
    '#define SECCOMP_ARCH_RESOLVE_NAME 1\n',
    '#define LIBCRUN_PUBLIC __attribute__((visibility("default"))) extern\n',
    `#define PACKAGE_NAME "crun"\n#define PACKAGE_VERSION "${upstream}"\n#define PACKAGE_STRING "crun ${upstream}"\n`,
    `#define PACKAGE_BUGREPORT "https://bugs.debian.org"\n#define PACKAGE_URL ""\n#define VERSION "${upstream}"\n`,
  ].join('');
}
