import { describe, expect, it } from 'vitest';
import { containerEnv, defaultLinuxSpec } from './index.js';

const args = ['sh'];

describe('the default specification', () => {
  // Oracle: moby daemon/pkg/oci/defaults.go, caps/defaults.go, daemon/oci_linux.go.
  it('has docker’s capabilities, and none that programs of other users inherit', () => {
    const { capabilities } = defaultLinuxSpec({ args }).process!;
    expect(capabilities?.bounding).toHaveLength(14);
    expect(capabilities?.bounding?.join(' ')).toBe(
      'CAP_CHOWN CAP_DAC_OVERRIDE CAP_FSETID CAP_FOWNER CAP_MKNOD CAP_NET_RAW CAP_SETGID CAP_SETUID CAP_SETFCAP CAP_SETPCAP CAP_NET_BIND_SERVICE CAP_SYS_CHROOT CAP_KILL CAP_AUDIT_WRITE',
    );
    expect(capabilities?.permitted).toEqual(capabilities?.bounding);
    expect(capabilities?.effective).toEqual(capabilities?.bounding);
    expect([capabilities?.inheritable, capabilities?.ambient]).toEqual([undefined, undefined]);
  });

  it('has docker’s mounts, /sys and cgroups read-only, /dev/shm of 64 MiB', () => {
    const mounts = defaultLinuxSpec({ args }).mounts!;
    expect(mounts.map(({ destination, type }) => `${destination} ${type}`)).toEqual([
      '/proc proc',
      '/dev tmpfs',
      '/dev/pts devpts',
      '/sys sysfs',
      '/sys/fs/cgroup cgroup',
      '/dev/mqueue mqueue',
      '/dev/shm tmpfs',
    ]);
    const optionsOf = (path: string): string[] | undefined =>
      mounts.find(({ destination }) => destination === path)?.options;
    expect(optionsOf('/sys')).toContain('ro');
    expect(optionsOf('/sys/fs/cgroup')).toContain('ro');
    expect(optionsOf('/dev/shm')).toEqual(['nosuid', 'noexec', 'nodev', 'mode=1777', 'size=67108864']);
    expect(defaultLinuxSpec({ args, shmSizeBytes: 1 << 20 }).mounts!.at(-1)!.options).toContain('size=1048576');
  });

  it('has docker’s masked and read-only paths', () => {
    const { maskedPaths, readonlyPaths } = defaultLinuxSpec({ args }).linux!;
    expect(maskedPaths).toHaveLength(12);
    expect(maskedPaths).toEqual(
      expect.arrayContaining(['/proc/kcore', '/proc/keys', '/proc/interrupts', '/sys/firmware']),
    );
    expect(readonlyPaths).toEqual(['/proc/bus', '/proc/fs', '/proc/irq', '/proc/sys', '/proc/sysrq-trigger']);
  });

  it('has namespaces of its own, and no device but the harmless ones', () => {
    const { namespaces, resources } = defaultLinuxSpec({ args }).linux!;
    expect(namespaces!.map(({ type }) => type).sort()).toEqual(['cgroup', 'ipc', 'mount', 'network', 'pid', 'uts']);
    const [first, ...allowed] = resources!.devices!;
    expect(first).toEqual({ allow: false, access: 'rwm' });
    expect(allowed.map(({ allow, type, major, minor }) => `${allow} ${type} ${major}:${minor}`).sort()).toEqual([
      'true c 1:3',
      'true c 1:5',
      'true c 1:8',
      'true c 1:9',
      'true c 5:0',
      'true c 5:1',
    ]);
  });

  it('limits memory, processors and processes as asked, and nothing otherwise', () => {
    expect(Object.keys(defaultLinuxSpec({ args }).linux!.resources!)).toEqual(['devices']);
    expect(
      defaultLinuxSpec({ args, memoryBytes: 64 << 20, nanoCpus: 1_500_000_000, pidsLimit: 100 }).linux!.resources,
    ).toMatchObject({ memory: { limit: 67108864 }, cpu: { quota: 150_000, period: 100_000 }, pids: { limit: 100 } });
    for (const wrong of [{ memoryBytes: 1.5 }, { nanoCpus: Infinity }, { pidsLimit: 0.5 }, { shmSizeBytes: -1 }])
      expect(() => defaultLinuxSpec({ args, ...wrong })).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
  });

  it('runs the command in the working directory, as root, in the root directory by default', () => {
    expect(
      defaultLinuxSpec({ args: ['a', 'b c'], hostname: 'web', terminal: true, readonlyRootfs: true }),
    ).toMatchObject({
      process: { args: ['a', 'b c'], cwd: '/', terminal: true, user: { uid: 0, gid: 0 }, noNewPrivileges: false },
      hostname: 'web',
      root: { readonly: true },
    });
    expect(defaultLinuxSpec({ args, cwd: '/srv' }).process!.cwd).toBe('/srv');
    for (const wrong of [{ args: [] }, { args, cwd: 'srv' }])
      expect(() => defaultLinuxSpec(wrong)).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
  });

  it('shares nothing between two specifications', () => {
    const [one, two] = [defaultLinuxSpec({ args }), defaultLinuxSpec({ args })];
    one.process!.capabilities!.bounding!.push('CAP_SYS_ADMIN');
    one.linux!.maskedPaths!.length = 0;
    expect(two.process!.capabilities!.bounding).not.toContain('CAP_SYS_ADMIN');
    expect(one.process!.capabilities!.effective).not.toContain('CAP_SYS_ADMIN');
    expect(defaultLinuxSpec({ args }).linux!.maskedPaths).toHaveLength(12);
  });
});

describe('the environment of a container', () => {
  const PATH = 'PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin';

  it.each([
    ['has a path, the hostname and, with a terminal, its type', [], [PATH, 'HOSTNAME=web', 'TERM=xterm']],
    ['lets what is given win', ['TERM=vt100', 'PATH=/bin'], ['PATH=/bin', 'HOSTNAME=web', 'TERM=vt100']],
    ['lets the later of two values win', ['A=1', 'B=2', 'A=3'], [PATH, 'HOSTNAME=web', 'TERM=xterm', 'A=3', 'B=2']],
    [
      'keeps empty values and further equals signs',
      ['A=', 'B=x=y'],
      [PATH, 'HOSTNAME=web', 'TERM=xterm', 'A=', 'B=x=y'],
    ],
    ['lets a bare name remove a value', ['HOSTNAME', 'NONE'], [PATH, 'TERM=xterm']],
  ])('%s', (_title, env, expected) => {
    expect(containerEnv(env, { hostname: 'web', terminal: true })).toEqual(expected);
  });

  it('has neither hostname nor terminal type when there is none', () => {
    expect(containerEnv([], {})).toEqual([PATH]);
  });
});
