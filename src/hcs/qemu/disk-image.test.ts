import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { blockNode, inspectDisk } from './disk-image.js';

const folder = mkdtempSync(join(tmpdir(), 'lcow-disk-'));
afterAll(() => rmSync(folder, { recursive: true }));

function made(name: string, ...args: string[]): string {
  const path = join(folder, name);
  execFileSync('qemu-img', ['create', '-q', ...args, path, '8M']);
  return path;
}

describe('a disk file', () => {
  it('made by qemu-img is told by its content, whatever its name', async () => {
    const fixed = made('a.vhdx', '-f', 'vpc', '-o', 'subformat=fixed,force_size=on');
    expect(await inspectDisk(fixed)).toEqual({ format: 'fixed VHD', sizeBytes: 8 << 20 });
    expect(await inspectDisk(made('b.raw', '-f', 'vhdx'))).toEqual({ format: 'VHDX' });
    await expect(inspectDisk(made('c.vhd', '-f', 'vpc'))).rejects.toMatchObject({ code: 'NOT_SUPPORTED' });
  });

  it('is raw only when its name says so', async () => {
    const path = join(folder, 'd.raw');
    writeFileSync(path, Buffer.alloc(1024));
    expect(await inspectDisk(path)).toEqual({ format: 'raw', sizeBytes: 1024 });
    await expect(inspectDisk(made('e.img', '-f', 'qcow2'))).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  });

  it.each([0, 511, 513])('of %i bytes is no disk', async (bytes) => {
    const path = join(folder, 'odd.raw');
    writeFileSync(path, '');
    truncateSync(path, bytes);
    await expect(inspectDisk(path)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  });

  it('that is missing or a folder is refused', async () => {
    await expect(inspectDisk(join(folder, 'none.vhd'))).rejects.toMatchObject({ code: 'NOT_FOUND' });
    await expect(inspectDisk(folder)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  });
});

describe('the block node of an attachment', () => {
  it('keeps the footer of a layer from the guest and takes no lock', () => {
    const attachment = { Path: '/l.vhd', Type: 'VirtualDisk', ReadOnly: true };
    expect(blockNode(1, 2, attachment, { format: 'fixed VHD', sizeBytes: 4096 })).toEqual({
      driver: 'raw',
      'node-name': 'disk1-2',
      'read-only': true,
      size: 4096,
      discard: 'ignore',
      file: { driver: 'file', filename: '/l.vhd', locking: 'off' },
    });
  });

  it('locks a writable disk', () => {
    expect(blockNode(0, 63, { Path: '/s', Type: 'VirtualDisk' }, { format: 'VHDX' })).toEqual({
      driver: 'vhdx',
      'node-name': 'disk0-63',
      'read-only': false,
      discard: 'unmap',
      file: { driver: 'file', filename: '/s', locking: 'auto' },
    });
  });
});
