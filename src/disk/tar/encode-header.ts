/** Tar headers, written: ustar where it is enough, a pax header (POSIX.1-2017) before it where it is not. */
import { TAR_BLOCK_BYTES, HEADER, TYPEFLAG } from './format.js';
import type { TarEntryType, TarHeader } from './entry.js';

/** A member to be written: what {@link TarHeader} says of it; a directory's path ends in a slash or not. */
export type TarMember = Omit<TarHeader, 'offset'> & {
  /**
   * The ranges of data of a file with holes: offset and length of each, alternating, ascending. Only these are then
   * stored (GNU sparse format 1.0 in pax), and `size` is still that of the whole file.
   */
  readonly dataRanges?: readonly number[] | undefined;
};

const FLAGS: Readonly<Record<TarEntryType, number>> = {
  file: TYPEFLAG.file,
  hardLink: TYPEFLAG.hardLink,
  symbolicLink: TYPEFLAG.symbolicLink,
  characterDevice: TYPEFLAG.characterDevice,
  blockDevice: TYPEFLAG.blockDevice,
  directory: TYPEFLAG.directory,
  fifo: TYPEFLAG.fifo,
};
const LARGEST_OCTAL_8 = 0o7777777;
const LARGEST_OCTAL_12 = 0o77777777777;
const NOT_ASCII = /[^\u0001-\u007f]/;
const GNU_SPARSE_PREFIX = 'GNUSparseFile.0/';

/** The header blocks of a member, and how many bytes of content follow them, without padding. */
export interface EncodedHeader {
  readonly blocks: Buffer;
  readonly contentBytes: number;
}

/** Encodes the headers of a member, and the map of a sparse file, which stands before its data. */
export function encodeHeader(member: TarMember): EncodedHeader {
  const map = member.dataRanges ? encodeSparseMap(member.dataRanges) : undefined;
  const contentBytes = member.type !== 'file' ? 0 : member.dataRanges ? sumOfLengths(member.dataRanges) : member.size;
  const storedBytes = contentBytes + (map?.length ?? 0);
  const path = member.type === 'directory' && !member.path.endsWith('/') ? `${member.path}/` : member.path;
  const split = splitPath(path);
  const records = paxRecords(member, path, storedBytes, split === undefined);
  const payload = records.length === 0 ? undefined : Buffer.concat(records);
  const paxBytes = payload ? TAR_BLOCK_BYTES + padded(payload.length) : 0;
  // From Node's pool: the garbage collector has much less to do than with buffers of their own.
  const blocks = Buffer.allocUnsafe(paxBytes + TAR_BLOCK_BYTES + (map?.length ?? 0)).fill(0);
  if (payload) {
    writeHeader(blocks, 0, TYPEFLAG.paxLocal, paxName(path), '', 0o644, 0, 0, payload.length, 0, 0, 0);
    payload.copy(blocks, TAR_BLOCK_BYTES);
  }
  const [prefix, name] = split ?? ['', (map ? GNU_SPARSE_PREFIX : '') + path];
  writeHeader(
    blocks,
    paxBytes,
    FLAGS[member.type],
    name,
    prefix,
    member.mode,
    member.uid,
    member.gid,
    storedBytes,
    member.mtime,
    member.deviceMajor,
    member.deviceMinor,
    member.linkPath,
  );
  map?.copy(blocks, paxBytes + TAR_BLOCK_BYTES);
  return { blocks, contentBytes };
}

/** Whole blocks for so many bytes. */
export function padded(bytes: number): number {
  return Math.ceil(bytes / TAR_BLOCK_BYTES) * TAR_BLOCK_BYTES;
}

/** Prefix and name of a path that fits into the header; undefined when it does not. */
function splitPath(path: string): readonly [prefix: string, name: string] | undefined {
  if (NOT_ASCII.test(path)) return undefined;
  if (path.length <= HEADER.name.bytes) return ['', path];
  // The slash in between is not stored; that of a directory at the end must be.
  const slash = path.lastIndexOf('/', Math.min(HEADER.prefix.bytes, path.length - 2));
  if (slash <= 0 || path.length - slash - 1 > HEADER.name.bytes) return undefined;
  return [path.slice(0, slash), path.slice(slash + 1)];
}

function paxName(path: string): string {
  const base = path.slice(path.lastIndexOf('/', path.length - 2) + 1, path.length).slice(0, 80);
  return `PaxHeaders.0/${NOT_ASCII.test(base) ? 'member' : base.replace(/\/$/, '')}`;
}

const NO_RECORDS: readonly Buffer[] = [];

/** The records of a member that its header has no room for. */
function paxRecords(member: TarMember, path: string, storedBytes: number, longPath: boolean): readonly Buffer[] {
  const { linkPath, uid, gid, mtime, mtimeNs, atime, ctime, xattrs } = member;
  const longLink = linkPath !== '' && (linkPath.length > HEADER.linkname.bytes || NOT_ASCII.test(linkPath));
  const largeNumbers = storedBytes > LARGEST_OCTAL_12 || uid > LARGEST_OCTAL_8 || gid > LARGEST_OCTAL_8;
  const oddTimes = mtimeNs !== 0 || mtime < 0 || mtime > LARGEST_OCTAL_12 || atime !== undefined || ctime !== undefined;
  if (!longPath && !longLink && !largeNumbers && !oddTimes && !xattrs && !member.dataRanges) return NO_RECORDS;
  const records: Buffer[] = [];
  const add = (key: string, value: string | Buffer): void => void records.push(paxRecord(key, value));
  // Names of a pax header are UTF-8 unless it says otherwise.
  if ((longPath && !isUtf8(path)) || (longLink && !isUtf8(linkPath))) add('hdrcharset', 'BINARY');
  if (member.dataRanges) {
    add('GNU.sparse.major', '1');
    add('GNU.sparse.minor', '0');
    add('GNU.sparse.name', path);
    add('GNU.sparse.realsize', String(member.size));
  } else if (longPath) add('path', path);
  if (longLink) add('linkpath', linkPath);
  if (storedBytes > LARGEST_OCTAL_12) add('size', String(storedBytes));
  if (uid > LARGEST_OCTAL_8) add('uid', String(uid));
  if (gid > LARGEST_OCTAL_8) add('gid', String(gid));
  if (mtimeNs !== 0 || mtime < 0 || mtime > LARGEST_OCTAL_12) add('mtime', paxTime(mtime, mtimeNs));
  if (atime !== undefined) add('atime', paxTime(atime, member.atimeNs));
  if (ctime !== undefined) add('ctime', paxTime(ctime, member.ctimeNs));
  if (xattrs)
    for (const name of [...xattrs.keys()].sort())
      // A key ends at the first =; GNU tar writes it so.
      add(`SCHILY.xattr.${name.replaceAll('=', '%3D')}`, xattrs.get(name)!);
  return records;
}

/** `length key=value\n`, where the length counts its own digits. */
function paxRecord(key: string, value: string | Buffer): Buffer {
  const rest = key.length + value.length + 3;
  let length = rest + String(rest).length;
  if (String(length).length > String(rest).length) length += 1;
  return typeof value === 'string'
    ? Buffer.from(`${length} ${key}=${value}\n`, 'latin1')
    : Buffer.concat([Buffer.from(`${length} ${key}=`, 'latin1'), value, NEWLINE]);
}

const NEWLINE = Buffer.from('\n');

/** Decimal seconds, without zeros at the end. -2 s + 0.75 s is -1.25. */
function paxTime(seconds: number, nanoseconds: number): string {
  if (nanoseconds === 0) return String(seconds);
  const negative = seconds < 0;
  const whole = negative ? -seconds - 1 : seconds;
  const rest = negative ? 1_000_000_000 - nanoseconds : nanoseconds;
  return `${negative ? '-' : ''}${whole}.${String(rest).padStart(9, '0').replace(/0+$/, '')}`;
}

function isUtf8(byteString: string): boolean {
  const bytes = Buffer.from(byteString, 'latin1');
  return Buffer.from(bytes.toString()).equals(bytes);
}

function encodeSparseMap(ranges: readonly number[]): Buffer {
  const text = Buffer.from([ranges.length / 2, ...ranges].join('\n') + '\n', 'latin1');
  return Buffer.concat([text, Buffer.alloc(padded(text.length) - text.length)]);
}

function sumOfLengths(ranges: readonly number[]): number {
  let sum = 0;
  for (let index = 1; index < ranges.length; index += 2) sum += ranges[index]!;
  return sum;
}

function writeHeader(
  block: Buffer,
  base: number,
  flag: number,
  name: string,
  prefix: string,
  mode: number,
  uid: number,
  gid: number,
  size: number,
  mtime: number,
  deviceMajor: number,
  deviceMinor: number,
  linkName = '',
): void {
  block.write(name, base + HEADER.name.at, HEADER.name.bytes, 'latin1');
  writeOctal(block, base, HEADER.mode, mode);
  writeOctal(block, base, HEADER.uid, uid > LARGEST_OCTAL_8 ? 0 : uid);
  writeOctal(block, base, HEADER.gid, gid > LARGEST_OCTAL_8 ? 0 : gid);
  writeOctal(block, base, HEADER.size, size > LARGEST_OCTAL_12 ? 0 : size);
  writeOctal(block, base, HEADER.mtime, Math.min(Math.max(mtime, 0), LARGEST_OCTAL_12));
  block[base + HEADER.typeflag.at] = flag;
  if (linkName !== '') block.write(linkName, base + HEADER.linkname.at, HEADER.linkname.bytes, 'latin1');
  block.set(USTAR, base + HEADER.magic.at);
  writeOctal(block, base, HEADER.devmajor, deviceMajor);
  writeOctal(block, base, HEADER.devminor, deviceMinor);
  if (prefix !== '') block.write(prefix, base + HEADER.prefix.at, HEADER.prefix.bytes, 'latin1');
  // The field counts as blanks.
  let sum = 8 * 0x20;
  for (let at = base; at < base + TAR_BLOCK_BYTES; at += 1) sum += block[at]!;
  // Six digits, a NUL and a blank, as ever.
  writeDigits(block, base + HEADER.chksum.at, 6, sum);
  block[base + HEADER.chksum.at + 7] = 0x20;
}

/** "ustar", NUL, and version 00. */
const USTAR = Buffer.from('ustar\u000000', 'latin1');

function writeOctal(block: Buffer, base: number, field: { at: number; bytes: number }, value: number): void {
  writeDigits(block, base + field.at, field.bytes - 1, value);
}

function writeDigits(block: Buffer, at: number, digits: number, value: number): void {
  let rest = value;
  for (let index = at + digits - 1; index >= at; index -= 1) {
    block[index] = 0x30 + (rest % 8);
    rest = Math.floor(rest / 8);
  }
}
