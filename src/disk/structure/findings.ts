/** Something that is wrong with a disk file. */
export interface DiskFinding {
  /** error: content is lost or doubtful; warning: a repair is due; leak: space is lost, nothing else. */
  readonly severity: 'error' | 'warning' | 'leak';
  /** One sentence. */
  readonly message: string;
  /** Where in the file, in bytes. */
  readonly offset?: number;
}

const MAXIMUM_FINDINGS = 1000;

/** Whether there are so many findings that more say nothing. */
export function isTooMany(findings: readonly DiskFinding[]): boolean {
  return findings.length >= MAXIMUM_FINDINGS;
}
