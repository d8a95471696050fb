import { createReadStream } from 'node:fs';
import { open } from 'node:fs/promises';
import { extract } from 'tar-stream';
import { collect, pipeThrough } from './programs.js';

/** A file or link of a Debian package. */
export interface DebEntry {
  /** Without the leading `./`. */
  readonly path: string;
  /** Permission bits. */
  readonly mode: number;
  /** Empty for links. */
  readonly content: Buffer;
  /** Target of a symbolic link. */
  readonly linkTarget?: string;
}

const AR_MAGIC = '!<arch>\n';
const AR_HEADER_BYTES = 60;

/** Where a member of an ar archive (deb(5)) lies. */
async function findMember(path: string, prefix: string): Promise<{ name: string; start: number; sizeBytes: number }> {
  const file = await open(path, 'r');
  try {
    const header = Buffer.alloc(AR_HEADER_BYTES);
    await file.read(header, 0, AR_MAGIC.length, 0);
    if (header.toString('latin1', 0, AR_MAGIC.length) !== AR_MAGIC) throw new Error(`${path} is not an ar archive.`);
    for (let at = AR_MAGIC.length; ;) {
      const { bytesRead } = await file.read(header, 0, AR_HEADER_BYTES, at);
      if (bytesRead !== AR_HEADER_BYTES) throw new Error(`${path} has no member ${prefix}*.`);
      const name = header.toString('latin1', 0, 16).trim().replace(/\/$/, '');
      const sizeBytes = Number(header.toString('latin1', 48, 58).trim());
      if (!Number.isSafeInteger(sizeBytes) || sizeBytes < 0 || header.toString('latin1', 58, 60) !== '`\n')
        throw new Error(`${path} has a damaged ar header at ${at}.`);
      if (name.startsWith(prefix)) return { name, start: at + AR_HEADER_BYTES, sizeBytes };
      at += AR_HEADER_BYTES + sizeBytes + (sizeBytes % 2);
    }
  } finally {
    await file.close();
  }
}

/**
 * Reads the files and symbolic links of a .deb that `wanted` accepts; the rest is passed over without being kept.
 * @throws Error when the archive is damaged or not compressed with xz.
 */
export async function readDeb(path: string, wanted: (path: string) => boolean): Promise<Map<string, DebEntry>> {
  const member = await findMember(path, 'data.tar');
  if (member.name !== 'data.tar.xz') throw new Error(`${path} holds ${member.name}, which this builder cannot unpack.`);
  return readTarXz(path, wanted, { start: member.start, end: member.start + member.sizeBytes - 1 });
}

/** The files and symbolic links of a tar compressed with xz, or of a part of a file that is one; see {@link readDeb}. */
export async function readTarXz(
  path: string,
  wanted: (path: string) => boolean,
  part: { readonly start?: number; readonly end?: number } = {},
): Promise<Map<string, DebEntry>> {
  const input = createReadStream(path, part);
  return pipeThrough(
    'xz',
    ['--decompress', '--stdout'],
    async (output) => {
      const entries = new Map<string, DebEntry>();
      for await (const entry of output.pipe(extract())) {
        const { name, type, mode, linkname } = entry.header;
        const entryPath = name.replace(/^\.\//, '');
        const isWanted = wanted(entryPath);
        if (isWanted && type === 'file')
          entries.set(entryPath, { path: entryPath, mode, content: await collect(entry) });
        else {
          if (isWanted && type === 'symlink' && linkname)
            entries.set(entryPath, { path: entryPath, mode: 0o777, content: Buffer.alloc(0), linkTarget: linkname });
          entry.resume();
        }
      }
      return entries;
    },
    { input },
  );
}
