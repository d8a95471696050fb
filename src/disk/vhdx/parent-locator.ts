import { isAbsolute, dirname, join } from 'node:path';
import { PARENT_LOCATOR_ENTRY, PARENT_LOCATOR_HEADER, VHDX_PARENT_LOCATOR } from './layout.js';
import { badVhdx } from './region.js';

/** Where the parent of a differencing file is and what it must be (2.6.2.6.3). */
export interface ParentLocator {
  /** The data-write GUIDs the parent may have; two while a merge into it was under way. Lower case, no braces. */
  readonly linkage: readonly string[];
  /** The paths of the locator, in the order they are to be tried, as they stand there. */
  readonly paths: readonly string[];
}

/** Twice what the specification names; bounds what a damaged item makes us keep. */
const MAXIMUM_PAIRS = 64;

/** Reads the parent locator item. @throws LcowError BAD_VHDX */
export function parseParentLocator(item: Buffer, itemOffset: number, source: string): ParentLocator {
  const bad = (part: string, field: string, at: number, reason: string) =>
    badVhdx(source, part, field, itemOffset + at, reason);
  const { name } = PARENT_LOCATOR_HEADER;
  if (item.length < PARENT_LOCATOR_HEADER.size) throw bad(name, 'length', 0, `is ${item.length}, too short`);
  const { locatorType, keyValueCount } = PARENT_LOCATOR_HEADER.decode(item);
  if (locatorType !== VHDX_PARENT_LOCATOR) throw bad(name, 'locatorType', 0, `is ${locatorType}, not that of a VHDX`);
  if (
    keyValueCount > MAXIMUM_PAIRS ||
    PARENT_LOCATOR_HEADER.size + keyValueCount * PARENT_LOCATOR_ENTRY.size > item.length
  )
    throw bad(name, 'keyValueCount', PARENT_LOCATOR_HEADER.fields.keyValueCount.offset, `is ${keyValueCount}`);
  const pairs = new Map<string, string>();
  for (let index = 0; index < keyValueCount; index++) {
    const at = PARENT_LOCATOR_HEADER.size + index * PARENT_LOCATOR_ENTRY.size;
    const { keyOffset, keyLength, valueOffset, valueLength } = PARENT_LOCATOR_ENTRY.decode(item, at);
    const text = (offset: number, length: number, field: string): string => {
      if (length === 0 || length % 2 !== 0 || offset < PARENT_LOCATOR_HEADER.size || offset + length > item.length)
        throw bad(`${PARENT_LOCATOR_ENTRY.name} ${index}`, field, at, 'lies outside of the item');
      return item.toString('utf16le', offset, offset + length);
    };
    const key = text(keyOffset, keyLength, 'key');
    const value = text(valueOffset, valueLength, 'value');
    if (value.includes('\0')) throw bad(`${PARENT_LOCATOR_ENTRY.name} ${index}`, 'value', at, 'has a NUL in it');
    if (pairs.has(key)) throw bad(`${PARENT_LOCATOR_ENTRY.name} ${index}`, 'key', at, 'is there twice');
    pairs.set(key, value);
  }
  const linkage = ['parent_linkage', 'parent_linkage2']
    .map((key) =>
      pairs
        .get(key)
        ?.replace(/^\{(.*)\}$/, '$1')
        .toLowerCase(),
    )
    .filter((value) => value !== undefined);
  const paths = ['relative_path', 'volume_path', 'absolute_win32_path']
    .map((key) => pairs.get(key))
    .filter((value) => value !== undefined);
  if (!pairs.has('parent_linkage')) throw bad('parent locator', 'parent_linkage', 0, 'is missing');
  if (paths.length === 0) throw bad('parent locator', 'paths', 0, 'are missing');
  return { linkage, paths };
}

/**
 * The places on this host where the parent may be, in the order to try them. Paths of Windows are taken as they are on
 * Windows; elsewhere only a relative one means something, its separators turned, and an absolute one that is of this
 * host, as our own files have it.
 */
export function parentCandidates(locator: ParentLocator, childPath: string, platform = process.platform): string[] {
  return locator.paths.flatMap((path) => {
    if (platform === 'win32') return [isAbsolute(path) ? path : join(dirname(childPath), path)];
    if (path.startsWith('\\\\') || /^[a-z]:/i.test(path)) return [];
    const turned = path.replaceAll('\\', '/');
    return [isAbsolute(turned) ? turned : join(dirname(childPath), turned)];
  });
}
