// After set-up: imports the busybox image and runs a container in a utility VM.
import { spawnSync } from 'node:child_process';

const root = new URL('..', import.meta.url).pathname;
const lcow = (...args) => {
  console.error(`$ lcow ${args.join(' ')}`);
  const { status } = spawnSync(process.execPath, [`${root}dist/cli/main.js`, ...args], { stdio: 'inherit' });
  if (status !== 0) process.exit(status ?? 1);
};
lcow('image', 'import', '--name', 'busybox', `${root}test/images/out/busybox`);
lcow('run', '--rm', 'busybox', 'sh', '-c', 'echo "Hello from a container in its own VM: Linux $(uname -r)"');
