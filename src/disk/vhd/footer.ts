/**
 * The hard disk footer of "Virtual Hard Disk Image Format Specification" 1.0 (Microsoft, October 2006): the last
 * 512 bytes of every VHD. A fixed VHD is the raw disk followed by it.
 */
import { LcowError } from '../../errors/index.js';
import { bytes, structure, text, u16, u32, u64, u8, type StructureValues } from '../structure/index.js';

/** Bytes of the footer, and so what a fixed VHD is longer than its disk. */
export const VHD_FOOTER_BYTES = 512;

/** The largest disk of a VHD: 2040 GiB, what Hyper-V and QEMU accept. */
export const MAXIMUM_VHD_BYTES = 2040 * 2 ** 30;

const SECTOR_BYTES = 512;

/** "Hard Disk Footer Format". All fields are big-endian; the rest of the 512 bytes is reserved and zero. */
export const VHD_FOOTER = structure('hard disk footer', VHD_FOOTER_BYTES, 'big', {
  cookie: text(0, 8),
  features: u32(8),
  fileFormatVersion: u32(12),
  dataOffset: u64(16),
  timeStamp: u32(24),
  creatorApplication: text(28, 4),
  creatorVersion: u32(32),
  creatorHostOs: text(36, 4),
  originalSize: u64(40),
  currentSize: u64(48),
  cylinders: u16(56),
  heads: u8(58),
  sectorsPerTrack: u8(59),
  diskType: u32(60),
  checksum: u32(64),
  uniqueId: bytes(68, 16),
  savedState: u8(84),
});

/** Values of the field `diskType`. */
export const VHD_DISK_TYPES = { 2: 'fixed', 3: 'dynamic', 4: 'differencing' } as const;

/** A footer whose cookie, version, checksum, type and size were found good. */
export interface VhdFooter extends StructureValues<typeof VHD_FOOTER.fields> {
  readonly kind: (typeof VHD_DISK_TYPES)[keyof typeof VHD_DISK_TYPES];
  /** `currentSize` as a number. */
  readonly virtualSizeBytes: number;
}

/**
 * The footer that makes a raw image a fixed VHD. The same arguments give the same bytes: the time stamp is 0.
 *
 * hcsshim's tar2ext4 leaves geometry and creator empty, and QEMU, which then goes by the geometry, sees a disk of
 * 0 bytes. This one carries both; for the creator "win " QEMU's vpc driver takes `currentSize` itself.
 * @param imageBytes size of the image; a multiple of 512 up to 2040 GiB.
 * @param uuid 16 bytes, in the order they are printed.
 * @throws LcowError INVALID_ARGUMENT
 */
export function encodeFixedVhdFooter(imageBytes: number, uuid: Uint8Array): Uint8Array {
  if (!Number.isSafeInteger(imageBytes) || imageBytes <= 0 || imageBytes % SECTOR_BYTES !== 0)
    throw new LcowError(
      'INVALID_ARGUMENT',
      `A VHD cannot hold a disk of ${imageBytes} bytes: the size must be a positive multiple of ${SECTOR_BYTES}.`,
    );
  if (imageBytes > MAXIMUM_VHD_BYTES)
    throw new LcowError('INVALID_ARGUMENT', `A VHD cannot hold a disk of ${imageBytes} bytes: the limit is 2040 GiB.`);
  if (uuid.length !== 16)
    throw new LcowError('INVALID_ARGUMENT', `The UUID of a VHD must have 16 bytes, not ${uuid.length}.`);
  const footer = VHD_FOOTER.encode({
    cookie: 'conectix',
    features: 2, // "Reserved": this bit is always set
    fileFormatVersion: 0x00010000,
    dataOffset: 0xffffffffffffffffn, // fixed disks have no further header
    timeStamp: 0,
    creatorApplication: 'win ',
    creatorVersion: 0x000a0000,
    creatorHostOs: 'Wi2k',
    originalSize: BigInt(imageBytes),
    currentSize: BigInt(imageBytes),
    ...chsGeometry(imageBytes),
    diskType: 2,
    uniqueId: uuid,
  });
  footer.writeUInt32BE(vhdChecksum(footer, VHD_FOOTER.fields.checksum.offset), VHD_FOOTER.fields.checksum.offset);
  return footer;
}

/**
 * Reads and checks the 512 bytes of a footer.
 * @param source what to call the file in errors.
 * @param fileOffset where the footer stands in it, for errors.
 * @throws LcowError BAD_VHD naming the field and its offset in the file.
 */
export function decodeVhdFooter(footer: Uint8Array, source = 'The VHD', fileOffset = 0): VhdFooter {
  if (footer.length !== VHD_FOOTER_BYTES)
    throw new LcowError('BAD_VHD', `${source} is not a VHD: a footer has 512 bytes, not ${footer.length}.`);
  const values = VHD_FOOTER.decode(footer);
  const bad = (field: keyof typeof VHD_FOOTER.fields, reason: string): LcowError =>
    badVhdField(source, VHD_FOOTER.name, field, fileOffset + VHD_FOOTER.fields[field].offset, reason);
  if (values.cookie !== 'conectix') throw bad('cookie', 'is not "conectix"');
  const checksum = vhdChecksum(footer, VHD_FOOTER.fields.checksum.offset);
  if (values.checksum !== checksum)
    throw bad('checksum', `is ${hex(values.checksum)} where the bytes give ${hex(checksum)}`);
  // "Implementations compliant with this version must ignore the minor version."
  if (values.fileFormatVersion >>> 16 !== 1) throw bad('fileFormatVersion', `is ${hex(values.fileFormatVersion)}`);
  if (!isDiskType(values.diskType)) throw bad('diskType', `is ${values.diskType}, not fixed, dynamic or differencing`);
  if (values.currentSize > BigInt(MAXIMUM_VHD_BYTES) || values.currentSize % BigInt(SECTOR_BYTES) !== 0n)
    throw bad('currentSize', `is ${values.currentSize}, not a multiple of 512 up to 2040 GiB`);
  return { ...values, kind: VHD_DISK_TYPES[values.diskType], virtualSizeBytes: Number(values.currentSize) };
}

function isDiskType(value: number): value is keyof typeof VHD_DISK_TYPES {
  return value in VHD_DISK_TYPES;
}

/** The error for one field of a VHD structure. */
export function badVhdField(source: string, part: string, field: string, offset: number, reason: string): LcowError {
  return new LcowError('BAD_VHD', `${source} is not a good VHD: ${field} of the ${part} at byte ${offset} ${reason}.`, {
    details: { part, field, offset },
  });
}

/** The one's complement of the sum of all bytes, those of the checksum itself left out. */
export function vhdChecksum(block: Uint8Array, checksumOffset: number): number {
  let sum = 0;
  for (let index = 0; index < block.length; index++)
    if (index < checksumOffset || index >= checksumOffset + 4) sum += block[index]!;
  return ~sum >>> 0;
}

/** "Appendix: CHS Calculation". The geometry of a large disk covers less than the disk; the sizes count. */
function chsGeometry(imageBytes: number): { cylinders: number; heads: number; sectorsPerTrack: number } {
  const sectors = Math.min(imageBytes / SECTOR_BYTES, 65535 * 16 * 255);
  let sectorsPerTrack: number;
  let heads: number;
  let tracks: number;
  if (sectors >= 65535 * 16 * 63) {
    sectorsPerTrack = 255;
    heads = 16;
    tracks = Math.floor(sectors / sectorsPerTrack);
  } else {
    sectorsPerTrack = 17;
    tracks = Math.floor(sectors / sectorsPerTrack);
    heads = Math.max(4, Math.floor((tracks + 1023) / 1024));
    if (tracks >= heads * 1024 || heads > 16) {
      sectorsPerTrack = 31;
      heads = 16;
      tracks = Math.floor(sectors / sectorsPerTrack);
    }
    if (tracks >= heads * 1024) {
      sectorsPerTrack = 63;
      heads = 16;
      tracks = Math.floor(sectors / sectorsPerTrack);
    }
  }
  return { cylinders: Math.floor(tracks / heads), heads, sectorsPerTrack };
}

function hex(value: number): string {
  return `0x${value.toString(16).padStart(8, '0')}`;
}
