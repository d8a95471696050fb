import { basename } from 'node:path';
import { modinfo, slimModule } from './elf.js';

/**
 * What the guest needs of the kernel's modules, in the order of loading; what these depend on comes by itself.
 * The first two are all the agent needs to answer the host, so it can load the rest while the host talks to it.
 */
const WANTED = [
  'virtio_pci',
  'virtio_console',
  // disks
  'virtio_scsi',
  'sd_mod',
  'virtio_blk',
  // ext4 asks the crypto API for crc32c by name, which no dependency shows
  'crc32c_generic',
  'ext4',
  'overlay',
  // network, random numbers
  'virtio_net',
  'virtio_rng',
  'vmgenid',
  // host folders
  '9pnet_virtio',
  '9pnet_fd',
  '9p',
];

/** Folders below kernel/ where those modules and their dependencies live; the others are not even unpacked. */
const FOLDERS =
  /\/kernel\/(arch\/x86\/crypto|block|crypto|drivers\/(block|char|net|scsi|virtio|virt)|fs|lib|net\/(9p|core))\//;

/** Whether a file of the kernel package may be needed by {@link selectModules}. */
export function mayBeModule(path: string): boolean {
  return path.endsWith('/modules.builtin') || (path.endsWith('.ko') && FOLDERS.test(path));
}

/** A module as the kernel names it: dashes of the file name are underscores. */
function moduleName(path: string): string {
  return basename(path, '.ko').replaceAll('-', '_');
}

export interface KernelModule {
  /** File name in the initrd, `ext4.ko`. */
  readonly file: string;
  readonly content: Buffer;
}

/**
 * The wanted modules with all they depend on, each after its dependencies, slimmed.
 * @param files - the package's modules and modules.builtin, by path
 * @throws Error when a module is neither there nor built in.
 */
export function selectModules(files: ReadonlyMap<string, Buffer>): KernelModule[] {
  const builtIn = new Set<string>();
  const available = new Map<string, { path: string; content: Buffer }>();
  for (const [path, content] of files) {
    if (path.endsWith('.ko')) available.set(moduleName(path), { path, content });
    else for (const line of content.toString('utf8').split('\n')) if (line) builtIn.add(moduleName(line));
  }
  const chosen = new Map<string, KernelModule>();
  const visit = (name: string, neededBy: string): void => {
    if (chosen.has(name) || builtIn.has(name)) return;
    const module = available.get(name);
    if (!module) throw new Error(`The kernel package has no module ${name}, needed by ${neededBy}.`);
    const depends = modinfo(module.content).find(({ key }) => key === 'depends')?.value ?? '';
    for (const dependency of depends.split(',')) if (dependency) visit(moduleName(dependency), name);
    chosen.set(name, { file: `${name}.ko`, content: slimModule(module.content) });
  };
  for (const name of WANTED) visit(name, 'the guest');
  return [...chosen.values()];
}
