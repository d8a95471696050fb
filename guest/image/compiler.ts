import { mkdir, symlink, writeFile } from 'node:fs/promises';
import { availableParallelism } from 'node:os';
import { dirname, join } from 'node:path';
import { readDeb } from './deb.js';
import { run } from './programs.js';

/**
 * The packages of Debian's C compiler for static programs. Its parts run from the folder they are unpacked in, through their own
 * dynamic loader: nothing of the host is used, so any x86-64 Linux makes the same bytes.
 */
export const COMPILER_PACKAGES = [
  ...['cpp-12', 'libisl23', 'libmpc3', 'libmpfr6', 'libgmp10', 'zlib1g', 'libzstd1', 'libc6'],
  ...['binutils-x86-64-linux-gnu', 'libbinutils', 'libctf0', 'libjansson4'],
  ...['libc6-dev', 'linux-libc-dev', 'libgcc-12-dev'],
];

const TRIPLET = 'x86_64-linux-gnu';
const GCC = `usr/lib/gcc/${TRIPLET}/12`;

/** What of the packages is needed; documentation, sanitizers and other languages are not. */
function isPart(path: string): boolean {
  if (path.startsWith(`${GCC}/`)) return /\/(cc1|crt\w+\.o|libgcc(_eh)?\.a)$|\/include\//.test(path);
  if (path.startsWith('usr/include/')) return true;
  if (path.startsWith('usr/bin/')) return /-(as|ld\.bfd)$/.test(path);
  return new RegExp(`^(usr/)?lib/${TRIPLET}/[^/]+\\.(so[.0-9]*|a|o)$`).test(path);
}

/** A C compiler unpacked into a folder. Sources are compiled from their own folder by relative names, so no path gets into the output. */
export class Compiler {
  readonly #folder: string;

  private constructor(folder: string) {
    this.#folder = folder;
  }

  /** Unpacks the packages of {@link COMPILER_PACKAGES} and of the libraries to compile with. */
  static async unpack(debs: readonly string[], folder: string): Promise<Compiler> {
    for (const deb of debs)
      for (const { path, content, mode, linkTarget } of (await readDeb(deb, isPart)).values()) {
        const target = join(folder, path);
        await mkdir(dirname(target), { recursive: true });
        if (linkTarget === undefined) await writeFile(target, content, { mode });
        else if (!linkTarget.startsWith('/')) await symlink(linkTarget, target);
      }
    return new Compiler(folder);
  }

  async #run(program: string, args: readonly string[], cwd: string): Promise<void> {
    const libraries = ['lib', 'usr/lib'].map((each) => join(this.#folder, each, TRIPLET));
    const loader = join(this.#folder, 'lib', TRIPLET, 'ld-linux-x86-64.so.2');
    const own = ['--inhibit-cache', '--library-path', libraries.join(':'), join(this.#folder, program)];
    await run(loader, [...own, ...args], { cwd, env: { PATH: '/nonexistent', LC_ALL: 'C', SOURCE_DATE_EPOCH: '0' } });
  }

  /** Compiles C files, all processors at work. @returns the objects, in the order of the sources */
  async compile(sources: readonly string[], flags: readonly string[], cwd: string): Promise<string[]> {
    const include = [`${GCC}/include`, `usr/include/${TRIPLET}`, 'usr/include'];
    const system = include.flatMap((path) => ['-isystem', join(this.#folder, path)]);
    const base = ['-quiet', '-nostdinc', '-imultiarch', TRIPLET, '-mtune=generic', '-march=x86-64'];
    // Headers may say where they are: by a name that does not change with the folder.
    const steady = [`-ffile-prefix-map=${this.#folder}=.`];
    const waiting = [...sources];
    const worker = async (): Promise<void> => {
      for (let source = waiting.shift(); source !== undefined; source = waiting.shift()) {
        const [assembly, object] = [`${source}.s`, `${source}.o`];
        await this.#run(`${GCC}/cc1`, [...base, ...steady, ...flags, ...system, source, '-o', assembly], cwd);
        await this.#run(`usr/bin/${TRIPLET}-as`, ['--64', '-o', object, assembly], cwd);
      }
    };
    // All have ended, also when one fails: the caller is about to delete the folder.
    const results = await Promise.allSettled(Array.from({ length: availableParallelism() }, worker));
    for (const result of results) if (result.status === 'rejected') throw result.reason;
    return sources.map((source) => `${source}.o`);
  }

  /** Links a static program, without symbols. */
  async link(objects: readonly string[], libraries: readonly string[], output: string, cwd: string): Promise<void> {
    const lib = join(this.#folder, 'usr', 'lib', TRIPLET);
    const gcc = join(this.#folder, GCC);
    await this.#run(
      `usr/bin/${TRIPLET}-ld.bfd`,
      [
        ...[
          '-m',
          'elf_x86_64',
          '-static',
          '-s',
          '--build-id=none',
          '--gc-sections',
          '-z',
          'noexecstack',
          '-z',
          'relro',
        ],
        ...['-o', output, join(lib, 'crt1.o'), join(lib, 'crti.o'), join(gcc, 'crtbeginT.o')],
        ...objects,
        ...['-L', lib, '-L', gcc, '--start-group', ...libraries.map((name) => `-l${name}`)],
        ...['-lgcc', '-lgcc_eh', '-lc', '--end-group', join(gcc, 'crtend.o'), join(lib, 'crtn.o')],
      ],
      cwd,
    );
  }
}
