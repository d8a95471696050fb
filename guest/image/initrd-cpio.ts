/** One entry of an initial RAM disk. Paths have no leading slash. */
export type InitrdEntry =
  | { readonly type: 'folder'; readonly mode?: number }
  | { readonly type: 'file'; readonly content: Buffer; readonly mode?: number }
  | { readonly type: 'link'; readonly target: string }
  | { readonly type: 'device'; readonly mode: number; readonly major: number; readonly minor: number };

const S_IFDIR = 0o040000;
const S_IFREG = 0o100000;
const S_IFLNK = 0o120000;
const S_IFCHR = 0o020000;

function typeAndMode(entry: InitrdEntry): number {
  switch (entry.type) {
    case 'folder':
      return S_IFDIR | (entry.mode ?? 0o755);
    case 'file':
      return S_IFREG | (entry.mode ?? 0o644);
    case 'link':
      return S_IFLNK | 0o777;
    case 'device':
      return S_IFCHR | entry.mode;
  }
}

function pad(length: number, to: number): Buffer {
  return Buffer.alloc((to - (length % to)) % to);
}

function record(path: string, inode: number, entry: InitrdEntry | undefined): Buffer[] {
  const content =
    entry?.type === 'file' ? entry.content : entry?.type === 'link' ? Buffer.from(entry.target) : Buffer.alloc(0);
  const device = entry?.type === 'device' ? entry : { major: 0, minor: 0 };
  const name = Buffer.from(`${path}\0`);
  const fields = [
    inode,
    entry ? typeAndMode(entry) : 0,
    0, // uid
    0, // gid
    entry?.type === 'folder' ? 2 : 1,
    0, // mtime
    content.length,
    0, // device the file is on
    0,
    device.major,
    device.minor,
    name.length,
    0, // checksum, unused in this format
  ];
  const header = Buffer.from('070701' + fields.map((value) => value.toString(16).padStart(8, '0')).join(''));
  return [header, name, pad(header.length + name.length, 4), content, pad(content.length, 4)];
}

/**
 * An initial RAM disk in the "newc" format (Documentation/driver-api/early-userspace/buffer-format.rst), not compressed: unpacking
 * costs more than reading under emulation. Equal entries give equal bytes: sorted by path, owner root, times 0, inodes numbered.
 * Parent folders are added.
 */
export function writeInitrd(entries: ReadonlyMap<string, InitrdEntry>): Buffer {
  const all = new Map(entries);
  for (const path of entries.keys())
    for (let slash = path.indexOf('/'); slash >= 0; slash = path.indexOf('/', slash + 1)) {
      const folder = path.slice(0, slash);
      if (!all.has(folder)) all.set(folder, { type: 'folder' });
    }
  // Bytewise, so a folder comes before what is in it.
  const paths = [...all.keys()].sort((a, b) => Buffer.compare(Buffer.from(a), Buffer.from(b)));
  const parts = paths.flatMap((path, index) => record(path, index + 1, all.get(path)));
  parts.push(...record('TRAILER!!!', 0, undefined));
  const archive = Buffer.concat(parts);
  return Buffer.concat([archive, pad(archive.length, 512)]);
}
