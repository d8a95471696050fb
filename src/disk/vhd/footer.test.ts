import { execFileSync } from 'node:child_process';
import { appendFileSync, mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { LcowError } from '../../errors/index.js';
import { decodeVhdFooter, encodeFixedVhdFooter, MAXIMUM_VHD_BYTES, VHD_FOOTER_BYTES } from './index.js';

const UUID = Uint8Array.from({ length: 16 }, (_, index) => index + 1);

describe('The footer of a fixed VHD', () => {
  let folder: string;
  beforeAll(() => void (folder = mkdtempSync(join(tmpdir(), 'lcow-vhd-'))));
  afterAll(() => rmSync(folder, { recursive: true }));

  // Sizes on both sides of each step of the geometry table, and beyond what geometry can say.
  test.each([
    512,
    4096,
    17 * 4 * 1024 * 512 - 512,
    17 * 4 * 1024 * 512,
    17 * 16 * 1024 * 512,
    31 * 16 * 1024 * 512,
    188_297_216,
    65535 * 16 * 63 * 512,
    65535 * 16 * 255 * 512 + 512,
    2040 * 2 ** 30,
  ])('makes QEMU see a disk of exactly %i bytes', (imageBytes) => {
    const path = join(folder, 'disk.vhd');
    writeFileSync(path, '');
    truncateSync(path, imageBytes);
    appendFileSync(path, encodeFixedVhdFooter(imageBytes, UUID));
    const said = execFileSync('qemu-img', ['info', '--output=json', '-f', 'vpc', path], { encoding: 'utf8' });
    expect(JSON.parse(said)).toMatchObject({ 'virtual-size': imageBytes, format: 'vpc' });
  });

  test('passes the check of its own reader', () => {
    const footer = decodeVhdFooter(encodeFixedVhdFooter(2 ** 30, UUID));
    expect(footer).toMatchObject({ kind: 'fixed', virtualSizeBytes: 2 ** 30, uniqueId: UUID, timeStamp: 0 });
  });

  test('has the geometry of the specification: 1 GiB is 2080 cylinders, 16 heads, 63 sectors', () => {
    const { cylinders, heads, sectorsPerTrack } = decodeVhdFooter(encodeFixedVhdFooter(2 ** 30, UUID));
    expect([cylinders, heads, sectorsPerTrack]).toEqual([2080, 16, 63]);
  });

  test('is the same for the same image and UUID', () => {
    expect(encodeFixedVhdFooter(4096, UUID)).toEqual(encodeFixedVhdFooter(4096, UUID));
  });

  test.each([0, -512, 100, 1.5, NaN, MAXIMUM_VHD_BYTES + 512])('is refused for an image of %d bytes', (imageBytes) => {
    expect(() => encodeFixedVhdFooter(imageBytes, UUID)).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
  });

  test('is found bad after any change of one byte, naming the field', () => {
    const good = encodeFixedVhdFooter(2 ** 30, UUID);
    for (let at = 0; at < VHD_FOOTER_BYTES; at++) {
      const footer = Uint8Array.from(good);
      footer[at]! ^= 0x10;
      expect(() => decodeVhdFooter(footer, 'x.vhd', 1000)).toThrow(
        /^x\.vhd is not a good VHD: \w+ of the .* at byte 10/,
      );
    }
  });

  test('of any content is either read or refused with BAD_VHD', () => {
    fc.assert(
      fc.property(fc.uint8Array({ minLength: 0, maxLength: 600 }), (content) => {
        try {
          decodeVhdFooter(content);
        } catch (error) {
          expect(error).toBeInstanceOf(LcowError);
          expect(error).toMatchObject({ code: 'BAD_VHD' });
        }
      }),
      { seed: 1 },
    );
  });
});
