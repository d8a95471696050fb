import { delimiter } from 'node:path';
import { defineConfig } from 'vitest/config';

// Users of Debian have no sbin folders on their PATH; e2fsck, mke2fs and debugfs are there.
process.env['PATH'] = [process.env['PATH'], '/usr/sbin', '/sbin'].join(delimiter);

// Three kinds: unit tests stand beside their source; vm tests start real VMs; stress tests are long and not part of `npm test`.
// Forks, not threads: QEMU is tied to the life of the thread that spawned it (PR_SET_PDEATHSIG).
export default defineConfig({
  test: {
    pool: 'forks',
    reporters: ['default'],
    projects: [
      {
        test: {
          name: 'unit',
          include: ['src/**/*.test.ts', 'test/unit/**/*.test.ts'],
          pool: 'forks',
          testTimeout: 60_000,
          hookTimeout: 60_000,
        },
      },
      {
        test: {
          name: 'vm',
          include: ['test/vm/**/*.test.ts'],
          pool: 'forks',
          fileParallelism: false,
          testTimeout: 180_000,
          hookTimeout: 300_000,
        },
      },
      {
        test: {
          name: 'stress',
          include: ['test/stress/**/*.test.ts'],
          pool: 'forks',
          fileParallelism: false,
          testTimeout: 3_600_000,
          hookTimeout: 300_000,
        },
      },
    ],
  },
});
