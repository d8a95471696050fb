import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { chmod, cp, mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { Engine } from '../../src/engine/index.js';
import { eventually, finished, imageFolder, program, qemuPids, Sandbox } from './lcow.js';

let lcow: Sandbox;
beforeAll(async () => {
  lcow = await Sandbox.make('busybox');
});
afterAll(async () => {
  expect(await lcow.run(['run', '--rm', 'busybox', 'echo', 'still works'])).toMatchObject({
    code: 0,
    stdout: 'still works\n',
  });
  const left = await lcow.leftovers();
  await lcow.remove();
  expect(left).toEqual([]);
});

describe('a fault', () => {
  it('of an unknown image is told in one sentence', async () => {
    const { code, stderr } = await lcow.run(['run', '--rm', '127.0.0.1:1/nobody/nothing', 'true']);
    expect(code).toBe(125);
    expect(stderr).toMatch(/^lcow: .*127\.0\.0\.1:1/);
    expect((await lcow.run(['run', 'UPPER', 'true'])).stderr).toContain('must be lowercase');
  });

  it('of a missing QEMU or guest image says what to do', async () => {
    const noQemu = await lcow.run(['run', '--rm', 'busybox', 'true'], { env: { LCOW_QEMU: '/nonexistent/qemu' } });
    expect(noQemu.code).toBe(125);
    expect(noQemu.stderr).toContain('/nonexistent/qemu');
    const noGuest = await lcow.run(['run', '--rm', 'busybox', 'true'], { env: { LCOW_GUEST_IMAGE: '/nonexistent' } });
    expect(noGuest.code).toBe(125);
    expect(noGuest.stderr).toContain('npm run build:guest');
    expect(await lcow.ok('ps', '-aq')).toBe('');
  });

  it('of a kernel that panics shows the console’s last lines', async () => {
    const broken = join(lcow.folder, 'panic');
    await mkdir(broken);
    for (const name of ['vmlinux', 'manifest.json'])
      await cp(new URL(`../../guest/out/${name}`, import.meta.url), join(broken, name));
    await writeFile(join(broken, 'initrd.img'), 'no initrd at all');
    const { code, stderr } = await lcow.run(['run', '--rm', 'busybox', 'true'], { env: { LCOW_GUEST_IMAGE: broken } });
    expect(code).toBe(125);
    expect(stderr).toContain('Last lines of the guest console');
    expect(stderr).toContain('Kernel panic');
  });

  it('of a QEMU that is killed ends the run with an error', async () => {
    const child = lcow.start(['run', '--rm', 'busybox', 'sh', '-c', 'echo up; sleep 1000']);
    await once(child.stdout!, 'data');
    let stderr = '';
    child.stderr!.on('data', (chunk: Buffer) => (stderr += chunk.toString()));
    const closed = once(child, 'close');
    for (const pid of await qemuPids(lcow)) process.kill(pid, 'SIGKILL');
    expect((await closed)[0]).toBe(125);
    expect(stderr).toContain('The utility VM ended while the container ran');
    expect(await lcow.ok('ps', '-aq')).toBe('');
  });

  it('of a machine that stands still is ended by rm -f all the same', async () => {
    const started = await lcow.run(['run', '-d', '--name', 'still', 'busybox', 'sleep', '1000'], {
      env: { LCOW_TIMEOUT_GUESTSHUTDOWN: '1' },
    });
    expect(started).toMatchObject({ code: 0 });
    for (const pid of await qemuPids(lcow)) process.kill(pid, 'SIGSTOP');
    expect(await lcow.ok('rm', '-f', 'still')).toBe('still\n');
    expect(await qemuPids(lcow)).toEqual([]);
    expect(await lcow.ok('ps', '-aq')).toBe('');
  });

  it('of an agent that is killed is a panic of its VM, told with the console', async () => {
    const engine = await Engine.open(lcow.env);
    const { id } = await engine.create({ image: 'busybox', command: ['sleep', '1000'], autoRemove: true });
    const supervisor = await engine.supervise(id);
    const args = ['/bin/busybox', 'kill', '-SEGV', '1'];
    await supervisor.vm.createProcess({ process: { args, cwd: '/', env: [] } }).catch(() => undefined);
    await expect(supervisor.wait()).rejects.toMatchObject({
      code: 'GUEST_PANIC',
      details: { consoleTail: expect.stringContaining('Attempted to kill init') as string },
    });
    expect(await lcow.ok('ps', '-aq')).toBe('');
  });

  it('of an owner that is killed leaves no QEMU, and the next command sweeps the rest', async () => {
    const child = lcow.start(['run', '--rm', 'busybox', 'sh', '-c', 'echo up; sleep 1000']);
    await once(child.stdout!, 'data');
    const closed = once(child, 'close');
    child.kill('SIGKILL');
    await closed;
    await eventually(async () => (await qemuPids(lcow)).length === 0, 'the end of QEMU');
    expect(await lcow.ok('ps', '-aq')).toBe('');
    expect(await lcow.leftovers()).toEqual([]);
  });

  it('of a damaged archive or layout leaves no image', async () => {
    const damaged = join(lcow.folder, 'damaged');
    await cp(imageFolder('whiteout'), damaged, { recursive: true });
    const index = JSON.parse(await readFile(join(damaged, 'index.json'), 'utf8')) as {
      manifests: { digest: string }[];
    };
    const blob = (digest: string): string => join(damaged, 'blobs', digest.replace(':', '/'));
    const manifest = JSON.parse(await readFile(blob(index.manifests[0]!.digest), 'utf8')) as {
      layers: { digest: string }[];
    };
    const layer = blob(manifest.layers.at(-1)!.digest);
    const whole = await readFile(layer);
    await chmod(layer, 0o644);
    for (const [bytes, what] of [
      [whole.subarray(0, whole.length >> 1), 'truncated'],
      [Buffer.concat([whole.subarray(0, 50), Buffer.from('x'), whole.subarray(51)]), 'changed'],
    ] as const) {
      await writeFile(layer, bytes);
      const result = await lcow.run(['image', 'import', '--name', `damaged:${what}`, damaged]);
      expect(result, what).toMatchObject({ code: 1 });
      expect(result.stderr).toContain('sha256:');
    }
    expect(await lcow.ok('image', 'ls')).not.toContain('damaged');
  });

  it('of a full disk while an image is unpacked leaves nothing, and says so', async ({ skip }) => {
    const namespace = ['--user', '--map-root-user', '--mount'];
    if (spawnSync('unshare', [...namespace, 'true']).status !== 0)
      skip('user namespaces cannot be made here: forbidden by the host, or this is a chroot');
    const small = join(lcow.folder, 'small');
    await mkdir(small);
    // A file system of its own that is too small for Debian; it goes with the namespace.
    const script = [
      'mount -t tmpfs -o size=100m none "$0"',
      '"$@"; echo "exit code $?"',
      'find "$0" -name "*.partial" -o -name layer.vhd -o -path "*/sha256/*" -o -path "*/ingest/*"',
    ].join('; ');
    const import_ = [process.execPath, program, 'image', 'import', '--name', 'debian', imageFolder('debian')];
    const child = spawn('unshare', [...namespace, 'sh', '-c', script, small, ...import_], {
      env: { ...lcow.env, LCOW_ROOT: small },
      stdio: 'pipe',
    });
    const { stdout, stderr } = await finished(child);
    expect(stderr).toContain('no space is left');
    expect(stdout).toBe('exit code 1\n');
  });
});
