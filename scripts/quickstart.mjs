// After set-up: imports the busybox image and runs a container in a utility VM.
import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('..', import.meta.url));
const image = 'test/images/out/busybox';
const lcow = (args, stdio) =>
  spawnSync(process.execPath, [`${root}dist/cli/main.js`, ...args], { cwd: root, stdio, encoding: 'utf8' });
const tell = (...lines) => lines.forEach((line) => console.error(line));

tell('', `$ lcow image import --name busybox ${image}`);
const imported = lcow(['image', 'import', '--name', 'busybox', image], 'pipe');
if (imported.status !== 0) {
  tell(imported.stderr.trim());
  process.exit(imported.status ?? 1);
}
const script = 'echo "Hello from a container in its own VM: Linux $(uname -r)"';
tell(`$ lcow run --rm busybox sh -c '${script}'`);
const started = performance.now();
const { status } = lcow(['run', '--rm', 'busybox', 'sh', '-c', script], 'inherit');
if (status !== 0) process.exit(status ?? 1);
tell(
  '',
  `It took ${((performance.now() - started) / 1000).toFixed(1)} s. Next, a shell in a container of your own:`,
  '',
  '  npx lcow run --rm -it busybox sh',
);
