/** What a container changed, read out of its disk when it has stopped and no VM runs. */
import { createHash } from 'node:crypto';
import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { buffer, text } from 'node:stream/consumers';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { changes, diffSize, openView, readTar, vhdToTar, type FileView, type ViewLayer } from '../../src/disk/index.js';
import { eventually, qemuPids, Sandbox } from './lcow.js';

const SCRIPT = `
set -e
echo new > /root/new
ln /root/new /root/hard
ln -s /root/new /root/symbolic
mkfifo /root/pipe
mkdir -p /deep/er
i=0; while [ $i -lt 400 ]; do echo $i > /deep/er/a-name-of-some-length-$i; i=$((i+1)); done
rm /deep/er/a-name-of-some-length-7
dd if=/dev/urandom of=/data bs=65536 count=80 2>/dev/null
dd if=/dev/zero of=/sparse bs=1 count=1 seek=50000000 2>/dev/null
rm /etc/passwd
chmod 700 /bin
rm -rf /home
mkdir /home
echo only > /home/only
sha256sum < /data
`;

let lcow: Sandbox;
let upper: ViewLayer;
let lower: ViewLayer[];
let view: FileView;
let digest: string;

/** The writable layer that is there, and the layers of images. */
async function layersOf({ folder }: Sandbox): Promise<[upper: ViewLayer, lower: ViewLayer[]]> {
  const layers = join(folder, 'root/layers');
  const upper: ViewLayer[] = [];
  const lower: ViewLayer[] = [];
  for (const id of await readdir(layers)) {
    const files = await readdir(join(layers, id));
    if (files.includes('sandbox.vhdx')) upper.push({ disk: join(layers, id, 'sandbox.vhdx'), root: '/upper' });
    else if (files.includes('layer.vhd')) lower.push({ disk: join(layers, id, 'layer.vhd') });
  }
  return [upper[0]!, lower];
}

beforeAll(async () => {
  lcow = await Sandbox.make('busybox');
  // The image has neither: a layer of the first container cannot show what is deleted of the second's, its own can.
  digest = (await lcow.ok('run', '--name', 'writer', 'busybox', 'sh', '-c', `mkdir -p /root /home; ${SCRIPT}`)).split(
    ' ',
  )[0]!;
  [upper, lower] = await layersOf(lcow);
  view = await openView([upper, ...lower]);
});
afterAll(async () => {
  await (view as FileView | undefined)?.close();
  await lcow.remove();
});

const told = async (tar: AsyncIterable<Uint8Array>): Promise<Map<string, string>> => {
  const entries = new Map<string, string>();
  for await (const { path, type, linkPath, size, data } of readTar(tar)) {
    const content = createHash('sha256')
      .update(await buffer(data))
      .digest('hex');
    entries.set(path, `${type} ${linkPath || (type === 'file' ? `${size} ${content}` : '')}`.trim());
  }
  return entries;
};

describe('the disk of a stopped container', () => {
  it('is exported as a layer, without a VM', async () => {
    const entries = await told(vhdToTar(upper.disk, { root: '/upper' }));
    expect(entries.get('data')).toBe(`file ${80 * 65536} ${digest}`);
    expect(entries.get('root/hard')).toMatch(/^file 4 /);
    expect(entries.get('root/new')).toBe('hardLink root/hard');
    expect(entries.get('root/symbolic')).toBe('symbolicLink /root/new');
    expect(entries.get('root/pipe')).toBe('fifo');
    expect(entries.get('etc/.wh.passwd')).toMatch(/^file 0 /);
    expect(entries.get('home/.wh..wh..opq')).toMatch(/^file 0 /);
    expect(entries.get('home/only')).toMatch(/^file 5 /);
    expect([...entries.keys()].filter((path) => path.startsWith('deep/er/a-')).length).toBe(399);
    expect(entries.get('sparse')).toMatch(/^file 50000001 /);
    expect([...entries.keys()].some((path) => path.includes('lost+found') || path.startsWith('work'))).toBe(false);
    const sparse = await buffer(vhdToTar(upper.disk, { root: '/upper', sparse: true }));
    expect(sparse.length).toBeLessThan(10_000_000);
    expect(await told(Readable.from([sparse]))).toEqual(entries);
  });

  it('is shown merged with the layers of its image', async () => {
    expect(await text(view.stream('/root/symbolic'))).toBe('new\n');
    expect(
      createHash('sha256')
        .update(await buffer(view.stream('data')))
        .digest('hex'),
    ).toBe(digest);
    await expect(view.stat('/etc/passwd')).rejects.toMatchObject({ code: 'NOT_FOUND' });
    expect((await view.stat('/bin')).mode).toBe(0o700);
    expect((await view.readdir('/bin')).map(({ name }) => name)).toContain('sh');
    expect((await view.readdir('/home')).map(({ name }) => name)).toEqual(['only']);
    expect((await view.readdir('/deep/er')).length).toBe(399);
  });

  it('differs from its image by what the container did', async () => {
    const found = new Map((await changes(lower, upper)).map(({ path, kind }) => [path, kind]));
    expect(found.get('/etc')).toBe('modified');
    expect(found.get('/etc/passwd')).toBe('deleted');
    expect(found.get('/bin')).toBe('modified');
    expect(found.get('/data')).toBe('added');
    expect(found.get('/deep')).toBe('added');
    expect(found.get('/bin/sh')).toBeUndefined();
    expect(await diffSize(lower, upper)).toBeGreaterThan(80 * 65536 + 50_000_001);
  });

  it('holds what was synced when its VM is killed while it writes', async () => {
    const other = await Sandbox.make('busybox');
    try {
      const script =
        'echo kept > /kept; sync; echo written; while true; do dd if=/dev/zero of=/noise bs=65536 count=64 conv=fsync 2>/dev/null; done';
      await other.ok('run', '-d', '--name', 'killed', 'busybox', 'sh', '-c', script);
      await eventually(async () => (await other.ok('logs', 'killed')).includes('written'), 'the write');
      for (const pid of await qemuPids(other)) process.kill(pid, 'SIGKILL');
      await eventually(async () => (await qemuPids(other)).length === 0, 'the end of QEMU');
      const [killed, below] = await layersOf(other);
      await using seen = await openView([killed, ...below]);
      expect(await text(seen.stream('/kept'))).toBe('kept\n');
      expect((await told(vhdToTar(killed.disk, { root: '/upper' }))).get('kept')).toMatch(/^file 5 /);
    } finally {
      await other.run(['rm', '-f', 'killed']);
      await other.remove();
    }
  });
});
