import { chmodSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import type { QemuBinary } from './binary.js';
import { startQemu } from './process.js';

const folder = mkdtempSync(join(tmpdir(), 'lcow-process-'));
afterAll(() => rmSync(folder, { recursive: true }));

/** Process group and session: fields 5 and 6 of proc(5)'s stat. */
function groupAndSession(pid: number): string[] {
  return readFileSync(`/proc/${pid}/stat`, 'latin1')
    .replace(/^.*\) . \d+ /, '')
    .split(' ')
    .slice(0, 2);
}

describe.runIf(process.platform === 'linux')('a QEMU process', () => {
  it('is out of reach of the signals that a terminal sends to its owner', async () => {
    const path = join(folder, 'qemu');
    writeFileSync(path, '#!/bin/sh\nexec sleep 1000\n');
    chmodSync(path, 0o755);
    const qemu = await startQemu({ path } as QemuBinary, []);
    try {
      const own = String(qemu.identity.pid);
      expect(groupAndSession(qemu.identity.pid)).toEqual([own, own]);
    } finally {
      qemu.kill();
    }
    expect(await qemu.exited).toMatchObject({ signal: 'SIGKILL' });
  });
});
