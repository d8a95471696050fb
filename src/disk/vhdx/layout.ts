/** The structures of MS-VHDX ("Virtual Hard Disk v2 (VHDX) File Format"), as data. All fields are little-endian. */
import { bytes, structure, text, u16, u32, u64 } from '../structure/index.js';
import { guid } from './guid.js';

export const MIB = 2 ** 20;

/** 2.1: everything but the header section is aligned to, and as long as, whole mebibytes. */
export const ALIGNMENT_BYTES = MIB;

/** 2.2: the header section is the first mebibyte, cut into pieces of 64 KiB. */
export const HEADER_SECTION_BYTES = MIB;
export const HEADER_OFFSETS = [0x10000, 0x20000] as const;
export const REGION_TABLE_OFFSETS = [0x30000, 0x40000] as const;

/** 2.2.1. Padded to 64 KiB with what is not specified. */
export const FILE_IDENTIFIER = structure('file type identifier', 520, 'little', {
  signature: text(0, 8), // "vhdxfile"
  creator: bytes(8, 512), // UTF-16, diagnostic
});

/** 2.2.2. The checksum covers all 4 KiB. */
export const HEADER = structure('header', 4096, 'little', {
  signature: text(0, 4), // "head"
  checksum: u32(4),
  sequenceNumber: u64(8),
  fileWriteGuid: guid(16),
  dataWriteGuid: guid(32),
  logGuid: guid(48),
  logVersion: u16(64),
  version: u16(66),
  logLength: u32(68),
  logOffset: u64(72),
});

/** 2.3.1: the log is written in sectors of this size, whatever the disk's. */
export const LOG_SECTOR_BYTES = 4096;

/** 2.3.1.1. The checksum covers the whole entry, `entryLength` bytes. */
export const LOG_ENTRY_HEADER = structure('log entry header', 64, 'little', {
  signature: text(0, 4), // "loge"
  checksum: u32(4),
  entryLength: u32(8),
  tail: u32(12),
  sequenceNumber: u64(16),
  descriptorCount: u32(24),
  logGuid: guid(32),
  flushedFileOffset: u64(48),
  lastFileOffset: u64(56),
});

/** 2.3.1.2 */
export const LOG_ZERO_DESCRIPTOR = structure('log zero descriptor', 32, 'little', {
  signature: text(0, 4), // "zero"
  zeroLength: u64(8),
  fileOffset: u64(16),
  sequenceNumber: u64(24),
});

/** 2.3.1.3 */
export const LOG_DATA_DESCRIPTOR = structure('log data descriptor', 32, 'little', {
  signature: text(0, 4), // "desc"
  trailingBytes: bytes(4, 4),
  leadingBytes: bytes(8, 8),
  fileOffset: u64(16),
  sequenceNumber: u64(24),
});

/** 2.3.1.4: bytes 8 to 4091 of the data stay in place; the others are in the descriptor. */
export const LOG_DATA_SECTOR = structure('log data sector', LOG_SECTOR_BYTES, 'little', {
  signature: text(0, 4), // "data"
  sequenceHigh: u32(4),
  data: bytes(8, 4084),
  sequenceLow: u32(4092),
});

/** 2.2.3: the table, with header and entries, is 64 KiB, all of it under the checksum. */
export const REGION_TABLE_BYTES = 0x10000;

/** 2.2.3.1 */
export const REGION_TABLE_HEADER = structure('region table header', 16, 'little', {
  signature: text(0, 4), // "regi"
  checksum: u32(4),
  entryCount: u32(8),
});

/** 2.2.3.1 and 2.6.1.1: what fits in 64 KiB behind the header. */
export const MAXIMUM_TABLE_ENTRIES = 2047;

/** 2.2.3.2 */
export const REGION_TABLE_ENTRY = structure('region table entry', 32, 'little', {
  guid: guid(0),
  fileOffset: u64(16),
  length: u32(24),
  required: u32(28), // bit 0
});

/** 2.2.3.2: the known regions. */
export const REGIONS = {
  bat: '2dc27766-f623-4200-9d64-115e9bfd4a08',
  metadata: '8b7ca206-4790-4b9a-b8fe-575f050f886e',
} as const;

/** 2.5: one entry, 8 bytes: State in bits 0 to 2, FileOffsetMB in bits 20 to 63. */
export const BAT_ENTRY_BYTES = 8;
export const BAT_STATE_MASK = 0x7n;
export const BAT_OFFSET_MASK = ~0n << 20n;

/** 2.5.1.1; 5 is what files of version 0.95 say for unmapped. */
export const PAYLOAD_BLOCK = {
  notPresent: 0,
  undefined: 1,
  zero: 2,
  unmapped: 3,
  unmapped095: 5,
  fullyPresent: 6,
  partiallyPresent: 7,
} as const;

/** 2.5.1.2 */
export const SECTOR_BITMAP_BLOCK = { notPresent: 0, present: 6 } as const;

/** 2.4: a sector bitmap block, whatever the size of payload blocks. */
export const SECTOR_BITMAP_BYTES = MIB;

/** 2.6.1.1: the table takes the first 64 KiB of the metadata region. */
export const METADATA_TABLE_BYTES = 0x10000;
export const METADATA_TABLE_HEADER = structure('metadata table header', 32, 'little', {
  signature: text(0, 8), // "metadata"
  entryCount: u16(10),
});

/** 2.6.1.2 */
export const METADATA_TABLE_ENTRY = structure('metadata table entry', 32, 'little', {
  itemId: guid(0),
  offset: u32(16),
  length: u32(20),
  flags: u32(24),
});

/** 2.6.1.2: bits of `flags`. */
export const METADATA_FLAGS = { isUser: 1, isVirtualDisk: 2, isRequired: 4 } as const;
const DISK_ITEM = METADATA_FLAGS.isVirtualDisk | METADATA_FLAGS.isRequired;

/** 2.6.2: the known items, in the order they are written here. */
export const METADATA_ITEMS = {
  fileParameters: { guid: 'caa16737-fa36-4d43-b3b6-33f0aa44e76b', flags: METADATA_FLAGS.isRequired },
  virtualDiskSize: { guid: '2fa54224-cd1b-4876-b211-5dbed83bf4b8', flags: DISK_ITEM },
  virtualDiskId: { guid: 'beca12ab-b2e6-4523-93ef-c309e000c746', flags: DISK_ITEM },
  logicalSectorSize: { guid: '8141bf1d-a96f-4709-ba47-f233a8faab5f', flags: DISK_ITEM },
  physicalSectorSize: { guid: 'cda348c7-445d-4471-9cc9-e9885251c556', flags: DISK_ITEM },
  parentLocator: { guid: 'a8d35f2d-b30b-454d-abf7-d3d84834ab0c', flags: METADATA_FLAGS.isRequired },
} as const;

/** 2.6.2.6.1 */
export const PARENT_LOCATOR_HEADER = structure('parent locator header', 20, 'little', {
  locatorType: guid(0),
  keyValueCount: u16(18),
});

/** 2.6.2.6.2: offsets are from the start of the item. */
export const PARENT_LOCATOR_ENTRY = structure('parent locator entry', 12, 'little', {
  keyOffset: u32(0),
  valueOffset: u32(4),
  keyLength: u16(8),
  valueLength: u16(10),
});

/** 2.6.2.6.3: the parent is another VHDX. */
export const VHDX_PARENT_LOCATOR = 'b04aefb7-d19e-4a81-b789-25b8e9445913';

/** 2.6.2.1 */
export const FILE_PARAMETERS = structure('file parameters', 8, 'little', { blockSize: u32(0), flags: u32(4) });
export const FILE_PARAMETER_FLAGS = { leaveBlocksAllocated: 1, hasParent: 2 } as const;

/** 2.6.2.2 */
export const VIRTUAL_DISK_SIZE = structure('virtual disk size', 8, 'little', { sizeBytes: u64(0) });

/** 2.6.2.3, the SCSI page 83 identity */
export const VIRTUAL_DISK_ID = structure('virtual disk ID', 16, 'little', { guid: guid(0) });

/** 2.6.2.4 and 2.6.2.5 */
export const SECTOR_SIZE = structure('sector size', 4, 'little', { sizeBytes: u32(0) });

export const MINIMUM_BLOCK_BYTES = MIB;
export const MAXIMUM_BLOCK_BYTES = 256 * MIB;
/** 2.6.2.2: 64 TiB. */
export const MAXIMUM_DISK_BYTES = 64 * 2 ** 40;

/**
 * 2.4 and 2.5: after every `chunkRatio` payload entries the BAT has one sector bitmap entry, which a file without a
 * parent does not use. With a parent the table ends with such an entry.
 */
export function batGeometry(
  virtualSizeBytes: number,
  blockSizeBytes: number,
  logicalSectorBytes: number,
  hasParent = false,
): { payloadBlocks: number; chunkRatio: number; entries: number } {
  const payloadBlocks = Math.ceil(virtualSizeBytes / blockSizeBytes);
  const chunkRatio = (2 ** 23 * logicalSectorBytes) / blockSizeBytes;
  const entries = hasParent
    ? Math.ceil(payloadBlocks / chunkRatio) * (chunkRatio + 1)
    : payloadBlocks + Math.floor((payloadBlocks - 1) / chunkRatio);
  return { payloadBlocks, chunkRatio, entries };
}

/** The BAT index of a payload block. */
export function batIndex(payloadBlock: number, chunkRatio: number): number {
  return payloadBlock + Math.floor(payloadBlock / chunkRatio);
}
