import { spawn } from 'node:child_process';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { writeInitrd } from '../guest/image/initrd-cpio.js';

/** The machine to boot; the defaults are the leanest one. */
export interface BareBootOptions {
  /** QEMU's program; `$LCOW_QEMU`, else the one on PATH. */
  readonly qemu?: string;
  readonly accelerator?: string;
  /** Folder with vmlinux. */
  readonly guestImage?: string;
  readonly memorySizeInMB?: number;
  readonly processorCount?: number;
  readonly kernelCommandLine?: string;
}

/** The utility VM's kernel command line, so far as it bears on the time to boot. */
const COMMAND_LINE =
  'console=ttyS0 quiet panic=1 cryptomgr.notests ' +
  'initcall_blacklist=init_kprobe_trace,load_system_certificate_list,crypto_kdf108_init ' +
  'init_on_alloc=0 no_timer_check apparmor=0 lsm=landlock audit=0 8250.nr_uarts=1';

const GREETING = 'lcow-bare-boot';
const LIMIT_MS = 120_000;

/**
 * Times a bare boot: QEMU without devices, the utility VM's kernel, and an init that does nothing but write to the serial port.
 * It is the floor for a cold start. @returns milliseconds from spawning QEMU to the greeting, one per round
 * @throws Error with the console's last lines when a round does not get that far
 */
export async function benchBareBoot(rounds: number, options: BareBootOptions = {}): Promise<number[]> {
  const folder = await mkdtemp(join(tmpdir(), 'lcow-bare-boot-'));
  try {
    const initrd = join(folder, 'initrd.img');
    await writeFile(initrd, minimalInitrd());
    const times: number[] = [];
    for (let round = 0; round < rounds; round++) times.push(await bootOnce(initrd, options));
    return times;
  } finally {
    await rm(folder, { recursive: true });
  }
}

function minimalInitrd(): Buffer {
  return writeInitrd(
    new Map([
      ['dev/console', { type: 'device', mode: 0o600, major: 5, minor: 1 }],
      ['init', { type: 'file', content: greetingProgram(`${GREETING}\n`), mode: 0o755 }],
    ]),
  );
}

/** A static x86-64 program that writes a text to its standard output and then pauses for good. */
function greetingProgram(text: string): Buffer {
  const headers = Buffer.alloc(64 + 56);
  const base = 0x400000;
  const code = Buffer.from(
    'b801000000' + // mov eax, 1 (write)
      'bf01000000' + // mov edi, 1
      '488d3510000000' + // lea rsi, [rip + 16]: the text behind the code
      'ba00000000' + // mov edx, length, set below
      '0f05' + // syscall
      'b822000000' + // mov eax, 34 (pause)
      '0f05' + // syscall
      'ebf7', // jmp to the mov before
    'hex',
  );
  code.writeUInt32LE(text.length, 18);
  const program = Buffer.concat([headers, code, Buffer.from(text)]);
  program.write('7f454c460201010000000000000000000200', 0, 'hex'); // 64-bit, little-endian, executable
  program.writeUInt16LE(62, 18); // x86-64
  program.writeUInt32LE(1, 20);
  program.writeBigUInt64LE(BigInt(base + headers.length), 24); // entry
  program.writeBigUInt64LE(64n, 32); // program header
  program.writeUInt16LE(64, 52);
  program.writeUInt16LE(56, 54);
  program.writeUInt16LE(1, 56);
  program.writeUInt32LE(1, 64); // PT_LOAD
  program.writeUInt32LE(5, 68); // readable, executable
  program.writeBigUInt64LE(BigInt(base), 80);
  program.writeBigUInt64LE(BigInt(base), 88);
  program.writeBigUInt64LE(BigInt(program.length), 96);
  program.writeBigUInt64LE(BigInt(program.length), 104);
  program.writeBigUInt64LE(4096n, 112);
  return program;
}

async function bootOnce(initrd: string, options: BareBootOptions): Promise<number> {
  const qemu = options.qemu ?? (process.env['LCOW_QEMU'] || 'qemu-system-x86_64');
  const guestImage =
    options.guestImage ?? (process.env['LCOW_GUEST_IMAGE'] || join(import.meta.dirname, '..', 'guest', 'out'));
  const args = [
    ...['-accel', options.accelerator ?? 'tcg', '-cpu', 'max', '-machine', 'q35'],
    ...['-m', String(options.memorySizeInMB ?? 256), '-smp', String(options.processorCount ?? 1)],
    ...['-nodefaults', '-no-user-config', '-no-reboot', '-display', 'none', '-serial', 'stdio'],
    ...['-kernel', join(guestImage, 'vmlinux'), '-initrd', initrd],
    ...['-append', options.kernelCommandLine ?? COMMAND_LINE],
  ];
  const started = performance.now();
  const child = spawn(qemu, args, { stdio: ['ignore', 'pipe', 'pipe'], timeout: LIMIT_MS, killSignal: 'SIGKILL' });
  let console = '';
  const ended = new Promise<void>((resolve, reject) => {
    child.once('error', reject);
    child.once('close', () => resolve());
  });
  const greeted = new Promise<number>((resolve, reject) => {
    const read = (text: string): void => {
      console = (console + text).slice(-4096);
      if (console.includes(GREETING)) resolve(performance.now() - started);
    };
    child.stdout.setEncoding('utf8').on('data', read);
    child.stderr.setEncoding('utf8').on('data', read);
    ended.then(() => reject(new Error(`The bare boot ended early; its console: ${console}`)), reject);
  });
  try {
    return await greeted;
  } finally {
    child.kill('SIGKILL');
    await ended.catch(() => {});
  }
}
