/** What a tar member is. tar has no sockets. */
export type TarEntryType =
  'file' | 'hardLink' | 'symbolicLink' | 'characterDevice' | 'blockDevice' | 'directory' | 'fifo';

/**
 * One member of a tar, after long names and pax records have been applied.
 *
 * Names are byte strings: each character is one byte (0 to 255) of the archive, because Linux names need not be UTF-8.
 * `Buffer.from(path, 'latin1')` gives the bytes, and `.toString()` of that the text when it is UTF-8.
 */
export interface TarHeader {
  readonly type: TarEntryType;
  /** Byte string, as in the archive: may have a leading slash, `.` and `..` parts. Never empty, never with a NUL. */
  readonly path: string;
  /** Byte string: target of a hard or symbolic link, else empty. */
  readonly linkPath: string;
  /** Permission bits, 0 to 0o7777. */
  readonly mode: number;
  /** 0 to 4294967295. */
  readonly uid: number;
  readonly gid: number;
  /** Bytes of content, holes of a sparse file included; 0 for all but files. */
  readonly size: number;
  /** Whole seconds since 1970, rounded down, and the rest of it in nanoseconds. */
  readonly mtime: number;
  readonly mtimeNs: number;
  /** As mtime; undefined where the archive does not tell. */
  readonly atime: number | undefined;
  readonly atimeNs: number;
  readonly ctime: number | undefined;
  readonly ctimeNs: number;
  readonly deviceMajor: number;
  readonly deviceMinor: number;
  /** Extended attributes by full name (a byte string), from `SCHILY.xattr.*`; undefined when there are none. */
  readonly xattrs: ReadonlyMap<string, Buffer> | undefined;
  /** Where the header stands in the archive, in bytes. */
  readonly offset: number;
}

/** Permission to read text in messages: a byte string as UTF-8. */
export function readableName(byteString: string): string {
  return Buffer.from(byteString, 'latin1').toString();
}
