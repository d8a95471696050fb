// Chunks shorter than this are gathered, so that a peer who sends single bytes costs no more memory than its bytes.
const SMALL_BYTES = 1024;
const GATHER_BYTES = 8192;

/** Bytes waiting to be parsed or read: first in, first out, without copying except where a piece spans chunks. */
export class ByteQueue {
  #chunks: Buffer[] = [];
  #first = 0;
  #length = 0;
  #gather: Buffer = Buffer.alloc(0);
  #gathered = 0;

  /** Bytes held. */
  get length(): number {
    return this.#length;
  }

  /** Adds bytes at the end. The queue keeps the memory of chunks that are not small. */
  push(chunk: Buffer): void {
    if (chunk.length === 0) return;
    this.#length += chunk.length;
    if (chunk.length >= SMALL_BYTES || this.#first === this.#chunks.length) {
      this.#chunks.push(chunk);
      return;
    }
    const last = this.#chunks[this.#chunks.length - 1]!;
    const room = this.#gather.length - this.#gathered;
    if (chunk.length <= room && endOf(last) === this.#gather.byteOffset + this.#gathered && this.#isGathered(last)) {
      chunk.copy(this.#gather, this.#gathered);
      this.#gathered += chunk.length;
      this.#chunks[this.#chunks.length - 1] = Buffer.from(last.buffer, last.byteOffset, last.length + chunk.length);
      return;
    }
    // allocUnsafeSlow: memory of its own, so that the pool of other small buffers is not kept alive.
    this.#gather = Buffer.allocUnsafeSlow(GATHER_BYTES);
    chunk.copy(this.#gather);
    this.#gathered = chunk.length;
    this.#chunks.push(this.#gather.subarray(0, chunk.length));
  }

  #isGathered(chunk: Buffer): boolean {
    return chunk.buffer === this.#gather.buffer;
  }

  /** Removes exactly `count` bytes; the caller has checked that they are there. */
  take(count: number): Buffer {
    if (count === 0) return Buffer.alloc(0);
    const head = this.#chunks[this.#first]!;
    if (head.length >= count) return this.#takeFromHead(count);
    const whole = Buffer.allocUnsafe(count);
    for (let filled = 0; filled < count;) {
      const piece = this.#takeFromHead(Math.min(count - filled, this.#chunks[this.#first]!.length));
      piece.copy(whole, filled);
      filled += piece.length;
    }
    return whole;
  }

  /** Removes the next piece that lies in one place, at most `limit` bytes; undefined when empty. */
  takePiece(limit: number): Buffer | undefined {
    const head = this.#chunks[this.#first];
    return head && this.#takeFromHead(Math.min(limit, head.length));
  }

  #takeFromHead(count: number): Buffer {
    const head = this.#chunks[this.#first]!;
    this.#length -= count;
    if (count < head.length) {
      this.#chunks[this.#first] = head.subarray(count);
      return head.subarray(0, count);
    }
    this.#first++;
    // Dropping used places now and then keeps this linear over the life of the queue.
    if (this.#first === this.#chunks.length || this.#first >= 1024) {
      this.#chunks = this.#chunks.slice(this.#first);
      this.#first = 0;
    }
    return head;
  }

  /** Forgets everything. */
  clear(): void {
    this.#chunks = [];
    this.#first = 0;
    this.#length = 0;
  }
}

function endOf(chunk: Buffer): number {
  return chunk.byteOffset + chunk.length;
}
