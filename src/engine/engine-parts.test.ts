import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { stateFolders } from '../state/index.js';
import { containerConfig, mergeEnv, type ContainerOptions } from './container-options.js';
import { ContainerStore } from './container-store.js';
import { signalNumber } from './signals.js';
import { parseCpus, parseSize } from './size.js';
import type { Image } from '../images/index.js';

const image = (config: object): Image =>
  ({ id: 'sha256:1', config: { config }, platform: { os: 'linux', architecture: 'amd64' } }) as unknown as Image;
const made = (options: Partial<ContainerOptions>, defaults: object = {}) =>
  containerConfig({ image: 'x', ...options }, image(defaults), ['top', 'base']);

describe('sizes, CPUs and signals', () => {
  it.each([
    ['64m', 64 * 2 ** 20],
    ['1.5g', 1.5 * 2 ** 30],
    ['1048576', 1048576],
    ['2KiB', 2048],
    ['1GB', 2 ** 30],
  ])('reads %s as docker does', (text, bytes) => expect(parseSize(text)).toBe(bytes));
  it.each(['', 'm', '-1', '1x', '1e9', '99999999t'])('refuses the size %j', (text) =>
    expect(() => parseSize(text)).toThrow('Invalid size'),
  );
  it('reads CPUs in billionths', () => {
    expect(parseCpus('1.5')).toBe(1_500_000_000);
    for (const bad of ['0', '-1', 'two', '0.001']) expect(() => parseCpus(bad)).toThrow('Invalid number of CPUs');
  });
  it('knows signals by name and number', () => {
    expect(['KILL', 'SIGTERM', 'sigint', '9', 'RTMIN+1', 'RTMAX'].map(signalNumber)).toEqual([9, 15, 2, 9, 35, 64]);
    for (const bad of ['0', '65', 'SIGFOO', '']) expect(() => signalNumber(bad)).toThrow('Invalid signal');
  });
});

describe('the options of a container', () => {
  const defaults = { Entrypoint: ['/entry'], Cmd: ['default'], Env: ['A=1', 'B=2'], WorkingDir: '/srv', User: 'app' };

  it('puts entrypoint and command together as docker does', () => {
    expect(made({}, defaults).args).toEqual(['/entry', 'default']);
    expect(made({ command: ['mine'] }, defaults).args).toEqual(['/entry', 'mine']);
    expect(made({ entrypoint: 'sh' }, defaults).args).toEqual(['sh']);
    expect(made({ entrypoint: '', command: ['ls'] }, defaults).args).toEqual(['ls']);
    expect(() => made({})).toThrow('No command specified');
  });

  it('lets the user’s environment win, and takes a bare name from the host', () => {
    const env = made({ env: ['B=3', 'HOME_TOWN', 'ABSENT'], hostEnv: { HOME_TOWN: 'Ulm' } }, defaults).env;
    expect(env).toEqual(['A=1', 'B=3', 'HOME_TOWN=Ulm']);
    expect(mergeEnv(['X=a=b', 'X='])).toEqual(['X=']);
    for (const bad of ['=x', '']) expect(() => made({ env: [bad] }, defaults)).toThrow('Invalid environment variable');
  });

  it('lets a name that the host does not have take the image’s value away', () => {
    expect(made({ env: ['A'], hostEnv: {} }, defaults).env).toEqual(['B=2']);
    expect(mergeEnv(['FOO', 'FO=1'])).toEqual(['FO=1']);
  });

  it('takes user and working directory from the image unless given', () => {
    expect(made({}, defaults)).toMatchObject({ user: 'app', workingDir: '/srv' });
    expect(made({ user: '0', workingDir: '/' }, defaults)).toMatchObject({ user: '0', workingDir: '/' });
    expect(() => made({ workingDir: 'here' }, defaults)).toThrow('absolute path');
    expect(() => made({ memoryBytes: 1024 }, defaults)).toThrow('Minimum memory limit');
  });

  it('takes an empty option for none', () => {
    const { user, workingDir, hostname, name, id } = made(
      { user: '', workingDir: '', hostname: '', name: '' },
      defaults,
    );
    expect([user, workingDir, hostname]).toEqual(['app', '/srv', id.slice(0, 12)]);
    expect(name).toMatch(/^[a-z]+_[a-z]+$/);
    expect(made({ name: '/web' }, defaults).name).toBe('web');
  });

  it('refuses more CPUs than there are, and an image that the guest cannot execute', () => {
    expect(() => made({ nanoCpus: 1e15 }, defaults)).toThrow('Range of CPUs');
    const arm = { ...image(defaults), platform: { os: 'linux', architecture: 'arm64' } };
    expect(() => containerConfig({ image: 'x' }, arm, [])).toThrow('is for linux/arm64; utility VMs run linux/amd64');
  });

  it('refuses a host name that would write more than a name into /etc/hosts', () => {
    for (const bad of ['a b', 'a\n10.0.0.1 evil', '-a', 'a'.repeat(64)])
      expect(() => made({ hostname: bad }, defaults)).toThrow('Invalid hostname');
  });
});

describe('the container store', () => {
  let folder: string;
  let store: ContainerStore;
  beforeEach(async () => {
    folder = await mkdtemp(join(tmpdir(), 'lcow-store-'));
    store = new ContainerStore(stateFolders({ LCOW_ROOT: join(folder, 'r'), LCOW_RUNTIME_DIR: join(folder, 'run') }));
  });
  afterEach(() => rm(folder, { recursive: true }));

  it('finds a container by name, id and unambiguous beginning of its id', async () => {
    const [a, b] = [
      { ...made({ name: 'one', command: ['x'] }), id: 'ab'.repeat(32) },
      { ...made({ name: 'two', command: ['x'] }), id: 'ac'.repeat(32) },
    ];
    await store.create(a);
    await store.create(b);
    for (const key of ['one', '/one', a.id, 'ab']) expect((await store.resolve(key)).config).toEqual(a);
    await expect(store.resolve('a')).rejects.toThrow('Multiple IDs found with provided prefix: a');
    for (const key of ['', 'nobody', '..'])
      await expect(store.resolve(key)).rejects.toMatchObject({ code: 'CONTAINER_NOT_FOUND' });
    await store.remove(a.id);
    expect((await store.list()).map(({ config }) => config.name)).toEqual(['two']);
  });

  it('gives a name only once, also to many who want it at the same time', async () => {
    const results = await Promise.allSettled(
      Array.from({ length: 5 }, () => store.create(made({ name: 'same', command: ['x'] }))),
    );
    expect(results.filter(({ status }) => status === 'fulfilled').length).toBe(1);
    await expect(store.create(made({ name: '../x', command: ['x'] }))).rejects.toThrow('Invalid container name');
  });

  it('knows a container of a killed supervisor for exited', async () => {
    const config = made({ command: ['x'] });
    await store.create(config);
    await store.update(config.id, () => ({ status: 'running', supervisor: { pid: 999_999_999, startTime: 1 } }));
    expect((await store.get(config.id)).state).toMatchObject({ status: 'exited', exitCode: 137 });
    await store.update(config.id, (state) => {
      expect(state.status).toBe('exited');
      return state;
    });
  });

  it('does not let a damaged container stand in the way of the others', async () => {
    const [good, bad] = [made({ command: ['x'] }), made({ command: ['x'] })];
    await store.create(good);
    await store.create(bad);
    await writeFile(join(store.folder(bad.id), 'state.json'), '{"status":');
    expect((await store.list()).map(({ config }) => config.id)).toEqual([good.id]);
    await expect(store.resolve(bad.id)).rejects.toMatchObject({ code: 'BAD_RECORD' });
  });
});
