import { basename } from 'node:path';
import { interpreter, neededLibraries } from './elf.js';
import type { InitrdEntry } from './initrd-cpio.js';

/** Debian's name for the folder of 64-bit x86 libraries; the dynamic loader looks there first. */
const LIBRARIES = 'lib/x86_64-linux-gnu';

/** busybox applets with a link of their own, for a person at a guest shell and for the agent's tests. */
const APPLETS =
  'sh cat chmod cp cut date dd df dmesg du echo env find free grep head hexdump hostname id ip kill ln ls lsmod ' +
  'mkdir mknod more mount mv nc netstat ping ps pwd readlink rm sed sleep sort stat stty sync tail tar tee top touch ' +
  'true false umount uname vi wc which xargs';

/** A file of a package, with links of its package resolved. */
export interface PackageFile {
  readonly pkg: string;
  readonly content: Buffer;
}

/** Program and libraries of the initrd, and the packages they came from. */
export interface Userland {
  readonly entries: Map<string, InitrdEntry>;
  readonly packages: ReadonlySet<string>;
}

/**
 * busybox, crun and what crun is linked with.
 * @param find - a file of the packages by its path, without leading slash
 * @param staticCrun - crun as a static program; the packages' one, with its libraries, when absent
 * @throws Error naming the file or library that no package has
 */
export function userland(find: (path: string) => PackageFile | undefined, staticCrun?: Buffer): Userland {
  const entries = new Map<string, InitrdEntry>();
  const packages = new Set<string>();
  const install = (from: string, to: string): Buffer => {
    const file = find(from);
    if (!file) throw new Error(`No package of the guest image has /${from}.`);
    packages.add(file.pkg);
    entries.set(to, { type: 'file', content: file.content, mode: 0o755 });
    return file.content;
  };

  install('bin/busybox', 'bin/busybox');
  for (const applet of APPLETS.split(' ')) entries.set(`bin/${applet}`, { type: 'link', target: 'busybox' });

  const installLibraries = (elf: Buffer): void => {
    for (const soname of neededLibraries(elf)) {
      const to = `${LIBRARIES}/${soname}`;
      // The loader itself is needed by libc under its soname; it is in /lib64 already.
      if (entries.has(to) || entries.has(`lib64/${soname}`)) continue;
      const from = [to, `usr/${to}`].find((path) => find(path));
      if (!from) throw new Error(`No package of the guest image has the library ${soname}.`);
      installLibraries(install(from, to));
    }
  };
  if (staticCrun) {
    entries.set('usr/bin/crun', { type: 'file', content: staticCrun, mode: 0o755 });
    return { entries, packages };
  }
  const crun = install('usr/bin/crun', 'usr/bin/crun');
  const loader = interpreter(crun);
  if (loader) {
    const to = loader.slice(1);
    install([to, `${LIBRARIES}/${basename(to)}`].find((path) => find(path)) ?? to, to);
  }
  installLibraries(crun);
  return { entries, packages };
}

/** Folders, devices and the few files of /etc that are there before the agent starts. */
export function skeleton(): Map<string, InitrdEntry> {
  const entries = new Map<string, InitrdEntry>();
  for (const path of ['dev', 'etc', 'mnt', 'proc', 'root', 'run', 'sbin', 'sys', 'var'])
    entries.set(path, { type: 'folder' });
  entries.set('tmp', { type: 'folder', mode: 0o1777 });
  // The kernel opens /dev/console for init before anything is mounted.
  entries.set('dev/console', { type: 'device', mode: 0o600, major: 5, minor: 1 });
  entries.set('dev/null', { type: 'device', mode: 0o666, major: 1, minor: 3 });
  entries.set('etc/passwd', { type: 'file', content: Buffer.from('root:x:0:0:root:/root:/bin/sh\n') });
  entries.set('etc/group', { type: 'file', content: Buffer.from('root:x:0:\n') });
  return entries;
}
