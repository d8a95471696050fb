import { LcowError } from '../../errors/index.js';
import { readableName, type TarEntryType, type TarHeader } from './entry.js';
import { EXTENSION_LIMIT_BYTES, HEADER, SPARSE_EXTENSION, TAR_BLOCK_BYTES, TYPEFLAG } from './format.js';
import { checksumMatches, parseNumber } from './numbers.js';
import { applyPaxRecords, mergePax, type PaxAttributes } from './pax.js';
import { checkedSparseMap, readPaxSparse, readSparsePairs, SparseMapReader, type SparseMap } from './sparse.js';

/** What {@link TarParser.step} found. */
export const TOKEN = {
  /** The chunk is used up: feed another, or call finish. */
  needMore: 0,
  /** `parser.header` is a new member. */
  entry: 1,
  /** Bytes dataStart to dataEnd of `parser.chunk` are the next content of the member. */
  data: 2,
  /** The next `parser.holeBytes` of the member are zeros that the archive does not store. */
  hole: 3,
  /** The member is complete. */
  entryEnd: 4,
} as const;
export type Token = (typeof TOKEN)[keyof typeof TOKEN];

const STATE = {
  header: 0,
  extension: 1,
  sparseHeader: 2,
  sparseData: 3,
  data: 4,
  skip: 5,
  oneZero: 6,
  ended: 7,
} as const;
type State = (typeof STATE)[keyof typeof STATE];

const NO_ATTRIBUTES: PaxAttributes = {};

/** Longest path or link target taken, in bytes: several times what any Linux call accepts. */
const PATH_LIMIT_BYTES = 32 * 1024;

const ENTRY_TYPES: ReadonlyMap<number, TarEntryType> = new Map([
  [TYPEFLAG.oldFile, 'file'],
  [TYPEFLAG.file, 'file'],
  [TYPEFLAG.contiguousFile, 'file'],
  [TYPEFLAG.gnuSparse, 'file'],
  [TYPEFLAG.hardLink, 'hardLink'],
  [TYPEFLAG.symbolicLink, 'symbolicLink'],
  [TYPEFLAG.characterDevice, 'characterDevice'],
  [TYPEFLAG.blockDevice, 'blockDevice'],
  [TYPEFLAG.directory, 'directory'],
  [TYPEFLAG.gnuDumpDirectory, 'directory'],
  [TYPEFLAG.fifo, 'fifo'],
]);

/**
 * A tar parser without promises: chunks go in, tokens come out, content is never copied.
 *
 * Reads ustar, GNU (long names, base-256 numbers, sparse files), star and pax (local and global). Strict where it
 * matters for an image: a wrong checksum, a malformed number, an unknown kind of member and an archive without its end
 * marker are BAD_TAR. What stands behind the end marker is ignored.
 */
export class TarParser {
  /** The current member; replaced by the next one, never changed. */
  header!: TarHeader;
  /** The chunk being read. */
  chunk: Buffer = Buffer.alloc(0);
  dataStart = 0;
  dataEnd = 0;
  holeBytes = 0;

  #state: State = STATE.header;
  /** Next byte of the chunk. */
  #at = 0;
  /** Bytes of the archive before the chunk. */
  #before = 0;
  readonly #carry = Buffer.alloc(TAR_BLOCK_BYTES);
  #carried = 0;
  /** Where the current block is: its buffer, offset in it, and offset in the archive. */
  #block: Buffer = this.#carry;
  #base = 0;
  #blockOffset = 0;

  /** Bytes of stored content still to come, and of padding or ignored content behind it. */
  #remaining = 0;
  #skip = 0;

  #extension: Buffer | undefined;
  #extensionFlag = 0;
  #extensionFilled = 0;
  #global: PaxAttributes = NO_ATTRIBUTES;
  #local: PaxAttributes | undefined;
  #longName: string | undefined;
  #longLink: string | undefined;
  #globalBytes = 0;
  #localBytes = 0;

  #sparse: SparseMap | undefined;
  #sparseIndex = 0;
  #sparseAt = 0;
  #sparseRanges: number[] = [];
  #sparseReader: SparseMapReader | undefined;
  #sparseRealSize = 0;

  /** Gives the next chunk; the one before must be used up. The chunk must not change until then. */
  feed(chunk: Uint8Array): void {
    this.#before += this.chunk.length;
    this.chunk = Buffer.isBuffer(chunk) ? chunk : Buffer.from(chunk.buffer, chunk.byteOffset, chunk.byteLength);
    this.#at = 0;
  }

  /** Offset in the archive of the next byte to be read. */
  get offset(): number {
    return this.#before + this.#at;
  }

  /** Finds the next token. @throws LcowError BAD_TAR, naming the member and the offset. */
  step(): Token {
    for (;;) {
      switch (this.#state) {
        case STATE.header:
        case STATE.oneZero:
          if (!this.#takeBlock()) return TOKEN.needMore;
          if (this.#readHeader()) return TOKEN.entry;
          break;
        case STATE.data: {
          const token = this.#readData();
          if (token !== undefined) return token;
          break;
        }
        case STATE.skip: {
          const taken = Math.min(this.#skip, this.chunk.length - this.#at);
          this.#at += taken;
          this.#skip -= taken;
          if (this.#skip > 0) return TOKEN.needMore;
          this.#state = STATE.header;
          break;
        }
        case STATE.extension:
          if (!this.#takeExtension()) return TOKEN.needMore;
          break;
        case STATE.sparseHeader:
          if (!this.#takeBlock()) return TOKEN.needMore;
          if (!readSparsePairs(this.#block, this.#base, SPARSE_EXTENSION, this.#sparseRanges, this.#where())) {
            this.#startSparse();
            return TOKEN.entry;
          }
          this.#limitSparse();
          break;
        case STATE.sparseData:
          if (!this.#takeBlock()) return TOKEN.needMore;
          if (this.#takeSparseMapBlock()) return TOKEN.entry;
          break;
        case STATE.ended:
          this.#at = this.chunk.length;
          return TOKEN.needMore;
      }
    }
  }

  /** Call at the end of the source. @throws LcowError BAD_TAR when the archive is cut off. */
  finish(): void {
    // A lone zero block at the very end is what some writers leave; GNU tar and archive/tar accept it.
    if (this.#state === STATE.ended || (this.#state === STATE.oneZero && this.#carried === 0)) return;
    const inside =
      (this.#state === STATE.header || this.#state === STATE.skip) && this.#skip === 0 && this.#carried === 0
        ? 'it has no end marker'
        : this.#state === STATE.data || this.#state === STATE.skip
          ? `inside the content of ${JSON.stringify(readableName(this.header.path))}`
          : 'inside a header';
    throw new LcowError('BAD_TAR', `The tar is cut off at byte ${this.offset}: ${inside}.`, {
      details: { offset: this.offset },
    });
  }

  /** Makes the next 512 bytes the current block: in place, or gathered when they lie across chunks. */
  #takeBlock(): boolean {
    const available = this.chunk.length - this.#at;
    if (this.#carried === 0 && available >= TAR_BLOCK_BYTES) {
      this.#block = this.chunk;
      this.#base = this.#at;
      this.#blockOffset = this.#before + this.#at;
      this.#at += TAR_BLOCK_BYTES;
      return true;
    }
    const taken = Math.min(TAR_BLOCK_BYTES - this.#carried, available);
    this.chunk.copy(this.#carry, this.#carried, this.#at, this.#at + taken);
    this.#at += taken;
    this.#carried += taken;
    if (this.#carried < TAR_BLOCK_BYTES) return false;
    this.#carried = 0;
    this.#block = this.#carry;
    this.#base = 0;
    this.#blockOffset = this.#before + this.#at - TAR_BLOCK_BYTES;
    return true;
  }

  /** Reads the current block as a header. Returns whether a member begins. */
  #readHeader(): boolean {
    const block = this.#block;
    const base = this.#base;
    if (block[base] === 0 && isZero(block, base)) {
      if (this.#local || this.#longName !== undefined || this.#longLink !== undefined)
        throw this.#bad('ends behind an extension header that belongs to no member');
      this.#state = this.#state === STATE.oneZero ? STATE.ended : STATE.oneZero;
      return false;
    }
    if (this.#state === STATE.oneZero) throw this.#bad('goes on behind a block of zeros');
    const stored = parseNumber(block, base + HEADER.chksum.at, HEADER.chksum.bytes);
    if (stored === undefined || !checksumMatches(block, base, stored))
      throw this.#bad('has a header with a wrong checksum');
    const flag = block[base + HEADER.typeflag.at]!;
    const size = this.#number('size', HEADER.size);
    if (size < 0) throw this.#bad('has a member of negative size');
    switch (flag) {
      case TYPEFLAG.paxLocal:
      case TYPEFLAG.paxSolaris:
      case TYPEFLAG.paxGlobal:
      case TYPEFLAG.gnuLongName:
      case TYPEFLAG.gnuLongLink:
        this.#countExtension(flag, size);
        this.#extension = Buffer.allocUnsafeSlow(size);
        this.#extensionFlag = flag;
        this.#extensionFilled = 0;
        this.#skip = padding(size);
        this.#state = STATE.extension;
        return false;
      case TYPEFLAG.gnuVolumeLabel:
        this.#skip = size + padding(size);
        this.#state = STATE.skip;
        this.#forgetExtensions();
        return false;
      default:
        return this.#startMember(flag, size);
    }
  }

  /** Extension headers add up, for one member and for the whole archive: both sums are bounded. */
  #countExtension(flag: number, size: number): void {
    const sum = size + (flag === TYPEFLAG.paxGlobal ? this.#globalBytes : this.#localBytes);
    if (sum > EXTENSION_LIMIT_BYTES) throw this.#bad(`has extension headers of ${sum} bytes`);
    if (flag === TYPEFLAG.paxGlobal) this.#globalBytes = sum;
    else this.#localBytes = sum;
  }

  #startMember(flag: number, headerSize: number): boolean {
    const pax = this.#local ? mergePax(this.#global, this.#local) : this.#global;
    const headerPath = this.#headerPath();
    const path = pax.path ?? this.#longName ?? headerPath;
    let type = ENTRY_TYPES.get(flag);
    if (!type)
      throw this.#bad(`has ${JSON.stringify(readableName(path))} of the unsupported kind ${describeFlag(flag)}`);
    // Before typeflag 5 a directory was a file whose name ends in a slash.
    if (flag === TYPEFLAG.oldFile && path.endsWith('/')) type = 'directory';
    const linked = type === 'hardLink' || type === 'symbolicLink';
    const linkPath = linked ? (pax.linkPath ?? this.#longLink ?? this.#text(HEADER.linkname)) : '';
    const storedBytes = pax.size ?? headerSize;
    const sparseRecords = type === 'file' ? (this.#local?.sparse ?? this.#global.sparse) : undefined;
    const device = type === 'characterDevice' || type === 'blockDevice';
    this.#setHeader(pax, type, path, linkPath, type === 'file' ? storedBytes : 0, device);
    this.#forgetExtensions();
    this.#sparse = undefined;
    // Directories of incremental dumps have data, links in old archives a size without data (as archive/tar has it).
    this.#remaining = type === 'file' ? storedBytes : 0;
    this.#skip =
      type === 'file'
        ? padding(storedBytes)
        : flag === TYPEFLAG.gnuDumpDirectory
          ? storedBytes + padding(storedBytes)
          : 0;
    this.#state = STATE.data;
    if (flag === TYPEFLAG.gnuSparse) return this.#beginGnuSparse();
    if (sparseRecords) return this.#beginPaxSparse(sparseRecords);
    return true;
  }

  #setHeader(
    pax: PaxAttributes,
    type: TarEntryType,
    path: string,
    linkPath: string,
    size: number,
    device: boolean,
  ): void {
    this.#checkPath(path, 'path');
    if (type === 'hardLink' || type === 'symbolicLink') this.#checkPath(linkPath, 'link target');
    this.header = {
      type,
      path,
      linkPath,
      mode: this.#number('mode', HEADER.mode) & 0o7777,
      uid: this.#identity('uid', pax.uid),
      gid: this.#identity('gid', pax.gid),
      size,
      mtime: pax.mtime ? pax.mtime.seconds : this.#number('mtime', HEADER.mtime),
      mtimeNs: pax.mtime ? pax.mtime.nanoseconds : 0,
      atime: pax.atime?.seconds,
      atimeNs: pax.atime?.nanoseconds ?? 0,
      ctime: pax.ctime?.seconds,
      ctimeNs: pax.ctime?.nanoseconds ?? 0,
      deviceMajor: device ? this.#number('device number', HEADER.devmajor) : 0,
      deviceMinor: device ? this.#number('device number', HEADER.devminor) : 0,
      xattrs: pax.xattrs,
      offset: this.#blockOffset,
    };
  }

  #forgetExtensions(): void {
    this.#localBytes = 0;
    this.#local = undefined;
    this.#longName = undefined;
    this.#longLink = undefined;
  }

  #headerPath(): string {
    const block = this.#block;
    const base = this.#base;
    const name = this.#text(HEADER.name);
    // "ustar\0" "00" is POSIX; GNU's "ustar  \0" has other things where the prefix would be.
    const posix = block.toString('latin1', base + HEADER.magic.at, base + HEADER.magic.at + 6) === 'ustar\0';
    if (!posix || block[base + HEADER.prefix.at] === 0) return name;
    const star = block.toString('latin1', base + HEADER.starTrailer.at, base + HEADER.starTrailer.at + 4) === 'tar\0';
    const prefix = this.#text(star ? HEADER.starPrefix : HEADER.prefix);
    return prefix === '' ? name : `${prefix}/${name}`;
  }

  #text(field: { at: number; bytes: number }): string {
    const start = this.#base + field.at;
    const limit = start + field.bytes;
    let end = start;
    while (end < limit && this.#block[end] !== 0) end += 1;
    return this.#block.toString('latin1', start, end);
  }

  #number(what: string, field: { at: number; bytes: number }): number {
    const value = parseNumber(this.#block, this.#base + field.at, field.bytes);
    if (value === undefined) throw this.#bad(`has a header with a malformed ${what}`);
    return value;
  }

  #identity(what: 'uid' | 'gid', fromPax: number | undefined): number {
    const value = fromPax ?? this.#number(what, HEADER[what]);
    if (value < 0 || value > 0xffff_ffff) throw this.#bad(`has a member whose ${what} ${value} is out of range`);
    return value;
  }

  #checkPath(path: string, what: string): void {
    if (path === '') throw this.#bad(`has a member with an empty ${what}`);
    if (path.length > PATH_LIMIT_BYTES) throw this.#bad(`has a member with a ${what} of ${path.length} bytes`);
  }

  #takeExtension(): boolean {
    const payload = this.#extension!;
    const taken = Math.min(payload.length - this.#extensionFilled, this.chunk.length - this.#at);
    this.chunk.copy(payload, this.#extensionFilled, this.#at, this.#at + taken);
    this.#at += taken;
    this.#extensionFilled += taken;
    if (this.#extensionFilled < payload.length) return false;
    this.#extension = undefined;
    this.#state = STATE.skip;
    switch (this.#extensionFlag) {
      case TYPEFLAG.gnuLongName:
        this.#longName = this.#longText(payload);
        break;
      case TYPEFLAG.gnuLongLink:
        this.#longLink = this.#longText(payload);
        break;
      case TYPEFLAG.paxGlobal:
        this.#global = { ...this.#global };
        if (this.#global.xattrs) this.#global.xattrs = new Map(this.#global.xattrs);
        applyPaxRecords(payload, this.#global, this.#where());
        break;
      default:
        this.#local ??= {};
        applyPaxRecords(payload, this.#local, this.#where());
    }
    return true;
  }

  #longText(payload: Buffer): string {
    const end = payload.indexOf(0);
    return payload.toString('latin1', 0, end < 0 ? payload.length : end);
  }

  #readData(): Token | undefined {
    if (this.#sparse) return this.#readSparseData(this.#sparse);
    if (this.#remaining === 0) return this.#endMember();
    const available = this.chunk.length - this.#at;
    if (available === 0) return TOKEN.needMore;
    this.#takeData(Math.min(available, this.#remaining));
    return TOKEN.data;
  }

  #takeData(bytes: number): void {
    this.dataStart = this.#at;
    this.#at += bytes;
    this.dataEnd = this.#at;
    this.#remaining -= bytes;
  }

  #endMember(): Token {
    this.#state = STATE.skip;
    return TOKEN.entryEnd;
  }

  #beginGnuSparse(): boolean {
    this.#sparseRanges = [];
    const realSize = this.#number('size', HEADER.sparseRealSize);
    if (realSize < 0) throw this.#bad('has a member of negative size');
    this.#sparseRealSize = realSize;
    if (readSparsePairs(this.#block, this.#base, HEADER, this.#sparseRanges, this.#where())) {
      this.#state = STATE.sparseHeader;
      return false;
    }
    this.#startSparse();
    return true;
  }

  #beginPaxSparse(records: readonly (readonly [string, string])[]): boolean {
    const sparse = readPaxSparse(records, this.#where());
    if (sparse.name !== undefined) this.header = { ...this.header, path: sparse.name };
    this.#sparseRealSize = sparse.realSize;
    if (sparse.ranges === undefined) {
      this.#sparseReader = new SparseMapReader(this.#where());
      this.#state = STATE.sparseData;
      return false;
    }
    this.#sparseRanges = sparse.ranges;
    this.#startSparse();
    return true;
  }

  #takeSparseMapBlock(): boolean {
    const reader = this.#sparseReader!;
    if (this.#remaining < TAR_BLOCK_BYTES) throw this.#bad('has a sparse map longer than its member');
    this.#remaining -= TAR_BLOCK_BYTES;
    if (!reader.push(this.#block.subarray(this.#base, this.#base + TAR_BLOCK_BYTES))) return false;
    this.#sparseReader = undefined;
    this.#sparseRanges = reader.ranges;
    this.#startSparse();
    return true;
  }

  #limitSparse(): void {
    if (this.#sparseRanges.length > 2_000_000) throw this.#bad('has a sparse map of more than a million ranges');
  }

  #startSparse(): void {
    this.#limitSparse();
    this.#sparse = checkedSparseMap(this.#sparseRanges, this.#sparseRealSize, this.#remaining, this.#where());
    this.#sparseRanges = [];
    this.#sparseIndex = 0;
    this.#sparseAt = 0;
    this.header = { ...this.header, size: this.#sparseRealSize };
    this.#state = STATE.data;
  }

  #readSparseData(map: SparseMap): Token | undefined {
    while (this.#sparseIndex < map.ranges.length) {
      const start = map.ranges[this.#sparseIndex]!;
      const end = start + map.ranges[this.#sparseIndex + 1]!;
      if (this.#sparseAt < start) return this.#hole(start);
      if (this.#sparseAt < end) {
        const available = this.chunk.length - this.#at;
        if (available === 0) return TOKEN.needMore;
        const taken = Math.min(available, end - this.#sparseAt);
        this.#sparseAt += taken;
        this.#takeData(taken);
        return TOKEN.data;
      }
      this.#sparseIndex += 2;
    }
    if (this.#sparseAt < map.realSize) return this.#hole(map.realSize);
    this.#sparse = undefined;
    return this.#endMember();
  }

  #hole(end: number): Token {
    this.holeBytes = end - this.#sparseAt;
    this.#sparseAt = end;
    return TOKEN.hole;
  }

  #where(): string {
    return `in the tar at byte ${this.#blockOffset}`;
  }

  #bad(what: string): LcowError {
    return new LcowError('BAD_TAR', `The tar ${what}, at byte ${this.#blockOffset}.`, {
      details: { offset: this.#blockOffset },
    });
  }
}

function isZero(block: Buffer, base: number): boolean {
  for (let i = base; i < base + TAR_BLOCK_BYTES; i += 1) if (block[i] !== 0) return false;
  return true;
}

/** Bytes from the end of content to the next block. */
function padding(size: number): number {
  return (TAR_BLOCK_BYTES - (size % TAR_BLOCK_BYTES)) % TAR_BLOCK_BYTES;
}

function describeFlag(flag: number): string {
  return flag > 0x20 && flag < 0x7f ? JSON.stringify(String.fromCharCode(flag)) : `0x${flag.toString(16)}`;
}
