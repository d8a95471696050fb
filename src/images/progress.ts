import { shortDigest, type Digest } from './digest.js';

export type ProgressPhase = 'waiting' | 'downloading' | 'verifying' | 'extracting' | 'done' | 'exists';

/** Where one layer is on its way into the store. */
export interface ProgressEvent {
  /** Short id of the layer's digest, as docker shows it. */
  readonly layer: string;
  readonly phase: ProgressPhase;
  /** Bytes of the blob done in this phase. */
  readonly current: number;
  /** Bytes of the blob. */
  readonly total: number;
}

export type ProgressListener = (event: ProgressEvent) => void;

/** Least time between two events of one layer in one phase, in milliseconds. */
const INTERVAL_MS = 100;

/** Reports the progress of one layer: every change of phase at once, advances about ten times a second. */
export class LayerProgress {
  readonly #layer: string;
  readonly #total: number;
  readonly #listener: ProgressListener | undefined;
  #phase: ProgressPhase | undefined;
  #reportedAt = 0;

  constructor(digest: Digest, total: number, listener: ProgressListener | undefined) {
    this.#layer = shortDigest(digest);
    this.#total = total;
    this.#listener = listener;
  }

  /** Reports a phase; `current` defaults to none, or to all in the final phases. */
  report(phase: ProgressPhase, current?: number): void {
    if (!this.#listener) return;
    const now = performance.now();
    const finished = phase === 'done' || phase === 'exists';
    if (phase === this.#phase && (finished || now - this.#reportedAt < INTERVAL_MS)) return;
    this.#phase = phase;
    this.#reportedAt = now;
    const position = current ?? (finished ? this.#total : 0);
    this.#listener({ layer: this.#layer, phase, current: position, total: this.#total });
  }
}
