// Sets everything up, idempotently: `node scripts/setup.mjs run` what running a container needs, `… test` what the
// tests need as well. Plain Node, no dependency: it runs before npm install. A step whose inputs are unchanged is skipped.
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, readdirSync, statSync, writeFileSync } from 'node:fs';
import { delimiter, join } from 'node:path';

const root = new URL('..', import.meta.url).pathname;
const level = process.argv[2] ?? 'run';
const stamps = join(root, 'node_modules', '.cache', 'lcow-setup');

// program -> Debian package. Each is looked for before anything is installed.
const PROGRAMS = {
  run: {
    'qemu-system-x86_64': 'qemu-system-x86',
    xz: 'xz-utils',
    setpriv: 'util-linux',
    '/usr/share/keyrings/debian-archive-keyring.gpg': 'debian-archive-keyring',
    gpgv: 'gpgv',
  },
  test: {
    'qemu-img': 'qemu-utils',
    e2fsck: 'e2fsprogs',
    debugfs: 'e2fsprogs',
    skopeo: 'skopeo',
    'docker-registry': 'docker-registry',
    mmdebstrap: 'mmdebstrap',
    busybox: 'busybox-static',
    zstd: 'zstd',
    python3: 'python3',
    cpio: 'cpio',
    unshare: 'util-linux',
  },
};

function fail(sentence) {
  console.error(`set-up: ${sentence}`);
  process.exit(1);
}

function run(command, args, options = {}) {
  const result = spawnSync(command, args, { cwd: root, stdio: 'inherit', ...options });
  if (result.error) fail(`${command} cannot be started: ${result.error.message}`);
  if (result.status !== 0) fail(`${[command, ...args].join(' ')} failed with exit code ${result.status}.`);
}

/** Finds a program on PATH and in the sbin folders that users often lack there. */
function has(program) {
  if (program.startsWith('/')) return existsSync(program);
  const folders = [...(process.env.PATH ?? '').split(delimiter), '/usr/sbin', '/sbin'];
  return folders.some((folder) => existsSync(join(folder, program)));
}

/** A digest over names, sizes and times of files: cheap, and changes whenever a file was written. */
function fingerprint(paths) {
  const hash = createHash('sha256');
  const visit = (path) => {
    const stat = statSync(path, { throwIfNoEntry: false });
    if (!stat) {
      hash.update(`${path} missing\n`);
    } else if (stat.isDirectory()) {
      for (const name of readdirSync(path).sort()) {
        if (name !== 'out' && name !== 'node_modules') visit(join(path, name));
      }
    } else {
      hash.update(`${path} ${stat.size} ${stat.mtimeMs}\n`);
    }
  };
  for (const path of paths) visit(join(root, path));
  return hash.digest('hex');
}

function step(name, title, inputs, outputs, work) {
  const stampFile = join(stamps, name);
  const fresh =
    outputs.every((output) => existsSync(join(root, output))) &&
    existsSync(stampFile) &&
    readFileSync(stampFile, 'utf8') === fingerprint(inputs);
  if (fresh) return;
  console.error(`set-up: ${title}`);
  work();
  mkdirSync(stamps, { recursive: true });
  writeFileSync(stampFile, fingerprint(inputs));
}

function checkNode() {
  const [major, minor] = process.versions.node.split('.').map(Number);
  if (major < 20 || (major === 20 && minor < 19)) {
    fail(`Node ${process.versions.node} is too old: install Node 20.19 or newer, 22 or 24.`);
  }
}

function installPrograms() {
  const wanted = { ...PROGRAMS.run, ...(level === 'test' ? PROGRAMS.test : {}) };
  const missing = Object.keys(wanted).filter((program) => !has(program));
  if (missing.length === 0) return;
  const packages = [...new Set(missing.map((program) => wanted[program]))];
  const asRoot = process.getuid?.() === 0 ? [] : ['sudo'];
  const manual = `${[...asRoot, 'apt-get', 'install', '--no-install-recommends', ...packages].join(' ')}`;
  if (!has('apt-get')) {
    fail(
      `these programs are missing: ${missing.join(', ')}. Install them with your system's package manager ` +
        `(Debian's package names: ${packages.join(', ')}).`,
    );
  }
  const mayInstall =
    asRoot.length === 0 || (has('sudo') && spawnSync('sudo', ['-n', 'true'], { stdio: 'ignore' }).status === 0);
  if (!mayInstall) {
    fail(`these programs are missing: ${missing.join(', ')}. Installing them needs root once:\n\n  ${manual}\n`);
  }
  console.error(`set-up: installing Debian packages ${packages.join(' ')}`);
  const env = { ...process.env, DEBIAN_FRONTEND: 'noninteractive' };
  const quietly = (args) => {
    const [command, ...rest] = [...(asRoot.length ? ['sudo', '-n', '-E'] : []), ...args];
    const result = spawnSync(command, rest, { env, encoding: 'utf8', maxBuffer: 64 << 20 });
    if (result.status !== 0) {
      fail(`${args.join(' ')} failed:\n${result.stdout ?? ''}${result.stderr ?? ''}\nTry it yourself: ${manual}`);
    }
  };
  quietly(['apt-get', 'update', '-qq']);
  quietly(['apt-get', 'install', '-y', '-qq', '--no-install-recommends', ...packages]);
  const still = missing.filter((program) => !has(program));
  if (still.length > 0) fail(`after installing ${packages.join(' ')}, still missing: ${still.join(', ')}.`);
}

checkNode();
if (level !== 'run' && level !== 'test') fail(`unknown level "${level}": run or test.`);
step('npm', 'installing npm packages', ['package.json', 'package-lock.json'], ['node_modules/typescript'], () =>
  run('npm', ['ci', '--no-audit', '--no-fund', '--loglevel=error']),
);
installPrograms();
step(
  'build',
  'compiling TypeScript',
  ['src', 'tsconfig.json', 'tsconfig.build.json', 'package-lock.json'],
  ['dist/cli/main.js'],
  () => run('node_modules/.bin/tsc', ['-p', 'tsconfig.build.json']),
);
step(
  'guest',
  'building the guest image (kernel, agent, crun)',
  ['guest', 'proto', 'src/disk/tar'],
  ['guest/out/vmlinux', 'guest/out/initrd.img', 'guest/out/manifest.json'],
  () => run('node_modules/.bin/tsx', ['guest/image/build.ts']),
);
const images = level === 'test' ? ['--all'] : ['busybox'];
step(
  `images-${level}`,
  level === 'test' ? 'building the test images' : 'building the busybox image',
  ['test/images'],
  ['test/images/out/busybox/index.json', ...(level === 'test' ? ['test/images/out/debian/index.json'] : [])],
  () => run('node_modules/.bin/tsx', ['test/images/build.ts', ...images]),
);
