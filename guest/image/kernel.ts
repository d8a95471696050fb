import { Readable } from 'node:stream';
import { hasPvhEntry } from './elf.js';
import { run } from './programs.js';

// Offsets in the setup header (Documentation/x86/boot.rst, "The Real-Mode Kernel Header").
const SETUP_SECTS = 0x1f1;
const HEADER_MAGIC = 0x202;
const PROTOCOL_VERSION = 0x206;
const PAYLOAD_OFFSET = 0x248;
const PAYLOAD_LENGTH = 0x24c;
const SECTOR_BYTES = 512;
const XZ_MAGIC = Buffer.from([0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00]);

/**
 * The ELF kernel inside a bzImage. QEMU starts it by PVH at once, where a bzImage unpacks itself under emulation first.
 * @throws Error when the image is not what Debian's kernels are: boot protocol 2.08 or later, payload compressed with xz.
 */
export async function extractVmlinux(bzImage: Buffer): Promise<Buffer> {
  if (bzImage.length < 0x260 || bzImage.toString('latin1', HEADER_MAGIC, HEADER_MAGIC + 4) !== 'HdrS')
    throw new Error('The kernel image has no setup header.');
  if (bzImage.readUInt16LE(PROTOCOL_VERSION) < 0x208) throw new Error('The kernel image is of an old boot protocol.');
  // "If setup_sects is 0, the real value is 4"; the protected-mode kernel follows the boot sector and these.
  const start = ((bzImage[SETUP_SECTS] || 4) + 1) * SECTOR_BYTES + bzImage.readUInt32LE(PAYLOAD_OFFSET);
  const payload = bzImage.subarray(start, start + bzImage.readUInt32LE(PAYLOAD_LENGTH));
  if (!payload.subarray(0, XZ_MAGIC.length).equals(XZ_MAGIC)) throw new Error('The kernel is not compressed with xz.');
  // The payload's last four bytes are the unpacked length, which to xz would be garbage after its stream.
  const expected = payload.readUInt32LE(payload.length - 4);
  const vmlinux = await run('xz', ['--decompress', '--stdout', '--single-stream'], {
    input: Readable.from([payload.subarray(0, payload.length - 4)]),
  });
  if (vmlinux.length !== expected)
    throw new Error(`The kernel unpacks to ${vmlinux.length} bytes instead of ${expected}.`);
  if (!hasPvhEntry(vmlinux)) throw new Error('The kernel has no PVH entry point.');
  return vmlinux;
}
