import { spawn } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { release } from 'node:os';
import { readdir, readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { eventually, finished, imageFolder, program, qemuPids, Sandbox } from './lcow.js';

let lcow: Sandbox;
beforeAll(async () => {
  lcow = await Sandbox.make('busybox', 'debian', 'whiteout');
});
afterAll(async () => {
  const left = await lcow.leftovers();
  await lcow.remove();
  expect(left).toEqual([]);
});

/** How many different files the read-only layers are. */
async function layerFiles(): Promise<number> {
  const layers = join(lcow.folder, 'root/layers');
  const inodes = new Set<number>();
  for (const id of await readdir(layers)) {
    const found = await stat(join(layers, id, 'layer.vhd')).catch(() => undefined);
    if (found) inodes.add(found.ino);
  }
  return inodes.size;
}

describe('lcow run', () => {
  it('prints what the container prints and nothing else', async () => {
    expect(await lcow.run(['run', '--rm', 'busybox', 'echo', 'hi'])).toEqual({
      code: 0,
      signal: null,
      stdout: 'hi\n',
      stderr: '',
    });
  });

  it('passes exit codes through, and has docker’s for a command that is missing or cannot be run', async () => {
    expect((await lcow.run(['run', '--rm', 'busybox', 'sh', '-c', 'exit 7'])).code).toBe(7);
    const missing = await lcow.run(['run', '--rm', 'busybox', 'no-such-program']);
    expect(missing).toMatchObject({ code: 127, stdout: '' });
    expect(missing.stderr).toContain('no-such-program');
    expect((await lcow.run(['run', '--rm', 'busybox', '/etc/passwd'])).code).toBe(126);
    expect((await lcow.run(['run', '--rm', 'busybox', 'sh', '-c', 'sh -c "kill -TERM \\$\\$"; exit $?'])).code).toBe(
      143,
    );
    expect((await lcow.run(['run', '--no-such-option', 'busybox'])).code).toBe(125);
  });

  it('keeps the outputs apart and arguments whole', async () => {
    const odd = ['two words', '"quotes"', "it's", 'new\nline', '$HOME', ''];
    const result = await lcow.run([
      'run',
      '--rm',
      'busybox',
      'sh',
      '-c',
      'for a; do echo "<$a>"; done; echo err >&2',
      '-',
      ...odd,
    ]);
    expect(result).toMatchObject({ code: 0, stdout: odd.map((arg) => `<${arg}>\n`).join(''), stderr: 'err\n' });
  });

  it('sends standard input through, with -i only', async () => {
    expect((await lcow.run(['run', '--rm', '-i', 'busybox', 'cat'], { input: 'data\n' })).stdout).toBe('data\n');
    expect((await lcow.run(['run', '--rm', 'busybox', 'cat'], { input: 'data\n' })).stdout).toBe('');
  });

  it('moves 200 MB through cat, both ways, in bounded memory', async () => {
    const child = lcow.start(['run', '--rm', '-i', 'busybox', 'cat']);
    const block = randomBytes(1 << 20);
    const sent = createHash('sha256');
    const received = createHash('sha256');
    let bytes = 0;
    let peakKb = 0;
    child.stdout!.on('data', (chunk: Buffer) => {
      received.update(chunk);
      bytes += chunk.length;
    });
    const watch = setInterval(() => {
      void readFile(`/proc/${child.pid!}/status`, 'utf8').then(
        (status) => (peakKb = Math.max(peakKb, Number(/VmHWM:\s+(\d+)/.exec(status)?.[1] ?? 0))),
        () => undefined,
      );
    }, 500);
    const exit = once(child, 'close');
    for (let i = 0; i < 200; i++) {
      block.writeUInt32LE(i);
      const piece = Buffer.from(block);
      sent.update(piece);
      if (!child.stdin!.write(piece)) await once(child.stdin!, 'drain');
    }
    child.stdin!.end();
    expect(await exit).toEqual([0, null]);
    clearInterval(watch);
    expect(bytes).toBe(200 << 20);
    expect(received.digest('hex')).toBe(sent.digest('hex'));
    expect(peakKb).toBeGreaterThan(0);
    expect(peakKb).toBeLessThan(400 * 1024);
  });

  it('runs Debian', async () => {
    expect(await lcow.ok('run', '--rm', 'debian', 'cat', '/etc/os-release')).toContain('ID=debian');
    const packages = await lcow.ok('run', '--rm', 'debian', 'sh', '-c', 'apt list --installed 2>/dev/null | wc -l');
    expect(Number(packages)).toBeGreaterThan(50);
  });

  it('has a kernel, a host name and processes of its own', async () => {
    const [kernel, hostname, processes] = (
      await lcow.ok(
        'run',
        '--rm',
        '--hostname',
        'box',
        'busybox',
        'sh',
        '-c',
        'uname -r; hostname; ls /proc | grep -c ^[0-9]',
      )
    ).split('\n');
    expect(kernel).not.toBe(release());
    expect(hostname).toBe('box');
    // The shell, ls and grep.
    expect(Number(processes)).toBeLessThanOrEqual(3);
  });

  it('takes user, working directory, environment and entrypoint as docker does', async () => {
    const script = 'id -u; id -g; pwd; echo "$GREETING"; echo "$HOME"';
    const out = await lcow.ok(
      ...[
        'run',
        '--rm',
        '-u',
        '65534:100',
        '-w',
        '/made/by/lcow',
        '-e',
        'GREETING=good day',
        'busybox',
        'sh',
        '-c',
        script,
      ],
    );
    expect(out.split('\n').slice(0, 4)).toEqual(['65534', '100', '/made/by/lcow', 'good day']);
    expect(await lcow.ok('run', '--rm', '--entrypoint', 'echo', 'busybox', 'from', 'entrypoint')).toBe(
      'from entrypoint\n',
    );
    const unknown = await lcow.run(['run', '--rm', '-u', 'nobody-of-that-name', 'busybox', 'true']);
    expect(unknown.code).toBe(125);
    expect(unknown.stderr).toContain('nobody-of-that-name');
  });

  it('limits memory and CPUs', async () => {
    const out = await lcow.ok(
      ...[
        'run',
        '--rm',
        '-m',
        '64m',
        '--cpus',
        '0.5',
        'busybox',
        'cat',
        '/sys/fs/cgroup/memory.max',
        '/sys/fs/cgroup/cpu.max',
      ],
    );
    expect(out).toBe(`${64 * 2 ** 20}\n50000 100000\n`);
    const eater = await lcow.run([
      'run',
      '--rm',
      '-m',
      '32m',
      'busybox',
      'sh',
      '-c',
      'tail -c 100m /dev/zero | wc -c; exit 3',
    ]);
    expect(eater.stdout).not.toContain(String(100 * 2 ** 20));
  });

  it('gives a terminal with -t', async () => {
    const result = await lcow.run(['run', '--rm', '-t', 'busybox', 'sh', '-c', 'test -t 1 && tty && echo err >&2']);
    expect(result).toMatchObject({ code: 0, stdout: '/dev/pts/0\r\nerr\r\n', stderr: '' });
  });

  it('is a terminal session with -it: keys, size and exit code', async () => {
    const command = `${process.execPath} ${program} run --rm -it busybox sh`;
    const child = spawn('script', ['-qefc', `stty rows 41 cols 97; ${command}`, '/dev/null'], {
      env: lcow.env,
      stdio: 'pipe',
    });
    const result = finished(child);
    let seen = '';
    child.stdout.on('data', (chunk: Buffer) => (seen += chunk.toString()));
    await eventually(async () => seen.includes('/ #'), 'the prompt');
    // Told apart from its echo; before the program runs, Ctrl-C would be the shell's.
    child.stdin.write('sh -c \'stty size; echo sl""eeps; exec sleep 1000\'\n');
    await eventually(async () => seen.includes('41 97') && seen.includes('sleeps'), 'the size');
    child.stdin.write('\x03');
    child.stdin.write('exit 4\n');
    expect((await result).code).toBe(4);
  });

  it('starts every run from the image, with one copy of the layer on disk for all', async () => {
    const before = await layerFiles();
    await lcow.ok('run', '--rm', 'busybox', 'sh', '-c', 'echo new > /file; rm /etc/passwd');
    expect((await lcow.run(['run', '--rm', 'busybox', 'cat', '/file'])).code).toBe(1);
    const both = await Promise.all(
      ['a', 'b'].map((name) => lcow.ok('run', '--rm', 'busybox', 'sh', '-c', `echo ${name} > /me; sleep 1; cat /me`)),
    );
    expect(both).toEqual(['a\n', 'b\n']);
    expect(await layerFiles()).toBe(before);
    // Another name for the same content adds nothing either.
    await lcow.ok('image', 'import', '--name', 'again', imageFolder('busybox'));
    expect(await layerFiles()).toBe(before);
  });

  it('honours whiteouts', async () => {
    const result = await lcow.run(['run', '--rm', 'whiteout', 'ls', '/etc/one']);
    expect(result.code).toBe(1);
    expect(result.stderr).toContain('No such file');
  });

  it('reaches a service on the host’s loopback through the gateway', async () => {
    const server = createServer((_request, response) => response.end('from the host\n'));
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    const { port } = server.address() as AddressInfo;
    expect(
      await lcow.ok('run', '--rm', 'busybox', 'wget', '-q', '-O', '-', `http://host.docker.internal:${port}/`),
    ).toBe('from the host\n');
    await new Promise((resolve) => server.close(resolve));
  });

  it('ends when nobody reads its output any more', async () => {
    const child = lcow.start(['run', '--rm', 'busybox', 'yes']);
    const closed = once(child, 'close');
    await once(child.stdout!, 'data');
    child.stdout!.destroy();
    await closed;
    expect(await lcow.ok('ps', '-aq')).toBe('');
  });

  it('gives up at Ctrl-C while the VM starts', async () => {
    const child = lcow.start(['run', '--rm', 'busybox', 'sleep', '1000']);
    const result = finished(child);
    await eventually(async () => (await qemuPids(lcow)).length > 0, 'the start of QEMU');
    child.kill('SIGINT');
    expect(await result).toMatchObject({ code: 130, stderr: 'lcow: The operation was cancelled.\n' });
    expect(await qemuPids(lcow)).toEqual([]);
    expect(await lcow.ok('ps', '-aq')).toBe('');
  });

  it('ends at Ctrl-C and at SIGTERM, and cleans up', async () => {
    for (const signal of ['SIGINT', 'SIGTERM'] as const) {
      const child = lcow.start(['run', '--rm', '--name', 'ended', 'busybox', 'sleep', '1000']);
      const closed = once(child, 'close');
      // The shell of `sh -c` takes SIGINT and is not moved by it, so it is the program that must have come to run.
      await eventually(async () => {
        const { stdout } = await lcow.run(['exec', 'ended', 'cat', '/proc/1/comm']);
        return stdout === 'sleep\n';
      }, 'the start of sleep');
      child.kill(signal);
      const [code] = (await closed) as [number];
      expect(code).toBeGreaterThanOrEqual(128);
      expect(await qemuPids(lcow)).toEqual([]);
    }
    expect(await lcow.ok('ps', '-aq')).toBe('');
  });
});

describe('a terminal', () => {
  it('sends Ctrl-C to the container and not to its machine', async () => {
    const script = 'trap "echo caught; exit 3" INT; echo up; while :; do sleep 0.1; done';
    const child = spawn(process.execPath, [program, 'run', '--rm', 'busybox', 'sh', '-c', script], {
      env: lcow.env,
      stdio: 'pipe',
      detached: true,
    });
    const result = finished(child);
    await once(child.stdout, 'data');
    // As a terminal does: to every process of the group.
    process.kill(-child.pid!, 'SIGINT');
    expect(await result).toMatchObject({ code: 3, stderr: '' });
  });
});

describe('a container in the background', () => {
  it('runs until it is stopped, and can be looked into', async () => {
    const id = (
      await lcow.ok(
        'run',
        '-d',
        '--name',
        'web',
        'busybox',
        'sh',
        '-c',
        'trap "exit 5" TERM; echo ready; echo oops >&2; while :; do sleep 0.1; done',
      )
    ).trim();
    expect(id).toMatch(/^[0-9a-f]{64}$/);
    await eventually(async () => (await lcow.ok('logs', 'web')).includes('ready'), 'the first line of the log');
    expect(await lcow.ok('ps')).toMatch(new RegExp(`${id.slice(0, 12)} +busybox .*Up .*web`));
    const [listed] = JSON.parse(await lcow.ok('ps', '--json')) as { id: string; state: { status: string } }[];
    expect(listed).toMatchObject({ id, state: { status: 'running' } });

    const unread = lcow.start(['exec', 'web', 'yes']);
    const gone = once(unread, 'close');
    await once(unread.stdout!, 'data');
    unread.stdout!.destroy();
    expect(await gone).toEqual([141, null]);

    expect(await lcow.ok('exec', 'web', 'hostname')).toBe(`${id.slice(0, 12)}\n`);
    expect((await lcow.run(['exec', 'web', 'sh', '-c', 'exit 9'])).code).toBe(9);
    expect((await lcow.run(['exec', 'web', 'no-such-program'])).code).toBe(127);
    expect((await lcow.run(['exec', '-i', 'web', 'cat'], { input: 'in and out' })).stdout).toBe('in and out');
    const many = await Promise.all(
      ['1', '2', '3', '4'].map((n) => lcow.ok('exec', '-e', `N=${n}`, 'web', 'sh', '-c', 'echo $N')),
    );
    expect(many).toEqual(['1\n', '2\n', '3\n', '4\n']);

    const refused = await lcow.run(['rm', 'web']);
    expect(refused).toMatchObject({ code: 1 });
    expect(refused.stderr).toContain('You cannot remove a running container');
    expect((await lcow.run(['run', '--name', 'web', 'busybox', 'true'])).stderr).toContain('is already in use');

    const following = lcow.run(['logs', '-f', 'web']);
    const interrupted = lcow.run(['exec', 'web', 'sleep', '1000']);
    await eventually(async () => (await lcow.ok('exec', 'web', 'ps')).includes('sleep 1000'), 'the start of an exec');
    expect(await lcow.ok('stop', 'web')).toBe('web\n');
    expect(await interrupted).toMatchObject({ code: 137, stderr: '' });
    expect(await following).toMatchObject({ code: 0, stdout: 'ready\n', stderr: 'oops\n' });
    expect(await qemuPids(lcow)).toEqual([]);
    expect(await lcow.ok('ps', '-a')).toContain('Exited (5)');
    expect((await lcow.run(['exec', 'web', 'true'])).stderr).toContain('is not running');
    expect(await lcow.ok('logs', '--tail', '2', '-t', 'web')).toMatch(/^\d{4}-\d\d-\d\dT[\d:.]+Z ready\n$/);
    expect(await lcow.ok('logs', '--tail', '0', 'web')).toBe('');
    expect(await lcow.ok('rm', 'web')).toBe('web\n');
    expect(await lcow.ok('ps', '-aq')).toBe('');
  });

  it('is removed by rm -f, and killed by kill', async () => {
    await lcow.ok('run', '-d', '--name', 'one', 'busybox', 'sleep', '1000');
    await lcow.ok('run', '-d', '--rm', '--name', 'two', 'busybox', 'sleep', '1000');
    await lcow.ok('kill', '-s', 'KILL', 'two');
    await eventually(async () => !(await lcow.ok('ps', '-a')).includes(' two'), 'the removal of two');
    await lcow.ok('rm', '-f', 'one');
    expect(await lcow.ok('ps', '-aq')).toBe('');
    expect((await lcow.run(['stop', 'one'])).stderr).toContain('No such container: one');
  });
});
