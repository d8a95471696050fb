import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, posix } from 'node:path';
import { Readable } from 'node:stream';
import { pack } from 'tar-stream';
import { fetchDeb } from '../../guest/image/debian-archive.js';
import { readDeb } from '../../guest/image/deb.js';
import { readLock } from '../../guest/image/packages.js';
import { pipeThrough, run } from '../../guest/image/programs.js';
import { EPOCH } from './layout.js';

/** One entry of a layer: a string is a text file; folders end in a slash. */
type Entry =
  | string
  | Buffer
  | { readonly content?: string | Buffer; readonly mode?: number; readonly uid?: number; readonly gid?: number }
  | { readonly symlink: string }
  | { readonly hardlink: string };

/** A layer's tar from its entries, in their order. */
export function tarOf(entries: Readonly<Record<string, Entry>>): Readable {
  const tar = pack();
  for (const [path, value] of Object.entries(entries)) {
    const isFolder = path.endsWith('/');
    const base = { name: path, mtime: EPOCH, uid: 0, gid: 0 };
    if (typeof value === 'string' || Buffer.isBuffer(value)) {
      tar.entry({ ...base, mode: 0o644 }, value);
    } else if ('symlink' in value) {
      tar.entry({ ...base, type: 'symlink', linkname: value.symlink, mode: 0o777 });
    } else if ('hardlink' in value) {
      tar.entry({ ...base, type: 'link', linkname: value.hardlink, mode: 0o755 });
    } else {
      const { content = '', mode = isFolder ? 0o755 : 0o644, uid = 0, gid = 0 } = value;
      const header = { ...base, mode, uid, gid };
      if (isFolder) tar.entry({ ...header, type: 'directory' });
      else tar.entry(header, content);
    }
  }
  tar.finalize();
  return Readable.from(tar);
}

/** busybox of the Debian package that the guest image pins. */
async function busyboxProgram(): Promise<Buffer> {
  const lock = await readLock(join(import.meta.dirname, '..', '..', 'guest', 'image', 'packages.lock.json'));
  const pkg = lock.find(({ name }) => name === 'busybox-static');
  if (!pkg) throw new Error('The guest image pins no busybox-static.');
  const files = await readDeb(await fetchDeb(pkg, console.log), (path) => posix.basename(path) === 'busybox');
  const program = files.get('bin/busybox') ?? files.get('usr/bin/busybox');
  if (!program) throw new Error('The package busybox-static has no busybox.');
  return program.content;
}

/** Names of the commands that this busybox has. */
async function applets(program: Buffer): Promise<string[]> {
  const folder = await mkdtemp(join(tmpdir(), 'lcow-busybox-'));
  try {
    const path = join(folder, 'busybox');
    await writeFile(path, program, { mode: 0o755 });
    const list = await run(path, ['--list']);
    return list
      .toString('utf8')
      .split('\n')
      .filter((name) => name !== '' && name !== 'busybox')
      .sort();
  } finally {
    await rm(folder, { recursive: true });
  }
}

/** A root file system with nothing but busybox: its commands are hard links in /bin, as in the busybox image of Docker Hub. */
export async function busyboxLayer(): Promise<Readable> {
  const program = await busyboxProgram();
  const entries: Record<string, Entry> = {
    'bin/': {},
    'bin/busybox': { content: program, mode: 0o755 },
  };
  for (const applet of await applets(program)) entries[`bin/${applet}`] = { hardlink: 'bin/busybox' };
  return tarOf({
    ...entries,
    'dev/': {},
    'etc/': {},
    'etc/group': 'root:x:0:\ndaemon:x:1:\nbin:x:2:\nwheel:x:10:root\nwww-data:x:33:\nusers:x:100:\nnogroup:x:65534:\n',
    'etc/nsswitch.conf': 'passwd: files\ngroup: files\nhosts: files dns\n',
    'etc/passwd':
      'root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/bin/false\n' +
      'www-data:x:33:33:www-data:/var/www:/bin/false\nnobody:x:65534:65534:nobody:/home:/bin/false\n',
    'etc/shadow': { content: 'root:*:::::::\n', mode: 0o600 },
    'home/': { uid: 65534, gid: 65534 },
    'proc/': {},
    'root/': { mode: 0o700 },
    'sys/': {},
    'tmp/': { mode: 0o1777 },
    'usr/': {},
    'usr/bin/': {},
    'usr/bin/env': { symlink: '../../bin/env' },
    'usr/sbin/': {},
    'var/': {},
    'var/spool/': {},
    'var/www/': { uid: 33, gid: 33 },
  });
}

/** Files for the layer below a layer of whiteouts. */
export function lowerLayer(): Readable {
  return tarOf({
    'etc/': {},
    'etc/one': 'one\n',
    'etc/two': 'two\n',
    'opaque/': {},
    'opaque/lower': 'of the lower layer\n',
    'opaque/folder/': {},
    'opaque/folder/file': 'deep\n',
    'folder/': {},
    'folder/file': 'a file in a folder that goes\n',
    changed: 'of the lower layer\n',
    'becomes-folder': 'a file\n',
  });
}

/** Deletes /etc/one and /folder, empties /opaque and puts a file there, replaces /changed, makes a folder of a file, adds /added. */
export function whiteoutLayer(): Readable {
  return tarOf({
    'etc/': {},
    'etc/.wh.one': '',
    '.wh.folder': '',
    'opaque/': {},
    'opaque/.wh..wh..opq': '',
    'opaque/upper': 'of the upper layer\n',
    changed: 'of the upper layer\n',
    'becomes-folder/': {},
    'becomes-folder/file': 'in it\n',
    added: 'of the upper layer\n',
  });
}

/**
 * Debian bookworm with only essential packages and apt, by mmdebstrap: as root, or in a user namespace (Debian package uidmap and a line
 * for the user in /etc/subuid and /etc/subgid), or with the packages fakeroot and fakechroot.
 */
export async function debianLayer<T>(take: (tar: Readable) => Promise<T>): Promise<T> {
  const mirror = process.env['LCOW_DEBIAN_MIRROR'] || 'http://deb.debian.org/debian';
  const security = process.env['LCOW_DEBIAN_SECURITY_MIRROR'] || 'http://deb.debian.org/debian-security';
  return pipeThrough(
    'mmdebstrap',
    [
      ...['--mode=auto', '--variant=minbase', '--format=tar', '--quiet'],
      ...['bookworm', '-', `deb ${mirror} bookworm main`, `deb ${mirror} bookworm-updates main`],
      `deb ${security} bookworm-security main`,
    ],
    take,
    { env: { ...process.env, SOURCE_DATE_EPOCH: String(EPOCH.getTime() / 1000) } },
  );
}
