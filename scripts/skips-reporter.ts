import type { Reporter, TestCase } from 'vitest/node';

/** Lists the tests that skipped themselves, with the reason they gave: vitest's own reporters keep quiet about it. */
export default class SkipsReporter implements Reporter {
  readonly #skips: string[] = [];

  onTestCaseResult(test: TestCase): void {
    const result = test.result();
    if (result.state === 'skipped' && result.note) this.#skips.push(`${test.fullName}: ${result.note}`);
  }

  onTestRunEnd(): void {
    for (const skip of this.#skips) console.log(`skipped: ${skip}`);
  }
}
