import { LcowError } from '../../errors/index.js';
import type { Ext4Writer } from '../ext4/index.js';
import { readableName, type TarHeader } from '../tar/index.js';

/** OCI image-spec, layer.md, "Whiteouts": what a layer says of the names below it. */
const WHITEOUT_PREFIX = '.wh.';
const OPAQUE_MARKER = '.wh..wh..opq';
/** Files of aufs' own at the root of old layers (.wh..wh.plnk, .wh..wh.aufs): never content. */
const AUFS_PREFIX = '.wh..wh.';

/** Puts one tar member into an image. Returns whether it is a file, which is only begun: its content follows. */
export function applyEntry(writer: Ext4Writer, header: TarHeader, convertWhiteout: boolean): boolean {
  if (convertWhiteout && header.path.includes(WHITEOUT_PREFIX) && applyWhiteout(writer, header)) return false;
  if (header.type === 'file') {
    writer.beginFile(header.path, header, header.size);
    return true;
  }
  applyContentless(writer, header, header.type);
  return false;
}

function applyContentless(writer: Ext4Writer, header: TarHeader, type: Exclude<TarHeader['type'], 'file'>): void {
  switch (type) {
    case 'directory':
      writer.makeDirectory(header.path, header);
      return;
    case 'symbolicLink':
      writer.makeSymlink(header.path, header, header.linkPath);
      return;
    case 'hardLink':
      writer.makeLink(header.path, header.linkPath);
      return;
    default:
      writer.makeSpecial(header.path, header, type, header.deviceMajor, header.deviceMinor);
  }
}

/** Returns whether the member was a marker and not content. */
function applyWhiteout(writer: Ext4Writer, { path, offset }: TarHeader): boolean {
  const trimmed = path.replace(/\/+$/, '');
  const slash = trimmed.lastIndexOf('/');
  const name = trimmed.slice(slash + 1);
  const folder = trimmed.slice(0, slash + 1);
  if (name === OPAQUE_MARKER) {
    writer.makeOpaque(folder);
    return true;
  }
  if (isAufsOwn(trimmed)) return true;
  if (!name.startsWith(WHITEOUT_PREFIX)) return false;
  const hidden = name.slice(WHITEOUT_PREFIX.length);
  if (hidden === '' || hidden === '.' || hidden === '..')
    throw new LcowError('BAD_TAR', `The tar member ${JSON.stringify(readableName(path))} is a whiteout of no name.`, {
      details: { offset },
    });
  writer.makeWhiteout(folder + hidden);
  return true;
}

function isAufsOwn(path: string): boolean {
  return path.replace(/^(?:\.?\/)+/, '').startsWith(AUFS_PREFIX);
}
