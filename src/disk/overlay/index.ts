/** The marks that overlayfs leaves in an upper directory (Documentation/filesystems/overlayfs.rst of the kernel). */
import { LcowError } from '../../errors/index.js';
import type { Ext4Inode } from '../ext4/reader/index.js';
import { readableName } from '../tar/index.js';

const PREFIX = 'trusted.overlay.';
const OPAQUE = `${PREFIX}opaque`;
/** An overlay within an overlay: its own attributes, with the prefix twice. */
const ESCAPED_PREFIX = `${PREFIX}overlay.`;
/** Attributes that say that the content or the name is in another layer. */
const ELSEWHERE = [`${PREFIX}redirect`, `${PREFIX}metacopy`];

export type Xattrs = ReadonlyMap<string, Buffer>;

/** Whether a directory hides what the layers below have of it. */
export function isOpaque(xattrs: Xattrs): boolean {
  return xattrs.get(OPAQUE)?.toString('latin1') === 'y';
}

/** Whether an inode is the mark of a deleted name: a device 0:0, or, since Linux 6.7, an empty file with an attribute. */
export function isWhiteout(inode: Ext4Inode, xattrs: Xattrs): boolean {
  return isDeviceWhiteout(inode) || (inode.kind === 'file' && inode.size === 0 && xattrs.has(`${PREFIX}whiteout`));
}

/** As {@link isWhiteout}, of what needs no attributes. */
export function isDeviceWhiteout(inode: Ext4Inode): boolean {
  return inode.kind === 'characterDevice' && inode.deviceMajor === 0 && inode.deviceMinor === 0;
}

/**
 * The attributes that users of the overlay see: without its own marks.
 * @throws LcowError NOT_SUPPORTED when the content is in another layer (the mount options redirect_dir and metacopy).
 */
export function visibleXattrs(xattrs: Xattrs, path: string): Map<string, Buffer> {
  const visible = new Map<string, Buffer>();
  for (const [name, value] of xattrs) {
    if (ELSEWHERE.includes(name))
      throw new LcowError(
        'NOT_SUPPORTED',
        `${JSON.stringify(readableName(path))} has ${name}: its content or name is in another layer, which this upper directory does not tell.`,
      );
    if (!name.startsWith(PREFIX)) visible.set(name, value);
    else if (name.startsWith(ESCAPED_PREFIX)) visible.set(PREFIX + name.slice(ESCAPED_PREFIX.length), value);
  }
  return visible;
}
