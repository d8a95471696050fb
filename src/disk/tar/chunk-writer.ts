const CHUNK_BYTES = 1024 * 1024;

/** Gathers output in chunks of up to 1 MiB, which its owner takes when there is no more room. */
export class ChunkWriter {
  #chunk: Buffer = Buffer.allocUnsafeSlow(CHUNK_BYTES);
  #spare: Buffer | undefined;
  #length = 0;

  /** @param reuse whether a chunk that was taken is written to again when the one after it was taken. */
  constructor(private readonly reuse: boolean) {}

  get room(): number {
    return CHUNK_BYTES - this.#length;
  }

  get length(): number {
    return this.#length;
  }

  /** Copies bytes for which there is room. */
  append(bytes: Uint8Array): void {
    this.#chunk.set(bytes, this.#length);
    this.#length += bytes.length;
  }

  /** Zeros for which there is room. */
  appendZeros(count: number): void {
    this.#chunk.fill(0, this.#length, this.#length + count);
    this.#length += count;
  }

  /** A piece of the chunk, for which there is room, to be filled by the caller. */
  claim(bytes: number): Buffer {
    const piece = this.#chunk.subarray(this.#length, this.#length + bytes);
    this.#length += bytes;
    return piece;
  }

  /** What was gathered; a new chunk is begun. */
  take(): Buffer {
    const taken = this.#chunk;
    this.#chunk = this.#spare ?? Buffer.allocUnsafeSlow(CHUNK_BYTES);
    if (this.reuse) this.#spare = taken;
    const length = this.#length;
    this.#length = 0;
    return taken.subarray(0, length);
  }
}
