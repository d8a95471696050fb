/**
 * A connection, or a session on it, is over. Every waiter of a connection gets the same instance.
 * `closed`: one side went away. `protocol`: the peer sent what the protocol does not allow, so nothing after it can be trusted.
 */
export class TransportError extends Error {
  readonly kind: 'closed' | 'protocol';

  constructor(kind: 'closed' | 'protocol', message: string, cause?: unknown) {
    super(message, cause === undefined ? undefined : { cause });
    this.name = 'TransportError';
    this.kind = kind;
  }
}

/** The peer's words, made fit for an error message: one line, no control characters (a terminal would obey them), bounded. */
export function printable(text: string, limit = 2048): string {
  const line = text.slice(0, limit).replace(/[\u0000-\u001f\u007f-\u009f]+/g, ' ');
  return text.length > limit ? `${line}...` : line;
}
