/** CRC-32C (Castagnoli), as MS-VHDX 2.2 uses it; sliced by eight, which is several times a table of one byte. */

const POLYNOMIAL = 0x82f63b78; // 0x1EDC6F41 reflected

const TABLES = makeTables();

/** Eight tables of 256, one behind the other. */
function makeTables(): Uint32Array {
  const tables = new Uint32Array(8 * 256);
  for (let byte = 0; byte < 256; byte++) {
    let crc = byte;
    for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ POLYNOMIAL : crc >>> 1;
    tables[byte] = crc;
  }
  for (let index = 256; index < tables.length; index++) {
    const before = tables[index - 256]!;
    tables[index] = (before >>> 8) ^ tables[before & 0xff]!;
  }
  return tables;
}

/**
 * The CRC-32C of some bytes.
 * @param previous the CRC of what came before, to go on from.
 */
export function crc32c(data: Uint8Array, previous = 0): number {
  const t = TABLES;
  let crc = ~previous;
  let at = 0;
  for (const end = data.length - 7; at < end; at += 8) {
    const low = crc ^ (data[at]! | (data[at + 1]! << 8) | (data[at + 2]! << 16) | (data[at + 3]! << 24));
    crc =
      t[0x700 | (low & 0xff)]! ^
      t[0x600 | ((low >>> 8) & 0xff)]! ^
      t[0x500 | ((low >>> 16) & 0xff)]! ^
      t[0x400 | (low >>> 24)]! ^
      t[0x300 | data[at + 4]!]! ^
      t[0x200 | data[at + 5]!]! ^
      t[0x100 | data[at + 6]!]! ^
      t[data[at + 7]!]!;
  }
  for (; at < data.length; at++) crc = (crc >>> 8) ^ t[(crc ^ data[at]!) & 0xff]!;
  return ~crc >>> 0;
}

/** The CRC-32C of a structure, its own checksum field (4 bytes at `checksumOffset`) counted as zero. */
export function crc32cWithoutField(block: Uint8Array, checksumOffset: number): number {
  const head = crc32c(block.subarray(0, checksumOffset));
  return crc32c(block.subarray(checksumOffset + 4), crc32c(ZERO_FIELD, head));
}

const ZERO_FIELD = new Uint8Array(4);
