/** Tars for tests: byte by byte, so that what no tool would write can be written as well. */

/** A member. Text is UTF-8; a number is written as octal unless it does not fit. */
export interface Member {
  readonly name: string | Buffer;
  /** One character: '0' file, '1' hard link, '2' symbolic link, '3', '4' devices, '5' directory, '6' fifo, ... */
  readonly type?: string;
  readonly mode?: number;
  readonly uid?: number;
  readonly gid?: number;
  readonly mtime?: number;
  readonly linkname?: string | Buffer;
  readonly major?: number;
  readonly minor?: number;
  readonly content?: string | Buffer;
  /** The size in the header where it is not that of the content. */
  readonly size?: number;
  /** Written as a pax header before it. */
  readonly pax?: Readonly<Record<string, string | Buffer>>;
  /** Changes the header before its checksum is taken. */
  readonly alter?: (header: Buffer) => void;
}

/** The blocks of one member. */
export function member(entry: Member): Buffer {
  const content = Buffer.from(entry.content ?? '');
  const header = Buffer.alloc(512);
  Buffer.from(entry.name).copy(header, 0, 0, 100);
  writeNumber(header, 100, 8, entry.mode ?? 0o644);
  writeNumber(header, 108, 8, entry.uid ?? 0);
  writeNumber(header, 116, 8, entry.gid ?? 0);
  writeNumber(header, 124, 12, entry.size ?? content.length);
  writeNumber(header, 136, 12, entry.mtime ?? 0);
  header.write(entry.type ?? '0', 156, 'latin1');
  Buffer.from(entry.linkname ?? '').copy(header, 157, 0, 100);
  header.write('ustar\u000000', 257, 'latin1');
  writeNumber(header, 329, 8, entry.major ?? 0);
  writeNumber(header, 337, 8, entry.minor ?? 0);
  entry.alter?.(header);
  header.fill(0x20, 148, 156);
  header.write(
    `${header
      .reduce((sum, byte) => sum + byte, 0)
      .toString(8)
      .padStart(6, '0')}\0 `,
    148,
    'latin1',
  );
  const blocks = [header, content, Buffer.alloc((512 - (content.length % 512)) % 512)];
  if (!entry.pax) return Buffer.concat(blocks);
  return Buffer.concat([member({ name: 'pax', type: 'x', content: paxRecords(entry.pax) }), ...blocks]);
}

/** A whole tar with its end marker. */
export function makeTar(...entries: Member[]): Buffer {
  return Buffer.concat([...entries.map(member), Buffer.alloc(1024)]);
}

/** The content of a pax header. */
export function paxRecords(records: Readonly<Record<string, string | Buffer>>): Buffer {
  return Buffer.concat(
    Object.entries(records).map(([key, value]) => {
      const rest = Buffer.concat([Buffer.from(` ${key}=`), Buffer.from(value), Buffer.from('\n')]);
      let length = rest.length + 1;
      while (String(length).length + rest.length !== length) length = String(length).length + rest.length;
      return Buffer.concat([Buffer.from(String(length)), rest]);
    }),
  );
}

function writeNumber(header: Buffer, at: number, bytes: number, value: number): void {
  const octal = value.toString(8);
  if (value >= 0 && octal.length < bytes) header.write(octal.padStart(bytes - 1, '0') + '\0', at, 'latin1');
  else {
    let rest = BigInt(value);
    for (let i = at + bytes - 1; i >= at; i -= 1, rest >>= 8n) header[i] = Number(rest & 0xffn);
    header[at] = (header[at]! & 0x7f) | 0x80;
  }
}

/** Yields a buffer in pieces, as a network would: of one size, or of sizes that vary by a fixed pattern. */
export async function* inPieces(data: Uint8Array, bytes?: number): AsyncGenerator<Uint8Array, void, undefined> {
  for (let at = 0, turn = 0; at < data.length; turn += 1) {
    const length = bytes ?? 1 + ((turn * 7919) % 1500);
    yield data.subarray(at, at + length);
    at += length;
  }
}
