import { execFile } from 'node:child_process';
import { access, constants, realpath, stat } from 'node:fs/promises';
import { delimiter, isAbsolute, join } from 'node:path';
import { LcowError, errorMessage } from '../../errors/index.js';
import { lastLine } from './console.js';

/** Oldest QEMU this engine is tested with: memory-backend reserve=, JSON -device and panic=exit-failure are in it. */
export const MINIMUM_QEMU = { major: 7, minor: 2 } as const;

const NAME = process.platform === 'win32' ? 'qemu-system-x86_64.exe' : 'qemu-system-x86_64';

/** A usable qemu-system-x86_64. */
export interface QemuBinary {
  readonly path: string;
  /** As QEMU says it, e.g. "7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)". */
  readonly version: string;
  readonly major: number;
  readonly minor: number;
}

/**
 * Finds QEMU: `$LCOW_QEMU`, else qemu-system-x86_64 on the PATH. The guest image is for x86-64, on any host.
 * @throws LcowError QEMU_MISSING when there is none, it does not run, or it is too old.
 */
export async function findQemu(env: NodeJS.ProcessEnv = process.env): Promise<QemuBinary> {
  const path = await locate(env);
  const { mtimeMs, size } = await stat(path);
  const key = `${path} ${mtimeMs} ${size}`;
  const known = seen.get(key) ?? (await inspect(path));
  seen.set(key, known);
  return known;
}

/** What was found before, by path and age of the file: asking QEMU takes longer than a tenth of its start. */
const seen = new Map<string, QemuBinary>();

async function inspect(path: string): Promise<QemuBinary> {
  const text = await versionText(path);
  const match = /^QEMU emulator version ((\d+)\.(\d+)[^\n]*)/.exec(text);
  if (!match) throw new LcowError('QEMU_MISSING', `${path} is not QEMU: it says "${text.slice(0, 80).trim()}".`);
  const [, version = '', major, minor] = match;
  const binary = { path, version: version.trim(), major: Number(major), minor: Number(minor) };
  const { major: wantMajor, minor: wantMinor } = MINIMUM_QEMU;
  if (binary.major < wantMajor || (binary.major === wantMajor && binary.minor < wantMinor))
    throw new LcowError('QEMU_MISSING', `${path} is QEMU ${version}, at least ${wantMajor}.${wantMinor} is needed.`);
  return binary;
}

async function locate(env: NodeJS.ProcessEnv): Promise<string> {
  const chosen = env['LCOW_QEMU'];
  if (chosen) {
    if (await isExecutable(chosen)) return realpath(chosen);
    throw new LcowError('QEMU_MISSING', `LCOW_QEMU names ${chosen}, which is not an executable file.`);
  }
  for (const folder of (env['PATH'] ?? '').split(delimiter)) {
    const path = join(folder, NAME);
    if (isAbsolute(path) && (await isExecutable(path))) return path;
  }
  throw new LcowError('QEMU_MISSING', `${NAME} is not on the PATH.`);
}

async function isExecutable(path: string): Promise<boolean> {
  try {
    await access(path, constants.X_OK);
    return true;
  } catch {
    return false;
  }
}

function versionText(path: string): Promise<string> {
  return run(path, ['--version']);
}

/** Runs QEMU for what it prints. @throws LcowError QEMU_MISSING when it fails or takes more than 10 s. */
function run(path: string, args: string[]): Promise<string> {
  return new Promise((resolve, reject) => {
    execFile(path, args, { timeout: 10_000, maxBuffer: 1 << 20 }, (error, stdout, stderr) => {
      if (error)
        reject(
          new LcowError(
            'QEMU_MISSING',
            `${path} ${args.join(' ')} fails: ${lastLine(stderr) || lastLine(errorMessage(error))}.`,
            { cause: error },
          ),
        );
      else resolve(stdout);
    });
  });
}

/**
 * Accelerators this QEMU was built with, as `-accel help` lists them.
 * @throws LcowError QEMU_MISSING.
 */
export async function builtInAccelerators(qemu: QemuBinary): Promise<string[]> {
  const text = await run(qemu.path, ['-accel', 'help']);
  return text
    .split('\n')
    .map((line) => line.trim())
    .filter((line) => /^[a-z0-9]+$/.test(line));
}
