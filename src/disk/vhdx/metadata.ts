import type { LcowError } from '../../errors/index.js';
import type { FileView, Structure } from '../structure/index.js';
import {
  FILE_PARAMETER_FLAGS,
  FILE_PARAMETERS,
  MAXIMUM_BLOCK_BYTES,
  MAXIMUM_DISK_BYTES,
  MAXIMUM_TABLE_ENTRIES,
  METADATA_FLAGS,
  METADATA_ITEMS,
  METADATA_TABLE_BYTES,
  METADATA_TABLE_ENTRY,
  METADATA_TABLE_HEADER,
  MIB,
  MINIMUM_BLOCK_BYTES,
  SECTOR_SIZE,
  VIRTUAL_DISK_ID,
  VIRTUAL_DISK_SIZE,
} from './layout.js';
import { parseParentLocator, type ParentLocator } from './parent-locator.js';
import { badVhdx, type Region } from './region.js';

/** What the known metadata items say (2.6.2). */
export interface VhdxMetadata {
  readonly virtualSizeBytes: number;
  readonly blockSizeBytes: number;
  readonly logicalSectorBytes: 512 | 4096;
  readonly physicalSectorBytes: 512 | 4096;
  /** The SCSI page 83 identity of the disk. */
  readonly virtualDiskId: string;
  /** Whether all blocks stay allocated: a fixed VHDX. */
  readonly leaveBlocksAllocated: boolean;
  /** Where the parent is, for a differencing file: what is not in this file is read from there. */
  readonly parent?: ParentLocator;
  /** Offset in the file of the 8 bytes of the virtual disk size, which need not be aligned. */
  readonly virtualDiskSizeOffset: number;
}

interface Item {
  readonly offset: number;
  readonly length: number;
}

/**
 * Reads the metadata region (2.6) and checks every value against its limits.
 * @throws LcowError BAD_VHDX
 */
export async function readMetadata(file: FileView, source: string, region: Region): Promise<VhdxMetadata> {
  const items = await readTable(file, source, region);

  const read = async <F>(
    key: keyof typeof METADATA_ITEMS,
    form: Structure<F>,
  ): Promise<ReturnType<Structure<F>['decode']>> => {
    const item = items.get(METADATA_ITEMS[key].guid);
    if (!item) throw badVhdx(source, 'metadata table', 'entries', region.start, `have no ${form.name}`);
    if (item.length !== form.size)
      throw badVhdx(source, form.name, 'length', item.offset, `is ${item.length}, not ${form.size}`);
    return form.decode(await file.read(item.offset, form.size));
  };
  const bad = (key: keyof typeof METADATA_ITEMS, field: string, reason: string): LcowError =>
    badVhdx(source, `metadata item ${key}`, field, items.get(METADATA_ITEMS[key].guid)?.offset ?? region.start, reason);

  const { blockSize, flags } = await read('fileParameters', FILE_PARAMETERS);
  if (blockSize < MINIMUM_BLOCK_BYTES || blockSize > MAXIMUM_BLOCK_BYTES || (blockSize & (blockSize - 1)) !== 0)
    throw bad('fileParameters', 'blockSize', `is ${blockSize}, not a power of two from 1 to 256 MiB`);
  const hasParent = (flags & FILE_PARAMETER_FLAGS.hasParent) !== 0;
  const locator = items.get(METADATA_ITEMS.parentLocator.guid);
  if (hasParent && !locator) throw bad('fileParameters', 'hasParent', 'is set, but there is no parent locator');

  const sectorBytes = async (key: 'logicalSectorSize' | 'physicalSectorSize'): Promise<512 | 4096> => {
    const { sizeBytes } = await read(key, SECTOR_SIZE);
    if (sizeBytes !== 512 && sizeBytes !== 4096) throw bad(key, 'value', `is ${sizeBytes}, not 512 or 4096`);
    return sizeBytes;
  };
  const logicalSectorBytes = await sectorBytes('logicalSectorSize');
  const physicalSectorBytes = await sectorBytes('physicalSectorSize');

  const { sizeBytes } = await read('virtualDiskSize', VIRTUAL_DISK_SIZE);
  if (sizeBytes === 0n || sizeBytes > BigInt(MAXIMUM_DISK_BYTES) || sizeBytes % BigInt(logicalSectorBytes) !== 0n)
    throw bad('virtualDiskSize', 'value', `is ${sizeBytes}, not a number of whole sectors up to 64 TiB`);

  return {
    virtualSizeBytes: Number(sizeBytes),
    blockSizeBytes: blockSize,
    logicalSectorBytes,
    physicalSectorBytes,
    virtualDiskId: (await read('virtualDiskId', VIRTUAL_DISK_ID)).guid,
    leaveBlocksAllocated: !hasParent && (flags & FILE_PARAMETER_FLAGS.leaveBlocksAllocated) !== 0,
    virtualDiskSizeOffset: items.get(METADATA_ITEMS.virtualDiskSize.guid)!.offset,
    ...(hasParent && locator
      ? { parent: parseParentLocator(await file.read(locator.offset, locator.length), locator.offset, source) }
      : {}),
  };
}

/** The known items by GUID, their offsets made absolute. */
async function readTable(file: FileView, source: string, region: Region): Promise<Map<string, Item>> {
  const table = await file.read(region.start, METADATA_TABLE_BYTES);
  const head = METADATA_TABLE_HEADER.decode(table);
  const bad = (field: keyof typeof METADATA_TABLE_HEADER.fields, reason: string): LcowError =>
    badVhdx(
      source,
      METADATA_TABLE_HEADER.name,
      field,
      region.start + METADATA_TABLE_HEADER.fields[field].offset,
      reason,
    );
  if (head.signature !== 'metadata') throw bad('signature', 'is not "metadata"');
  if (head.entryCount > MAXIMUM_TABLE_ENTRIES)
    throw bad('entryCount', `is ${head.entryCount}, more than ${MAXIMUM_TABLE_ENTRIES}`);
  const known = new Set<string>(Object.values(METADATA_ITEMS).map((item) => item.guid));
  const items = new Map<string, Item>();
  for (let index = 0; index < head.entryCount; index++) {
    const at = METADATA_TABLE_HEADER.size + index * METADATA_TABLE_ENTRY.size;
    const entry = METADATA_TABLE_ENTRY.decode(table, at);
    const badEntry = (field: keyof typeof METADATA_TABLE_ENTRY.fields, reason: string): LcowError =>
      badVhdx(
        source,
        `${METADATA_TABLE_ENTRY.name} ${index}`,
        field,
        region.start + at + METADATA_TABLE_ENTRY.fields[field].offset,
        reason,
      );
    if (entry.length > MIB) throw badEntry('length', `is ${entry.length}, more than 1 MiB`);
    if (entry.length > 0 && (entry.offset < METADATA_TABLE_BYTES || entry.offset + entry.length > region.length))
      throw badEntry('offset', `is ${entry.offset}, which puts the item outside of its region`);
    // User items may carry any GUID (2.6.1.2).
    if (entry.flags & METADATA_FLAGS.isUser) continue;
    if (!known.has(entry.itemId)) {
      if (entry.flags & METADATA_FLAGS.isRequired) throw badEntry('itemId', `${entry.itemId} is required and unknown`);
      continue;
    }
    if (items.has(entry.itemId)) throw badEntry('itemId', 'is there twice');
    items.set(entry.itemId, { offset: region.start + entry.offset, length: entry.length });
  }
  return items;
}
