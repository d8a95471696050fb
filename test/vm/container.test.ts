/** Containers in a real utility VM: layers made from tar streams, creation from an OCI specification, processes. */
import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { PassThrough, Readable } from 'node:stream';
import { text } from 'node:stream/consumers';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { Cmd, command, commandContext } from '../../src/cmd/index.js';
import { isLcowError } from '../../src/errors/index.js';
import type { Container } from '../../src/gcs/index.js';
import { initDriver, type Driver } from '../../src/graphdriver/index.js';
import {
  createContainer,
  defaultLinuxSpec,
  releaseResources,
  type CreateOptions,
  type DefaultSpecOptions,
} from '../../src/hcsoci/index.js';
import { addNamespaceEndpoint, createNamespace, createNatEndpoint } from '../../src/hns/index.js';
import { createProcess } from '../../src/lcow/index.js';
import { Scope } from '../../src/lifetime/index.js';
import { createUtilityVM, type UtilityVM } from '../../src/uvm/index.js';
import { busyboxRoot, layerTar } from '../support/busybox-layers.js';

const APPLETS =
  'cat chmod dd echo env grep head hostname id ip ls mkdir mount nc ping printf ps pwd readlink rm sh sleep sort stat stty tail test touch tr tty umount uname wc wget yes';

let root: string;
let driver: Driver;
let vm: UtilityVM;
const endpoint = createNatEndpoint({ hostname: 'box' });

beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), 'lcow-c-'));
  driver = await initDriver(join(root, 'data'));
  await driver.applyDiff('base', undefined, layerTar(await busyboxRoot(APPLETS.split(' '))));
  await driver.applyDiff(
    'top',
    'base',
    layerTar([
      { name: 'etc/.wh.removed' },
      { name: 'etc/added', content: 'the top layer\n' },
      { name: 'var/cache/.wh..wh..opq' },
      { name: 'var/cache/new', content: 'beside the opaque marker\n' },
    ]),
  );
  vm = await createUtilityVM({
    runtimeFolder: join(root, 'run'),
    cacheFolder: join(root, 'cache'),
    memorySizeInMB: 512,
    networkAdapters: [endpoint],
  });
  await vm.start();
});
afterAll(async () => {
  await (vm as UtilityVM | undefined)?.close();
  await rm(root, { recursive: true });
});

/** What the test made; released after it, in reverse. */
let made = new Scope();
afterEach(async () => {
  const scope = made;
  made = new Scope();
  await scope.release();
});

let count = 0;

interface Wish extends Partial<DefaultSpecOptions>, Pick<CreateOptions, 'user' | 'networkNamespace' | 'consoleSize'> {
  layer?: string;
  stdin?: boolean;
}

/** A container with a writable layer of its own, created and not started. */
async function create(args: string[], wish: Wish = {}): Promise<Container> {
  const { layer = 'base', stdin = false, user, networkNamespace, consoleSize, ...options } = wish;
  const id = `c${++count}`;
  await driver.createReadWrite(id, layer);
  made.defer(() => driver.remove(id));
  const { container, resources } = await createContainer({
    id,
    spec: {
      ...defaultLinuxSpec({ args, hostname: 'box', ...options }),
      windows: { layerFolders: [...(await driver.layerChain(id)), await driver.getLayerPath(id)] },
    },
    hostingSystem: vm,
    stdio: { stdin, stdout: true, stderr: !options.terminal },
    ...(user === undefined ? {} : { user }),
    ...(networkNamespace === undefined ? {} : { networkNamespace }),
    ...(consoleSize ? { consoleSize } : {}),
  });
  made.defer(() => releaseResources(resources, vm, true));
  made.defer(() =>
    container.delete({ force: true }).catch((error: unknown) => {
      // With the utility VM the container has gone.
      if (!isLcowError(error, 'GUEST_UNREACHABLE')) throw error;
    }),
  );
  return container;
}

interface Outcome {
  code: number;
  stdout: string;
  stderr: string;
}

/** Runs a process to its end: the init of a container, or whatever the command says. */
async function finish(cmd: Cmd): Promise<Outcome> {
  const [stdout, stderr] = [new PassThrough(), new PassThrough()];
  cmd.stdout = stdout;
  if (!cmd.spec?.terminal) cmd.stderr = stderr;
  const texts = Promise.all([text(stdout), text(stderr)]);
  await cmd.run().catch((error: unknown) => {
    if (!cmd.exitState || cmd.exitState.exitCode <= 0) throw error;
  });
  stdout.end();
  stderr.end();
  const [out, err] = await texts;
  return { code: cmd.exitState!.exitCode, stdout: out, stderr: err };
}

async function run(args: string[], wish: Wish & { input?: string | Buffer } = {}): Promise<Outcome> {
  const { input, ...rest } = wish;
  const host = await create(args, { stdin: input !== undefined, ...rest });
  return finish(new Cmd({ host, stdin: input === undefined ? undefined : Readable.from([Buffer.from(input)]) }));
}

const shell = (script: string, wish?: Wish & { input?: string | Buffer }): Promise<Outcome> =>
  run(['sh', '-c', script], wish);

/** A container whose init sleeps. */
async function sleeping(wish?: Wish): Promise<Container> {
  const container = await create(['sleep', '1000'], wish);
  await container.start();
  return container;
}

/** Runs a script in the utility VM itself. */
async function inVm(script: string): Promise<string> {
  const { code, stdout, stderr } = await finish(command(vm, '/bin/sh', '-c', script));
  expect([code, stderr]).toEqual([0, '']);
  return stdout;
}

describe('a container', () => {
  it('prints what it prints, and exits with 0', async () => {
    expect(await run(['echo', 'hi', ' a  b ', "it's"])).toEqual({ code: 0, stdout: "hi  a  b  it's\n", stderr: '' });
  });

  it('passes its exit code and keeps stdout and stderr apart', async () => {
    expect(await shell('echo out; echo err >&2; exit 7')).toEqual({ code: 7, stdout: 'out\n', stderr: 'err\n' });
  });

  it('gives back every byte of its stdin', async () => {
    const data = randomBytes(4 << 20);
    const host = await create(['cat'], { stdin: true });
    const hash = createHash('sha256');
    await new Cmd({ host, stdin: Readable.from([data]), stdout: hash }).run();
    expect(hash.digest('hex')).toBe(createHash('sha256').update(data).digest('hex'));
  });

  it('does not wait for a stdin that it does not read', async () => {
    expect(await run(['echo', 'done'], { input: randomBytes(1 << 20) })).toMatchObject({ code: 0, stdout: 'done\n' });
  });

  it('has a terminal with its size when it asks for one', async () => {
    const { code, stdout } = await shell('tty; stty size; echo $TERM; echo err >&2', {
      terminal: true,
      consoleSize: { rows: 33, columns: 101 },
    });
    expect([code, stdout]).toEqual([0, '/dev/pts/0\r\n33 101\r\nxterm\r\nerr\r\n']);
  });

  it('runs as pid 1 in its own namespaces, under its own hostname, on another kernel', async () => {
    const { stdout } = await shell('echo $$; hostname; pwd; uname -r; ps | wc -l', { cwd: '/tmp' });
    const [pid, hostname, cwd, kernel, processes] = stdout.trim().split('\n');
    expect([pid, hostname, cwd]).toEqual(['1', 'box', '/tmp']);
    expect(kernel).toBe((await inVm('uname -r')).trim());
    expect(Number(processes)).toBeLessThanOrEqual(4);
  });

  it('has docker’s capabilities, a read-only /sys and /proc/sys, and masked secrets', async () => {
    const { stdout } = await shell(
      'grep -E "Cap(Inh|Eff|Bnd)" /proc/self/status; touch /sys/x 2>&1; echo 1 > /proc/sys/kernel/panic; wc -c < /proc/kcore; ls /sys/firmware | wc -l',
    );
    expect(stdout).toContain('CapInh:\t0000000000000000\nCapEff:\t00000000a80425fb\nCapBnd:\t00000000a80425fb\n');
    expect(stdout).toContain('Read-only file system');
    expect(stdout.trim().split('\n').slice(-2)).toEqual(['0', '0']);
  });

  it('cannot touch the disks of the utility VM', async () => {
    const { code, stderr } = await shell(
      'cat /proc/partitions >/dev/null; /bin/busybox mknod /tmp/disk b 8 0 && dd if=/tmp/disk of=/dev/null count=1',
    );
    expect(code).not.toBe(0);
    expect(stderr).toContain('Operation not permitted');
  });

  it('runs as the user it is given, found in its own files', async () => {
    expect(await shell('id; echo $HOME', { user: 'web' })).toMatchObject({
      stdout: 'uid=1000(web) gid=1000(web) groups=29(audio),1000(web)\n/home/web\n',
    });
    expect(await run(['id', '-u'], { user: '4711:29' })).toMatchObject({ stdout: '4711\n' });
  });

  it('gets the environment it is given', async () => {
    expect((await run(['env'], { env: ['EMPTY=', 'TEXT=a b=c\nd'] })).stdout.split('\n').sort()).toEqual([
      '',
      'EMPTY=',
      'HOME=/root',
      'HOSTNAME=box',
      'PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin',
      'TEXT=a b=c',
      'd',
    ]);
  });

  it('is killed at its memory limit, and says so', async () => {
    const host = await create(['tail', '/dev/zero'], { memoryBytes: 24 << 20 });
    const cmd = new Cmd({ host });
    await expect(cmd.run()).rejects.toMatchObject({ exitCode: 137 });
    expect(cmd.exitState).toMatchObject({ exitCode: 137, oomKilled: true });
  });

  it.each([
    ['a command that does not exist', ['no-such-command'], {}, 'COMMAND_NOT_FOUND'],
    ['a command that is not executable', ['/bin/not-executable'], {}, 'COMMAND_NOT_EXECUTABLE'],
    ['a user that does not exist', ['sh'], { user: 'nobody-here' }, 'NO_SUCH_USER'],
  ])('says what is wrong with %s', async (_what, args, wish, code) => {
    await expect(run(args, wish)).rejects.toMatchObject({ code });
  });
});

describe('layers', () => {
  it('are laid over each other, whiteouts and opaque folders honoured', async () => {
    const script = 'cat /etc/motd /etc/added; ls /etc/removed /var/cache 2>/dev/null; stat -c %a /tmp';
    expect((await shell(script, { layer: 'top' })).stdout).toBe(
      'the base layer\nthe top layer\n/var/cache:\nnew\n1777\n',
    );
    expect((await shell('cat /etc/removed; ls /var/cache')).stdout).toBe('only in the base layer\nold\n');
  });

  it('are not changed by what a container writes', async () => {
    expect(await shell('echo changed > /etc/motd; rm /bin/yes; touch /new; cat /etc/motd')).toMatchObject({
      code: 0,
      stdout: 'changed\n',
    });
    expect((await shell('cat /etc/motd; ls /bin/yes /new 2>/dev/null')).stdout).toBe('the base layer\n/bin/yes\n');
  });

  it('are attached once for containers that share them', async () => {
    const disks = 'ls /sys/class/scsi_device | wc -l';
    await sleeping();
    expect(Number(await inVm(disks))).toBe(2);
    const [one, two] = [await sleeping(), await sleeping({ layer: 'top' })];
    expect(Number(await inVm(disks))).toBe(5);
    expect(await finish(command(one, 'cat', '/etc/motd'))).toMatchObject({ stdout: 'the base layer\n' });
    expect(await finish(command(two, 'cat', '/etc/added'))).toMatchObject({ stdout: 'the top layer\n' });
  });
});

describe('processes of a running container', () => {
  it('run beside its init, with their own exit codes', async () => {
    const container = await sleeping();
    expect(await finish(command(container, 'sh', '-c', 'cat /proc/1/comm; exit 3'))).toEqual({
      code: 3,
      stdout: 'sleep\n',
      stderr: '',
    });
    const asUser = new Cmd({
      host: container,
      spec: { args: ['id', '-un'], env: ['PATH=/bin'], cwd: '/tmp' },
      user: 'web',
    });
    expect(await finish(asUser)).toMatchObject({ stdout: 'web\n' });
    await expect(command(container, 'no-such').run()).rejects.toMatchObject({ code: 'COMMAND_NOT_FOUND' });
  });

  it('have no more rights than its init', async () => {
    const container = await sleeping();
    const pattern = 'Cap(Inh|Prm|Eff|Bnd|Amb)';
    const { stdout } = await finish(command(container, 'grep', '-E', pattern, '/proc/1/status', '/proc/self/status'));
    const [init, own] = ['1', 'self'].map((pid) =>
      stdout
        .split('\n')
        .filter((line) => line.startsWith(`/proc/${pid}/`))
        .map((line) => line.split(':').slice(1).join()),
    );
    expect(own).toHaveLength(5);
    expect(own).toEqual(init);
    const mknod = await finish(command(container, '/bin/busybox', 'mknod', '/tmp/disk', 'b', '8', '0'));
    const read = await finish(command(container, 'dd', 'if=/tmp/disk', 'of=/dev/null', 'count=1'));
    expect([mknod.code, read.code]).not.toEqual([0, 0]);
  });

  it('take stdin and have terminals of their own', async () => {
    const container = await sleeping();
    const cat = command(container, 'cat');
    cat.stdin = Readable.from([Buffer.from('to the exec')]);
    expect(await finish(cat)).toMatchObject({ code: 0, stdout: 'to the exec' });
    const terminal = new Cmd({
      host: container,
      spec: {
        args: ['stty', 'size'],
        env: ['PATH=/bin'],
        cwd: '/',
        terminal: true,
        consoleSize: { height: 7, width: 70 },
      },
    });
    expect(await finish(terminal)).toMatchObject({ stdout: '7 70\r\n' });
  });

  it('are killed when the caller gives up', async () => {
    const stop = new AbortController();
    const cmd = commandContext(stop.signal, await sleeping(), 'sleep', '1000');
    await cmd.start();
    stop.abort();
    await expect(cmd.wait()).rejects.toMatchObject({ exitCode: 137 });
  });

  it('lose their pipe when the reader goes away', async () => {
    const cmd = command(await sleeping(), 'yes');
    const reader = new PassThrough();
    cmd.stdout = reader;
    await cmd.start();
    await once(reader, 'readable');
    reader.destroy();
    // SIGPIPE, or the error of a write where that is ignored.
    await expect(cmd.wait()).rejects.toMatchObject({ code: 'PROCESS_FAILED' });
    expect([1, 141]).toContain(cmd.exitState!.exitCode);
  });

  it('can be left behind by an exec, whose output is then cut when there is a limit', async () => {
    const cmd = command(await sleeping(), 'sh', '-c', 'sleep 1000 & echo started');
    cmd.copyAfterExitTimeoutMs = 500;
    const stdout = new PassThrough();
    cmd.stdout = stdout;
    await expect(cmd.run()).rejects.toMatchObject({ code: 'TIMED_OUT' });
    expect((stdout.read() as Buffer).toString()).toBe('started\n');
  });

  it('see signals as on any Linux: an init that does not handle one is spared it', async () => {
    const container = await sleeping();
    expect(await container.init.signal(15)).toBe(false);
    await container.terminate();
    expect(await container.wait()).toMatchObject({ exitCode: 137, oomKilled: false });
    const trapping = await create(['sh', '-c', 'trap "exit 9" TERM; echo ready; while :; do sleep 0.1; done']);
    await trapping.start();
    await once(trapping.init.stdio().stdout!, 'readable');
    expect(await trapping.init.signal(15)).toBe(true);
    expect(await trapping.wait()).toMatchObject({ exitCode: 9 });
  });
});

describe('the network of a container', () => {
  it('reaches the host’s loopback by the name of the gateway, and knows its names', async () => {
    const server = createServer((_request, response) => response.end('from the host'));
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    made.defer(() => server.close());
    const { port } = server.address() as AddressInfo;
    const networkNamespace = createNamespace();
    addNamespaceEndpoint(networkNamespace, endpoint);
    const { code, stdout } = await shell(
      `wget -q -O - http://host.docker.internal:${port}; echo; cat /etc/hostname /etc/resolv.conf; ip -4 -o addr show eth0; grep box /etc/hosts; ping -c 1 -W 5 127.0.0.1 >/dev/null && echo loopback`,
      { networkNamespace },
    );
    expect(stdout.split('\n').slice(0, 3)).toEqual(['from the host', 'box', 'nameserver 10.0.2.3']);
    expect(stdout).toMatch(/eth0 +inet 10\.0\.2\.15\/24/);
    expect(stdout).toContain('10.0.2.15\tbox\nloopback\n');
    expect(code).toBe(0);
  });

  it('is only a loopback without a namespace', async () => {
    expect((await shell('ls /sys/class/net; ip route | wc -l')).stdout).toBe('lo\n0\n');
  });

  it('can be used by the next container when the one before has gone', async () => {
    for (let round = 0; round < 2; round++) {
      const networkNamespace = createNamespace();
      addNamespaceEndpoint(networkNamespace, endpoint);
      expect((await shell('ip -4 -o addr show eth0 | wc -l', { networkNamespace })).stdout).toBe('1\n');
      const scope = made;
      made = new Scope();
      await scope.release();
    }
  });
});

describe('createProcess of the first LCOW package', () => {
  it('runs a program of the utility VM with bounded copies', async () => {
    const out = new PassThrough();
    const { process, byteCounts } = await createProcess({
      hcsSystem: vm,
      process: { args: ['/bin/sh', '-c', 'cat; echo err >&2'], cwd: '/' },
      createInUtilityVm: true,
      stdin: Readable.from([Buffer.from('0123456789')]),
      stdout: out,
      stderr: new PassThrough().resume(),
      byteCounts: { In: 7 },
    });
    made.defer(() => process.close());
    expect(byteCounts).toEqual({ In: 7, Out: 7, Err: 4 });
    expect((out.read() as Buffer).toString()).toBe('0123456');
    expect(await process.wait()).toMatchObject({ exitCode: 0 });
  });
});

describe('when all containers have been released', () => {
  it('the utility VM has no disk, no mount, no namespace and no process of theirs', async () => {
    expect(await inVm('ls /sys/class/scsi_device')).toBe('');
    expect(await inVm('grep -cE "overlay|/run/gcs|/run/mounts" /proc/mounts || true')).toBe('0\n');
    expect(await inVm('ls /run/netns 2>/dev/null || true')).toBe('');
    expect(await inVm('ls -d /sys/fs/cgroup/containers/*/ 2>/dev/null || true')).toBe('');
    expect(await inVm('ls -A /run/gcs/c 2>/dev/null || true')).toBe('');
    expect((await vm.guest.client.listContainers({})).containers).toEqual([]);
  });

  it('the first slot is free again', async () => {
    await driver.createReadWrite('probe', 'base');
    made.defer(() => driver.remove('probe'));
    const disk = await vm.addSCSI(join(await driver.getLayerPath('base'), 'layer.vhd'), {
      readOnly: true,
      isLayer: true,
    });
    made.defer(() => disk.release());
    expect([disk.controller, disk.lun]).toEqual([0, 0]);
  });
});

describe('when the utility VM is killed', () => {
  it('a command that waits fails, saying -1, and everything can be released', async () => {
    const container = await sleeping();
    const cmd = command(container, 'cat');
    cmd.stdin = new PassThrough();
    cmd.stdout = new PassThrough();
    await cmd.start();
    process.kill((await vm.properties()).processId!, 'SIGKILL');
    await expect(cmd.wait()).rejects.toMatchObject({ code: 'GUEST_UNREACHABLE' });
    expect(cmd.exitState).toMatchObject({ exitCode: -1 });
    expect((await vm.wait()).kind).toBe('unexpected');
  });
});
