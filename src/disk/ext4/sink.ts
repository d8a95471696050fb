/** Where an image is written to: forward, once, and at the very end a few bytes at the front. */
export interface ForwardSink {
  /** Bytes appended so far. */
  readonly position: number;
  /** Takes bytes `start` to `end` of `data`, which may change after the call. Never waits: call `drain` now and then. */
  append(data: Buffer, start: number, end: number): void;
  appendZeros(count: number): void;
  /** Resolves when more may be appended without piling up memory. @throws What a write failed with. */
  drain(): Promise<void>;
  /** Overwrites what was appended long ago. */
  writeAt(offset: number, data: Buffer): Promise<void>;
}
