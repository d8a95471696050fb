import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { startRegistry } from '../images/registry.js';
import { imageFolder, Sandbox } from './lcow.js';

let lcow: Sandbox;
let registry: Awaited<ReturnType<typeof startRegistry>>;
beforeAll(async () => {
  registry = await startRegistry();
  for (const name of ['busybox', 'whiteout', 'busybox-zstd', 'platforms'])
    await registry.push(imageFolder(name), `test/${name}`);
  lcow = await Sandbox.make();
});
afterAll(async () => {
  await registry.stop();
  const left = await lcow.leftovers();
  await lcow.remove();
  expect(left).toEqual([]);
});

describe('an image in a registry', () => {
  it('is pulled by run when missing, layer by layer, and its whiteouts are honoured', async () => {
    const name = `${registry.host}/test/whiteout`;
    const first = await lcow.run(['run', '--rm', name, 'sh', '-c', 'test ! -e /etc/one && ls /']);
    expect(first.code).toBe(0);
    expect(first.stderr).toContain('Pull complete');
    // The second time it is here.
    expect(await lcow.run(['run', '--rm', name, 'true'])).toMatchObject({ code: 0, stderr: '' });
    expect(await lcow.ok('image', 'ls')).toContain('test/whiteout');
  });

  it('may have zstd layers, and several platforms', async () => {
    for (const name of ['busybox-zstd', 'platforms']) {
      await lcow.ok('image', 'pull', `${registry.host}/test/${name}`);
      expect(await lcow.ok('run', '--rm', `${registry.host}/test/${name}`, 'echo', name)).toBe(`${name}\n`);
    }
  });

  it('of another architecture is refused by name', async () => {
    const { code, stderr } = await lcow.run([
      ...['image', 'pull', '--platform', 'linux/s390x', `${registry.host}/test/platforms`],
    ]);
    expect(code).toBe(1);
    expect(stderr).toContain('linux/s390x');
    expect(stderr).toContain('linux/amd64');
  });

  it('that does not exist is an error with exit code 125 for run', async () => {
    const { code, stderr } = await lcow.run(['run', '--rm', `${registry.host}/test/nothing`, 'true']);
    expect(code).toBe(125);
    expect(stderr).toContain('test/nothing');
  });

  it('is removed with its layers when no container uses it', async () => {
    const name = `${registry.host}/test/whiteout`;
    await lcow.ok('run', '--name', 'user', name, 'true');
    const refused = await lcow.run(['image', 'rm', name]);
    expect(refused.code).toBe(1);
    expect(refused.stderr).toContain('container');
    await lcow.ok('rm', 'user');
    expect(await lcow.ok('image', 'rm', name)).toContain('Untagged');
    expect(await lcow.ok('image', 'ls')).not.toContain('test/whiteout');
  });
});
