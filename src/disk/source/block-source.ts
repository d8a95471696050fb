/** What a disk is to its readers: bytes at offsets. */
export interface BlockSource {
  /** What to call it in errors. */
  readonly name: string;
  readonly sizeBytes: number;
  /**
   * Fills `target` with the bytes at `offset`; holes are zeros. All of it must lie inside of the disk.
   * Returns nothing when it is done at once.
   * @throws LcowError IO_FAILED, or the format's code when the file is shorter than its structures say.
   */
  readInto(target: Uint8Array, offset: number): Promise<void> | undefined;
  /** The stretches that may hold something else than zeros, ascending, apart; `end` is exclusive. All of it when absent. */
  dataRuns?(): Iterable<{ readonly start: number; readonly end: number }>;
}

/** A disk in memory. */
export class MemorySource implements BlockSource {
  constructor(
    private readonly bytes: Uint8Array,
    readonly name = 'The image',
  ) {}

  get sizeBytes(): number {
    return this.bytes.length;
  }

  readInto(target: Uint8Array, offset: number): undefined {
    target.set(this.bytes.subarray(offset, offset + target.length));
  }
}
