// Sets everything up, idempotently: `node scripts/setup.mjs run` what running a container needs, `… test` what the
// tests need as well. Plain Node, no dependency: it runs before npm install. A step whose inputs are unchanged is skipped;
// one that was interrupted leaves no stamp and is done again.
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, readdirSync, statSync, writeFileSync } from 'node:fs';
import { delimiter, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('..', import.meta.url));
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
    veritysetup: 'cryptsetup-bin',
    skopeo: 'skopeo',
    'docker-registry': 'docker-registry',
    mmdebstrap: 'mmdebstrap',
    // With these two mmdebstrap needs neither root nor user namespaces.
    fakeroot: 'fakeroot',
    fakechroot: 'fakechroot',
    busybox: 'busybox-static',
    zstd: 'zstd',
    python3: 'python3',
    cpio: 'cpio',
    script: 'bsdutils',
  },
};

function fail(sentence) {
  console.error(`set-up: ${sentence}`);
  process.exit(1);
}

/** Runs a program in the project's folder; when it fails, ends with what failed and the hint. */
function run(command, args, hint = '') {
  const result = spawnSync(command, args, { cwd: root, stdio: 'inherit' });
  if (result.status === 0) return;
  const why = result.error?.message ?? (result.signal ? `ended by ${result.signal}` : `exit code ${result.status}`);
  fail(`${[command.replace(root, ''), ...args].join(' ')} failed: ${why}.${hint && `\n${hint}`}`);
}

/** Finds a program on PATH and in the sbin folders that users often lack there. */
function has(program) {
  if (program.startsWith('/')) return existsSync(program);
  const folders = [...(process.env.PATH ?? '').split(delimiter), '/usr/sbin', '/sbin'];
  return folders.some((folder) => existsSync(join(folder, program)));
}

/** A digest over names and contents of the sources, less what the steps themselves make. */
function fingerprint(paths) {
  const hash = createHash('sha256');
  const visit = (path) => {
    const stat = statSync(join(root, path), { throwIfNoEntry: false });
    if (!stat) {
      hash.update(`${path} missing\n`);
    } else if (stat.isDirectory()) {
      for (const name of readdirSync(join(root, path)).sort()) {
        if (name !== 'out' && name !== 'node_modules') visit(`${path}/${name}`);
      }
    } else {
      hash.update(`${path} ${stat.size}\n`).update(readFileSync(join(root, path)));
    }
  };
  paths.forEach(visit);
  return hash.digest('hex');
}

function step(name, title, inputs, outputs, work) {
  const stampFile = join(stamps, name);
  const wanted = fingerprint(inputs);
  const isFresh =
    outputs.every((output) => existsSync(join(root, output))) &&
    existsSync(stampFile) &&
    readFileSync(stampFile, 'utf8') === wanted;
  if (isFresh) return;
  console.error(`set-up: ${title}`);
  work();
  mkdirSync(stamps, { recursive: true });
  // What it was before the work: a source changed meanwhile is taken up by the next run.
  writeFileSync(stampFile, wanted);
}

function checkNode() {
  const [major, minor] = process.versions.node.split('.').map(Number);
  if (major < 20 || (major === 20 && minor < 19)) {
    fail(`Node ${process.versions.node} is too old: install Node 20.19 or newer, 22 or 24.`);
  }
}

/** What to put before a command for it to run as root, or undefined where only a person can do that. */
function rootPrefix() {
  if (process.getuid?.() === 0) return [];
  if (!has('sudo')) return undefined;
  // sudo forgets the environment; apt must not ask, and may need a proxy.
  const kept = Object.keys(process.env).filter((name) => /^(https?|ftp|no)_proxy$/i.test(name));
  const env = ['env', 'DEBIAN_FRONTEND=noninteractive', ...kept.map((name) => `${name}=${process.env[name]}`)];
  if (spawnSync('sudo', ['-n', 'true'], { stdio: 'ignore' }).status === 0) return ['sudo', '-n', ...env];
  return process.stdin.isTTY && process.stderr.isTTY ? ['sudo', ...env] : undefined;
}

function installPrograms() {
  const wanted = { ...PROGRAMS.run, ...(level === 'test' ? PROGRAMS.test : {}) };
  const missing = Object.keys(wanted).filter((program) => !has(program));
  if (missing.length === 0) return;
  const packages = [...new Set(missing.map((program) => wanted[program]))];
  const absent = `These programs are missing: ${missing.join(', ')}.`;
  if (!has('apt-get')) {
    fail(`${absent} Install them with your system's package manager (Debian's package names: ${packages.join(', ')}).`);
  }
  const install = ['apt-get', 'install', '-y', '--no-install-recommends', ...packages];
  const manual = has('sudo')
    ? `sudo apt-get update && sudo ${install.join(' ')}`
    : `su -c 'apt-get update && ${install.join(' ')}'`;
  const prefix = rootPrefix();
  if (!prefix) fail(`${absent} Installing them needs root, once. Run this, then what you ran again:\n\n  ${manual}\n`);
  console.error(`set-up: installing the Debian packages ${packages.join(' ')} (apt-get, as root)`);
  const env = { ...process.env, DEBIAN_FRONTEND: 'noninteractive' };
  let said = '';
  const asRoot = (args) => {
    const [command, ...rest] = [...prefix, ...args];
    // sudo asks for a password on the terminal, not on these.
    const result = spawnSync(command, rest, { env, encoding: 'utf8', maxBuffer: 64 << 20 });
    said += `${result.stdout ?? ''}${result.stderr ?? ''}${result.error?.message ?? ''}`;
    return result.status === 0;
  };
  // A repository that cannot be reached need not be one of those that are wanted: the installation decides.
  asRoot(['apt-get', 'update', '-qq']);
  if (!asRoot([...install, '-qq'])) {
    fail(
      `${install.join(' ')} failed:\n${said.trim()}\n\nRun this again once it can work, or yourself:\n\n  ${manual}\n`,
    );
  }
  const still = missing.filter((program) => !has(program));
  if (still.length > 0) fail(`After installing ${packages.join(' ')}, these are still missing: ${still.join(', ')}.`);
}

checkNode();
if (level !== 'run' && level !== 'test') fail(`There is no level "${level}": say run or test.`);
installPrograms();
step('npm', 'installing npm packages', ['package.json', 'package-lock.json'], ['node_modules/typescript'], () =>
  run(
    'npm',
    [
      'ci',
      '--no-audit',
      '--no-fund',
      '--loglevel=error',
      '--fetch-retry-mintimeout=1000',
      '--fetch-retry-maxtimeout=9000',
    ],
    'It needs the npm registry that `npm config get registry` names. Once that can be reached, run this again.',
  ),
);
step(
  'build',
  'compiling TypeScript',
  ['src', 'tsconfig.json', 'tsconfig.build.json', 'package-lock.json'],
  ['dist/cli/main.js'],
  () => run(process.execPath, ['node_modules/typescript/bin/tsc', '-p', 'tsconfig.build.json']),
);
const tsx = ['--import', 'tsx'];
step(
  'guest',
  'building the guest image (kernel, agent, crun): the first time about a minute',
  ['guest', 'proto', 'src/disk/tar'],
  ['guest/out/vmlinux', 'guest/out/initrd.img', 'guest/out/manifest.json'],
  () => run(process.execPath, [...tsx, 'guest/image/build.ts']),
);
const images = level === 'test' ? ['--all'] : ['busybox'];
step(
  `images-${level}`,
  level === 'test' ? 'building the test images: the first time about a minute' : 'building the busybox image',
  ['test/images', 'guest/image'],
  ['test/images/out/busybox/index.json', ...(level === 'test' ? ['test/images/out/debian/index.json'] : [])],
  () => run(process.execPath, [...tsx, 'test/images/build.ts', ...images]),
);
