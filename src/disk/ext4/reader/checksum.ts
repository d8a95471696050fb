/** Checksums of ext4 metadata ("Checksums"). */
import { crc32c } from '../../vhdx/index.js';

/** The seed of everything that has none. */
export const NO_SEED = 0xffffffff;

/** ext4_chksum: CRC-32C without the inversions that are usual elsewhere, going on from `seed`. */
export function metadataChecksum(seed: number, bytes: Uint8Array): number {
  return ~crc32c(bytes, ~seed >>> 0) >>> 0;
}

const scratch = Buffer.alloc(8);

/** {@link metadataChecksum} of a 32-bit number. */
export function checksumOfNumber(seed: number, value: number): number {
  scratch.writeUInt32LE(value);
  return metadataChecksum(seed, scratch.subarray(0, 4));
}

/** {@link metadataChecksum} of a 64-bit number. */
export function checksumOfLong(seed: number, value: number): number {
  scratch.writeBigUInt64LE(BigInt(value));
  return metadataChecksum(seed, scratch);
}

/** {@link metadataChecksum} of so many zero bytes, up to 8: a checksum field of its own structure. */
export function checksumOfZeros(seed: number, count: number): number {
  return metadataChecksum(seed, ZEROS.subarray(0, count));
}

const ZEROS = new Uint8Array(8);

/** CRC-16 as descriptors have it with the uninit_bg feature (gdt_csum). */
export function crc16(seed: number, bytes: Uint8Array): number {
  let crc = seed;
  for (const byte of bytes) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit += 1) crc = crc & 1 ? (crc >>> 1) ^ 0xa001 : crc >>> 1;
  }
  return crc;
}
