/** One line of the benchmark table: a figure of ours beside the floor that nothing of its kind can beat, or a peer. */
export interface BenchRow {
  readonly name: string;
  readonly value: number;
  readonly unit: string;
  readonly floorName: string;
  readonly floorValue: number;
  /** `value` by `floorValue`, taken within each round and then the median: it holds on a machine that is busy. */
  readonly ratio: number;
}

/** The median of some figures. */
export function median(values: readonly number[]): number {
  const sorted = [...values].sort((one, other) => one - other);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
}
