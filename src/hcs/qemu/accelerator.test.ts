import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { fakeQemu, type FakeQemuOptions } from '../../../test/support/fake-qemu.js';
import { processesNaming } from '../../../test/support/processes.js';
import { setTimeoutFactor, timeoutFactor } from '../../lifetime/index.js';
import { chooseAccelerator, probeAccelerators, type AcceleratorOptions } from './accelerator.js';
import { findQemu } from './binary.js';

const BOOTS = 'echo "[    0.9] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)"; exit 0';
const folder = mkdtempSync(join(tmpdir(), 'lcow-accel-'));
afterAll(() => rmSync(folder, { recursive: true }));

let cacheFolder: string;
beforeEach(() => {
  cacheFolder = mkdtempSync(join(folder, 'cache-'));
  vi.stubEnv('LCOW_ACCEL', '');
});
afterEach(async () => {
  vi.unstubAllEnvs();
  setTimeoutFactor(1);
  expect(await processesNaming(folder)).toEqual([]);
});

const runs = join(folder, 'runs');

/** A QEMU whose guests do as told under each accelerator; counts how often one was tried. */
async function withGuests(guests: Record<string, string>, options: FakeQemuOptions = {}): Promise<AcceleratorOptions> {
  writeFileSync(runs, '');
  const cases = Object.entries(guests).map(([name, does]) => `*"-accel ${name} "*) echo ${name} >> ${runs}; ${does};;`);
  vi.stubEnv(
    'LCOW_QEMU',
    fakeQemu(folder, `case "$*" in\n${cases.join('\n')}\nesac`, {
      accelerators: ['tcg', ...Object.keys(guests)],
      ...options,
    }),
  );
  return { qemu: await findQemu(), kernelFilePath: '/kernel', cacheFolder };
}

const tried = (): string[] => readFileSync(runs, 'utf8').trim().split('\n').filter(Boolean);

// hvf and whpx stand for an accelerator with no device to look for on this host.
describe('the choice of an accelerator', () => {
  it('takes the first one whose guest boots, and remembers', async () => {
    const options = await withGuests({ hvf: BOOTS, whpx: BOOTS });
    expect(await chooseAccelerator(options)).toBe('hvf');
    expect(timeoutFactor()).toBe(1);
    expect(await chooseAccelerator(options)).toBe('hvf');
    expect(tried()).toEqual(['hvf']);
  });

  it('passes by one that accepts the machine and hangs', async () => {
    vi.stubEnv('LCOW_TIMEOUT_ACCELERATORTRIAL', '0.2');
    const options = await withGuests({ hvf: 'exec sleep 600', whpx: BOOTS });
    expect(await chooseAccelerator(options)).toBe('whpx');
    expect(await chooseAccelerator(options)).toBe('whpx');
    expect(tried()).toEqual(['hvf', 'whpx']);
  });

  it('passes by one that aborts, and takes emulation without a trial when nothing else is left', async () => {
    const options = await withGuests({ hvf: 'echo "qemu: Assertion failed." >&2; exit 134' });
    expect(await chooseAccelerator(options)).toBe('tcg');
    expect(timeoutFactor()).toBe(4);
    expect(tried()).toEqual(['hvf']);
  });

  it('tries again with another QEMU', async () => {
    await chooseAccelerator(await withGuests({ hvf: 'exit 1' }));
    expect(await chooseAccelerator(await withGuests({ hvf: BOOTS }, { version: '10.0.0' }))).toBe('hvf');
  });

  it('tries again when what it remembered is damaged, and does without a cache it cannot write', async () => {
    const options = await withGuests({ hvf: BOOTS });
    writeFileSync(join(cacheFolder, 'accelerators.json'), '{"key": 1');
    expect(await chooseAccelerator(options)).toBe('hvf');
    expect(await chooseAccelerator({ ...options, cacheFolder: join(runs, 'no-folder') })).toBe('hvf');
  });

  it('fails when there is not even emulation', async () => {
    const options = await withGuests({ hvf: 'exit 1' }, { accelerators: ['hvf'] });
    await expect(chooseAccelerator(options)).rejects.toMatchObject({ code: 'NO_ACCELERATOR' });
  });

  it('is overridden by LCOW_ACCEL, untried', async () => {
    const options = await withGuests({ hvf: BOOTS });
    vi.stubEnv('LCOW_ACCEL', 'tcg');
    expect(await chooseAccelerator(options)).toBe('tcg');
    vi.stubEnv('LCOW_ACCEL', 'xen');
    await expect(chooseAccelerator(options)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    expect(tried()).toEqual([]);
  });

  it('can be cancelled, and leaves no QEMU', async () => {
    const options = await withGuests({ hvf: 'exec sleep 600' });
    const stop = new AbortController();
    const choosing = chooseAccelerator({ ...options, signal: stop.signal });
    setTimeout(() => stop.abort(), 50);
    await expect(choosing).rejects.toMatchObject({ code: 'CANCELLED' });
  });
});

it('a probe tries all, whatever is remembered, and tells why', async () => {
  vi.stubEnv('LCOW_TIMEOUT_ACCELERATORTRIAL', '0.2');
  const options = await withGuests({ hvf: 'exec sleep 600', whpx: 'echo "qemu: no." >&2; exit 1', tcg: BOOTS });
  await chooseAccelerator(options);
  const verdicts = await probeAccelerators(options);
  expect(verdicts.map(({ accelerator, usable }) => [accelerator, usable])).toEqual([
    ['kvm', false],
    ['hvf', false],
    ['whpx', false],
    ['tcg', true],
  ]);
  expect(verdicts.map(({ reason }) => reason)).toEqual([
    'This QEMU was built without it.',
    'A guest hung: it did not boot within 0.2 s.',
    'QEMU failed: qemu: no.',
    expect.stringMatching(/^A guest booted in \d+ ms\.$/),
  ]);
  expect(existsSync(join(cacheFolder, 'accelerators.json'))).toBe(true);
});

describe('the search for QEMU', () => {
  it('refuses what is missing, no QEMU, or too old', async () => {
    await expect(findQemu({ PATH: '/nonexistent' })).rejects.toMatchObject({ code: 'QEMU_MISSING' });
    await expect(findQemu({ LCOW_QEMU: '/nonexistent' })).rejects.toMatchObject({ code: 'QEMU_MISSING' });
    await expect(findQemu({ LCOW_QEMU: '/bin/echo' })).rejects.toThrow(/is not QEMU/);
    await expect(findQemu({ LCOW_QEMU: fakeQemu(folder, '', { version: '7.1.9' }) })).rejects.toThrow(/7\.2 is needed/);
    expect(await findQemu({ LCOW_QEMU: fakeQemu(folder, '', { version: '10.0.3 (Debian 1)' }) })).toMatchObject({
      version: '10.0.3 (Debian 1)',
      major: 10,
      minor: 0,
    });
  });

  it('finds the one of this machine on the PATH', async () => {
    expect(await findQemu({ PATH: process.env['PATH'] })).toMatchObject({
      path: expect.stringContaining('qemu-system') as string,
    });
  });
});
