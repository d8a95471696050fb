import type { Readable } from 'node:stream';

/** Longest line of the guest's log that is kept; the rest of a longer one is dropped. */
export const MAX_LOG_LINE_BYTES = 65_536;

/** One line of the guest agent's log. */
export interface GuestLogLine {
  /** The line as it came, without its end. */
  readonly text: string;
  /** The line as JSON, when it is a JSON object. */
  readonly fields: Readonly<Record<string, unknown>> | undefined;
  /** The line was longer than {@link MAX_LOG_LINE_BYTES} and was cut. */
  readonly cut: boolean;
}

/** Splits a byte stream into log lines in bounded memory. The last line need not be ended. */
export async function* logLines(stream: Readable): AsyncGenerator<GuestLogLine, void> {
  let pieces: Buffer[] = [];
  let length = 0;
  let cut = false;
  const keep = (piece: Buffer): void => {
    const room = MAX_LOG_LINE_BYTES - length;
    if (piece.length > room) cut = true;
    const kept = piece.subarray(0, room);
    if (kept.length > 0) pieces.push(kept);
    length += kept.length;
  };
  const line = (): GuestLogLine => {
    const made = parse(Buffer.concat(pieces).toString('utf8'), cut);
    pieces = [];
    length = 0;
    cut = false;
    return made;
  };
  for await (const chunk of stream as AsyncIterable<Buffer>) {
    let from = 0;
    for (let at = chunk.indexOf(10); at >= 0; at = chunk.indexOf(10, from)) {
      keep(chunk.subarray(from, at));
      from = at + 1;
      if (length > 0) yield line();
    }
    keep(chunk.subarray(from));
    // Many tiny pieces of one line would each hold their own memory.
    if (pieces.length > 64) pieces = [Buffer.concat(pieces)];
  }
  if (length > 0) yield line();
}

function parse(text: string, cut: boolean): GuestLogLine {
  let fields: unknown;
  try {
    fields = JSON.parse(text);
  } catch {
    // Not every writer to the log speaks JSON: the kernel and a panicking runtime do not.
  }
  const isObject = typeof fields === 'object' && fields !== null && !Array.isArray(fields);
  return { text, fields: isObject ? (fields as Record<string, unknown>) : undefined, cut };
}
