/** The little of ELF that the builder needs (System V ABI, gABI 4; 64-bit little-endian only). */

const EHDR_BYTES = 64;
const SHDR_BYTES = 64;
const PHDR_BYTES = 56;
const SHT_NOBITS = 8;
const PT_INTERP = 3;
const PT_NOTE = 4;
const DT_NEEDED = 1;
const DT_STRTAB = 5;
const PT_LOAD = 1;
const PT_DYNAMIC = 2;
/** Xen's note type for the 32-bit entry point that PVH boot uses (xen/include/public/elfnote.h). */
const XEN_ELFNOTE_PHYS32_ENTRY = 18;

interface Section {
  readonly name: string;
  readonly type: number;
  readonly offset: number;
  readonly sizeBytes: number;
  readonly align: number;
  /** Where its header lies in the file. */
  readonly header: number;
}

interface Segment {
  readonly type: number;
  readonly offset: number;
  readonly address: number;
  readonly sizeBytes: number;
}

function check(elf: Buffer): void {
  // 2 = ELFCLASS64, 1 = ELFDATA2LSB.
  if (elf.length < EHDR_BYTES || elf.readUInt32BE(0) !== 0x7f454c46 || elf[4] !== 2 || elf[5] !== 1)
    throw new Error('Not a 64-bit little-endian ELF file.');
}

function u64(elf: Buffer, at: number): number {
  const value = Number(elf.readBigUInt64LE(at));
  if (!Number.isSafeInteger(value)) throw new Error('An ELF offset is out of range.');
  return value;
}

function text(elf: Buffer, at: number): string {
  const end = elf.indexOf(0, at);
  return elf.toString('latin1', at, end < 0 ? elf.length : end);
}

function sections(elf: Buffer): Section[] {
  check(elf);
  const table = u64(elf, 40);
  const count = elf.readUInt16LE(60);
  const headerAt = (index: number): number => table + index * SHDR_BYTES;
  const names = count === 0 ? 0 : u64(elf, headerAt(elf.readUInt16LE(62)) + 24);
  return Array.from({ length: count }, (_, index) => {
    const header = headerAt(index);
    return {
      name: text(elf, names + elf.readUInt32LE(header)),
      type: elf.readUInt32LE(header + 4),
      offset: u64(elf, header + 24),
      sizeBytes: u64(elf, header + 32),
      align: u64(elf, header + 48),
      header,
    };
  });
}

function segments(elf: Buffer): Segment[] {
  check(elf);
  const table = u64(elf, 32);
  return Array.from({ length: elf.readUInt16LE(56) }, (_, index) => {
    const at = table + index * PHDR_BYTES;
    return {
      type: elf.readUInt32LE(at),
      offset: u64(elf, at + 8),
      // Kernel addresses exceed what a number holds; only those of shared libraries and programs are compared.
      address: Number(elf.readBigUInt64LE(at + 16)),
      sizeBytes: u64(elf, at + 32),
    };
  });
}

/** Whether QEMU can start this kernel by PVH: it carries Xen's PHYS32_ENTRY note. */
export function hasPvhEntry(elf: Buffer): boolean {
  for (const { type, offset, sizeBytes } of segments(elf)) {
    if (type !== PT_NOTE) continue;
    for (let at = offset; at + 12 <= offset + sizeBytes;) {
      const nameBytes = elf.readUInt32LE(at);
      const descriptionBytes = elf.readUInt32LE(at + 4);
      const noteType = elf.readUInt32LE(at + 8);
      if (noteType === XEN_ELFNOTE_PHYS32_ENTRY && text(elf, at + 12) === 'Xen') return true;
      at += 12 + Math.ceil(nameBytes / 4) * 4 + Math.ceil(descriptionBytes / 4) * 4;
    }
  }
  return false;
}

/** The program interpreter (the dynamic loader), or undefined for a static program or a library. */
export function interpreter(elf: Buffer): string | undefined {
  const segment = segments(elf).find(({ type }) => type === PT_INTERP);
  return segment && text(elf, segment.offset);
}

/** Sonames of the libraries a program or library is linked with (DT_NEEDED), in order. */
export function neededLibraries(elf: Buffer): string[] {
  const all = segments(elf);
  const dynamic = all.find(({ type }) => type === PT_DYNAMIC);
  if (!dynamic) return [];
  const entries: { tag: number; value: number }[] = [];
  for (let at = dynamic.offset; at + 16 <= dynamic.offset + dynamic.sizeBytes; at += 16)
    entries.push({ tag: Number(elf.readBigInt64LE(at)), value: Number(elf.readBigUInt64LE(at + 8)) });
  const strings = entries.find(({ tag }) => tag === DT_STRTAB)?.value ?? 0;
  const home = all.find((s) => s.type === PT_LOAD && strings >= s.address && strings < s.address + s.sizeBytes);
  if (!home) throw new Error('An ELF file has a dynamic section without a string table.');
  const base = home.offset + strings - home.address;
  return entries.filter(({ tag }) => tag === DT_NEEDED).map(({ value }) => text(elf, base + value));
}

/** A kernel module's `.modinfo`: every `key=value`, keys may repeat. */
export function modinfo(module: Buffer): { key: string; value: string }[] {
  const section = sections(module).find(({ name }) => name === '.modinfo');
  if (!section) throw new Error('A kernel module has no .modinfo section.');
  return module
    .toString('latin1', section.offset, section.offset + section.sizeBytes)
    .split('\0')
    .filter((pair) => pair.includes('='))
    .map((pair) => ({ key: pair.slice(0, pair.indexOf('=')), value: pair.slice(pair.indexOf('=') + 1) }));
}

/** What a module loads without: type information for BPF, debug information, the compiler's name. */
const EXPENDABLE = /^(\.BTF|\.debug_.*|\.rela\.debug_.*|\.comment)$/;

/**
 * A kernel module without its signature and without type and debug information. Checking the signature and reading the types take
 * half of the time to load a module under emulation. Sections keep their numbers, so symbols and relocations stay as they are;
 * the expendable ones become empty, and what lies behind the sections (the signature) is not copied.
 */
export function slimModule(module: Buffer): Buffer {
  const all = sections(module);
  const parts: Buffer[] = [Buffer.from(module.subarray(0, EHDR_BYTES))];
  let length = EHDR_BYTES;
  const append = (part: Buffer, align: number): number => {
    const padding = (align - (length % align)) % align;
    if (padding > 0) parts.push(Buffer.alloc(padding));
    const at = length + padding;
    parts.push(part);
    length = at + part.length;
    return at;
  };
  const headers = Buffer.alloc(all.length * SHDR_BYTES);
  all.forEach((section, index) => {
    module.copy(headers, index * SHDR_BYTES, section.header, section.header + SHDR_BYTES);
    const isEmpty = section.type === SHT_NOBITS || section.type === 0;
    const keep = !isEmpty && !EXPENDABLE.test(section.name);
    if (keep && section.offset + section.sizeBytes > module.length) throw new Error('A kernel module is cut off.');
    const data = keep ? module.subarray(section.offset, section.offset + section.sizeBytes) : Buffer.alloc(0);
    const offset = section.type === 0 ? 0 : append(data, Math.max(1, section.align));
    headers.writeBigUInt64LE(BigInt(offset), index * SHDR_BYTES + 24);
    if (!keep && !isEmpty) headers.writeBigUInt64LE(0n, index * SHDR_BYTES + 32);
  });
  const table = append(headers, 8);
  parts[0]!.writeBigUInt64LE(BigInt(table), 40);
  return Buffer.concat(parts);
}
