/** POSIX ACLs: an attribute of the system call's form (version 2) becomes the one ext4 stores (version 1, fs/ext4/acl.h). */
import { LcowError } from '../../errors/index.js';

const CALL_VERSION = 2;
const DISK_VERSION = 1;
const CALL_ENTRY_BYTES = 8;
/** Tags of entries that name a user or a group; only they have an id on disk. */
const NAMED: ReadonlySet<number> = new Set([0x02, 0x08]);
const UNNAMED: ReadonlySet<number> = new Set([0x01, 0x04, 0x10, 0x20]);

/** @throws LcowError BAD_TAR when the value is no ACL. */
export function encodePosixAcl(value: Buffer): Buffer {
  if (value.length < 4 || (value.length - 4) % CALL_ENTRY_BYTES !== 0 || value.readUInt32LE(0) !== CALL_VERSION)
    throw new LcowError('BAD_TAR', 'Its POSIX access control list is malformed.');
  const header = Buffer.alloc(4);
  header.writeUInt32LE(DISK_VERSION);
  const parts: Buffer[] = [header];
  for (let at = 4; at < value.length; at += CALL_ENTRY_BYTES) {
    const tag = value.readUInt16LE(at);
    if (NAMED.has(tag)) parts.push(value.subarray(at, at + 8));
    else if (UNNAMED.has(tag)) parts.push(value.subarray(at, at + 4));
    else throw new LcowError('BAD_TAR', 'Its POSIX access control list is malformed.');
  }
  return Buffer.concat(parts);
}
