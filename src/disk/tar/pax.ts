import { LcowError } from '../../errors/index.js';
import { parseDecimal, parsePaxTime } from './numbers.js';

const NEWLINE = 0x0a;
const EQUALS = 0x3d;
const BLANK = 0x20;
const XATTR_PREFIX = 'SCHILY.xattr.';
const SPARSE_PREFIX = 'GNU.sparse.';

/** What pax records say about a member: only the keys that mean something to us. `undefined` is a value taken back. */
export interface PaxAttributes {
  path?: string | undefined;
  linkPath?: string | undefined;
  size?: number | undefined;
  uid?: number | undefined;
  gid?: number | undefined;
  mtime?: { seconds: number; nanoseconds: number } | undefined;
  atime?: { seconds: number; nanoseconds: number } | undefined;
  ctime?: { seconds: number; nanoseconds: number } | undefined;
  xattrs?: Map<string, Buffer>;
  /** GNU.sparse.* records in order, keys without that prefix. */
  sparse?: [key: string, value: string][];
}

/**
 * Applies the payload of a pax header (POSIX pax, "pax Header Block") to attributes: records of `length key=value\n`,
 * of which a later one wins; an empty value takes an earlier one back, that of a global header too.
 * @throws LcowError BAD_TAR, its message ending in `where`.
 */
export function applyPaxRecords(payload: Buffer, into: PaxAttributes, where: string): void {
  let at = 0;
  while (at < payload.length) {
    // Some writers pad the payload with NULs.
    if (payload[at] === 0) return;
    const blank = payload.indexOf(BLANK, at);
    const length = blank < 0 || blank - at > 10 ? undefined : parseDecimal(payload.toString('latin1', at, blank));
    const end = at + (length ?? 0);
    if (length === undefined || end > payload.length || end <= blank + 2 || payload[end - 1] !== NEWLINE)
      throw new LcowError('BAD_TAR', `A pax record has a wrong length ${where}.`);
    const equals = payload.indexOf(EQUALS, blank + 1);
    if (equals < 0 || equals >= end - 1 || equals === blank + 1)
      throw new LcowError('BAD_TAR', `A pax record has no key ${where}.`);
    applyRecord(payload.toString('latin1', blank + 1, equals), payload.subarray(equals + 1, end - 1), into, where);
    at = end;
  }
}

function applyRecord(key: string, value: Buffer, into: PaxAttributes, where: string): void {
  switch (key) {
    case 'path':
      into.path = textOf(key, value, where);
      return;
    case 'linkpath':
      into.linkPath = textOf(key, value, where);
      return;
    case 'size':
    case 'uid':
    case 'gid':
      into[key] = value.length === 0 ? undefined : valid(key, parseDecimal(value.toString('latin1')), where);
      return;
    case 'mtime':
    case 'atime':
    case 'ctime':
      into[key] = value.length === 0 ? undefined : valid(key, parsePaxTime(value.toString('latin1')), where);
      return;
    default:
      if (key.startsWith(XATTR_PREFIX)) applyXattr(key.slice(XATTR_PREFIX.length), value, into, where);
      else if (key.startsWith(SPARSE_PREFIX))
        (into.sparse ??= []).push([key.slice(SPARSE_PREFIX.length), textOf(key, value, where) ?? '']);
  }
}

function applyXattr(name: string, value: Buffer, into: PaxAttributes, where: string): void {
  if (name === '' || name.includes('\0'))
    throw new LcowError('BAD_TAR', `An extended attribute has a malformed name ${where}.`);
  // An empty attribute is legal in Linux and means itself here, as in GNU tar.
  (into.xattrs ??= new Map()).set(name, value);
}

function textOf(key: string, value: Buffer, where: string): string | undefined {
  if (value.length === 0) return undefined;
  if (value.includes(0)) throw new LcowError('BAD_TAR', `The pax record ${key} holds a NUL ${where}.`);
  return value.toString('latin1');
}

function valid<T>(key: string, value: T | undefined, where: string): T {
  if (value === undefined) throw new LcowError('BAD_TAR', `The pax record ${key} is malformed ${where}.`);
  return value;
}

/** Local records over global ones. Attributes merge name by name. */
export function mergePax(global: PaxAttributes, local: PaxAttributes): PaxAttributes {
  const merged: PaxAttributes = { ...global, ...local };
  if (global.xattrs && local.xattrs) merged.xattrs = new Map([...global.xattrs, ...local.xattrs]);
  return merged;
}
