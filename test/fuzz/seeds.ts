/** Small good files of each format, made anew for each run: the same bytes every time. */
import { closeSync, openSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { pack, type Header } from 'tar-stream';
import { tarToVhd, VhdxWriter } from '../../src/disk/index.js';
import { DYNAMIC_HEADER } from '../../src/disk/vhd/dynamic.js';
import { VHD_FOOTER, vhdChecksum } from '../../src/disk/vhd/footer.js';
import { encodeFixedVhdFooter } from '../../src/disk/vhd/index.js';
import { encodeLogEntry } from '../../src/disk/vhdx/log.js';
import { crc32cWithoutField } from '../../src/disk/vhdx/crc32c.js';
import { HEADER, HEADER_OFFSETS } from '../../src/disk/vhdx/layout.js';

const MIB = 2 ** 20;

export async function tarSeeds(): Promise<Buffer[]> {
  const members: (Partial<Header> & { name: string; content?: string })[] = [
    { name: 'etc/', type: 'directory' },
    { name: 'etc/passwd', content: 'root:x:0:0\n'.repeat(200), mode: 0o644, uid: 5, mtime: new Date(0) },
    { name: 'link', type: 'symlink', linkname: 'etc/passwd' },
    { name: 'hard', type: 'link', linkname: 'etc/passwd' },
    { name: 'device', type: 'character-device', devmajor: 5, devminor: 1 },
    { name: `${'long/'.repeat(40)}name`, content: 'x', pax: { 'SCHILY.xattr.user.a': 'value', mtime: '1.5' } },
    { name: '.wh.gone', content: '' },
  ];
  const archive = pack();
  for (const { content = '', ...header } of members) archive.entry(header, content);
  archive.finalize();
  const chunks: Buffer[] = [];
  for await (const chunk of archive as AsyncIterable<Buffer>) chunks.push(chunk);
  return [Buffer.concat(chunks)];
}

export async function ext4Seeds(folder: string): Promise<Buffer[]> {
  const path = join(folder, 'seed.ext4');
  await tarToVhd(Readable.from(await tarSeeds()) as AsyncIterable<Uint8Array>, path, { appendVhdFooter: false });
  return [readFileSync(path)];
}

export function vhdSeeds(): Buffer[] {
  const fixed = Buffer.concat([Buffer.alloc(MIB, 'data'), encodeFixedVhdFooter(MIB, Buffer.alloc(16, 1))]);
  // A dynamic disk of 1 MiB with two of eight blocks of 128 KiB.
  const footer = Buffer.from(encodeFixedVhdFooter(MIB, Buffer.alloc(16, 2)));
  footer.writeBigUInt64BE(512n, VHD_FOOTER.fields.dataOffset.offset);
  footer.writeUInt32BE(3, VHD_FOOTER.fields.diskType.offset);
  const header = DYNAMIC_HEADER.encode({
    cookie: 'cxsparse',
    dataOffset: 0xffffffffffffffffn,
    tableOffset: 1536n,
    headerVersion: 0x10000,
    maxTableEntries: 8,
    blockSize: MIB / 8,
  });
  const table = Buffer.alloc(512, 0xff);
  table.writeUInt32BE(4, 4);
  table.writeUInt32BE(4 + 1 + 256, 20);
  const block = Buffer.concat([Buffer.alloc(512, 0xff), Buffer.alloc(MIB / 8, 'block')]);
  return [fixed, resealVhd(Buffer.concat([footer, header, table, block, block, footer]))];
}

/** Gives footers and header their checksums again, so that damage behind them is met. */
export function resealVhd(bytes: Buffer): Buffer {
  const seal = (start: number, size: number, field: number): void => {
    if (start >= 0 && start + size <= bytes.length)
      bytes.writeUInt32BE(vhdChecksum(bytes.subarray(start, start + size), field), start + field);
  };
  const field = VHD_FOOTER.fields.checksum.offset;
  if (bytes.toString('latin1', 0, 8) === 'conectix') {
    seal(0, 512, field);
    seal(512, 1024, DYNAMIC_HEADER.fields.checksum.offset);
  }
  seal(bytes.length - 512, 512, field);
  return bytes;
}

/** A plain file, and one with a pending log that adds a block. */
export function vhdxSeeds(folder: string): Buffer[] {
  const path = join(folder, 'seed.vhdx');
  const file = openSync(path, 'w');
  const writer = new VhdxWriter(file, { virtualSizeBytes: 4 * MIB, seed: 'fuzz' });
  writer.write(MIB, Buffer.alloc(3000, 'one'));
  writer.finish();
  closeSync(file);
  const plain = readFileSync(path);
  const logGuid = '01020304-0506-4708-890a-0b0c0d0e0f10';
  const sector = Buffer.from(plain.subarray(3 * MIB, 3 * MIB + 4096));
  sector.writeBigUInt64LE((5n << 20n) | 6n, 16);
  const pending = Buffer.concat([plain, Buffer.alloc(MIB, 'two')]);
  encodeLogEntry(new Map([[3 * MIB, sector]]), { logGuid, sequenceNumber: 1n, fileBytes: pending.length }).copy(
    pending,
    MIB,
  );
  for (const start of HEADER_OFFSETS) HEADER.encode({ ...HEADER.decode(pending, start), logGuid }).copy(pending, start);
  return [plain, resealVhdx(pending)];
}

/** Gives headers, region tables and the first log entry their checksums again. */
export function resealVhdx(bytes: Buffer): Buffer {
  const seal = (start: number, size: number): void => {
    if (start + size > bytes.length) return;
    const block = bytes.subarray(start, start + size);
    block.writeUInt32LE(crc32cWithoutField(block, 4), 4);
  };
  for (const start of HEADER_OFFSETS) seal(start, HEADER.size);
  for (const start of [0x30000, 0x40000]) seal(start, 0x10000);
  if (bytes.length > MIB + 4096 && bytes.toString('latin1', MIB, MIB + 4) === 'loge')
    seal(MIB, Math.min(bytes.readUInt32LE(MIB + 8), 64 * 1024));
  return bytes;
}

/** Gives each header that a walk meets its checksum again. */
export function resealTar(bytes: Buffer): Buffer {
  for (let at = 0; at + 512 <= bytes.length; at += 512) {
    if (bytes.toString('latin1', at + 257, at + 262) !== 'ustar') continue;
    bytes.fill(' ', at + 148, at + 156);
    let sum = 0;
    for (let index = at; index < at + 512; index++) sum += bytes[index]!;
    bytes.write(`${sum.toString(8).padStart(6, '0')}\0 `, at + 148, 'latin1');
  }
  return bytes;
}
