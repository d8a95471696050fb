/**
 * The tar header on disk: POSIX.1-2017 pax, "ustar Interchange Format", with GNU's and star's variants of it.
 * Every record is one block of 512 bytes; numbers are octal text or, in GNU's extension, base 256.
 */

/** Every header, and the data behind it padded, is a multiple of this many bytes. */
export const TAR_BLOCK_BYTES = 512;

/** Fields of the header block: offset and length in bytes, by their names in the specification. */
export const HEADER = {
  name: { at: 0, bytes: 100 },
  mode: { at: 100, bytes: 8 },
  uid: { at: 108, bytes: 8 },
  gid: { at: 116, bytes: 8 },
  size: { at: 124, bytes: 12 },
  mtime: { at: 136, bytes: 12 },
  chksum: { at: 148, bytes: 8 },
  typeflag: { at: 156, bytes: 1 },
  linkname: { at: 157, bytes: 100 },
  magic: { at: 257, bytes: 6 },
  version: { at: 263, bytes: 2 },
  devmajor: { at: 329, bytes: 8 },
  devminor: { at: 337, bytes: 8 },
  prefix: { at: 345, bytes: 155 },
  /** star, where the trailer below says so: a shorter prefix, then access and change time. */
  starPrefix: { at: 345, bytes: 131 },
  starTrailer: { at: 508, bytes: 4 },
  /** GNU, typeflag S: four pairs of offset and length, whether blocks with more follow, and the file's real size. */
  sparseMap: { at: 386, pairs: 4 },
  sparseIsExtended: { at: 482, bytes: 1 },
  sparseRealSize: { at: 483, bytes: 12 },
} as const;

/** A block that continues a GNU sparse map. */
export const SPARSE_EXTENSION = {
  sparseMap: { at: 0, pairs: 21 },
  sparseIsExtended: { at: 504, bytes: 1 },
} as const;

/** Each number of a GNU sparse pair has this many bytes. */
export const SPARSE_NUMBER_BYTES = 12;

/** Values of typeflag, as character codes. */
export const TYPEFLAG = {
  oldFile: 0x00,
  file: 0x30,
  hardLink: 0x31,
  symbolicLink: 0x32,
  characterDevice: 0x33,
  blockDevice: 0x34,
  directory: 0x35,
  fifo: 0x36,
  contiguousFile: 0x37,
  paxLocal: 0x78,
  paxGlobal: 0x67,
  /** pax records as Solaris writes them. */
  paxSolaris: 0x58,
  gnuLongName: 0x4c,
  gnuLongLink: 0x4b,
  gnuSparse: 0x53,
  /** GNU: the label of the archive, no file. */
  gnuVolumeLabel: 0x56,
  /** GNU: a directory with the list of its names as data (incremental dumps). */
  gnuDumpDirectory: 0x44,
} as const;

/** Extension records (pax, long names, sparse maps) above this size are refused: archive/tar of Go has the same limit. */
export const EXTENSION_LIMIT_BYTES = 1024 * 1024;
