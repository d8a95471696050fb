import { chmodSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

/** What a shell script does in place of QEMU, after it has answered `--version` and `-accel help`. */
export const FAKE_QEMU = {
  exits: 'echo "qemu: boom." >&2; exit 3',
  neverGreets: 'exec sleep 600',
  greetsOnly: `printf '{"QMP": {}}\\n' >&3; exec sleep 600`,
  greetsAndExits: `printf '{"QMP": {}}\\n' >&3; echo "qemu: late." >&2; exit 4`,
} as const;

export interface FakeQemuOptions {
  readonly version?: string;
  readonly accelerators?: readonly string[];
}

/** Writes an executable script that behaves as QEMU does up to a point. @returns its path. */
export function fakeQemu(folder: string, does: string, options: FakeQemuOptions = {}): string {
  const path = join(folder, `qemu-${Math.random().toString(36).slice(2)}`);
  const { version = '9.9.9', accelerators = ['tcg', 'kvm'] } = options;
  writeFileSync(
    path,
    `#!/bin/sh
case "$*" in
--version) echo "QEMU emulator version ${version}"; exit 0;;
"-accel help") echo "Accelerators supported in QEMU binary:"; ${accelerators.map((name) => `echo ${name}`).join('; ')}; exit 0;;
esac
${does}
`,
  );
  chmodSync(path, 0o755);
  return path;
}
