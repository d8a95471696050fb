import { createHash } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { fsck, listImage, readInodes } from '../../../test/support/ext4-image.js';
import { inPieces, makeTar, type Member } from '../../../test/support/make-tar.js';
import { tarToVhd } from './index.js';

/**
 * A second telling of what a tar means, as plainly as possible, to compare the image with. Knows no paths through
 * symbolic links: links of the generated tars lead nowhere.
 */
interface Node {
  kind: string;
  mode: number;
  uid: number;
  content: string;
  opaque: boolean;
  children: Map<string, Node>;
}

function node(kind: string, member?: Member): Node {
  const content = member?.content?.toString() ?? (member?.linkname as string | undefined) ?? '';
  return {
    kind,
    mode: member?.mode ?? (member ? 0o644 : 0),
    uid: member?.uid ?? 0,
    content,
    opaque: false,
    children: new Map(),
  };
}

const KINDS: Readonly<Record<string, string>> = {
  '0': 'regular',
  '2': 'symlink',
  '3': 'character special',
  '5': 'directory',
  '6': 'FIFO',
};
const isWhiteout = (found: Node | undefined): boolean => found?.kind === 'character special' && found.content === '';

/** Applies a member. Returns whether it must be taken; undefined when this model does not know. */
function apply(root: Node, member: Member): boolean | undefined {
  const parts = (member.name as string).split('/').filter((part) => part !== '' && part !== '.');
  let name = parts.pop()!;
  const made = member.type === '1' ? lookup(root, member.linkname as string) : node(KINDS[member.type ?? '0']!, member);
  if (!made || (member.type === '1' && made.kind === 'directory')) return false;
  const parent = descend(root, parts);
  if (typeof parent !== 'object') return parent;
  if (name === '.wh..wh..opq') {
    parent.opaque = true;
    return true;
  }
  if (name.startsWith('.wh.')) {
    name = name.slice(4);
    const found = parent.children.get(name);
    if (!found) parent.children.set(name, node('character special'));
    else if (found.kind === 'directory') found.opaque = true;
    return true;
  }
  const found = parent.children.get(name);
  if (member.type === '3') made.content = '1:3';
  if (made.kind === 'directory' && found?.kind === 'directory')
    Object.assign(found, { mode: made.mode, uid: made.uid });
  else {
    if (made.kind === 'directory') made.opaque = isWhiteout(found);
    parent.children.set(name, made);
  }
  return true;
}

function descend(root: Node, parts: readonly string[]): Node | false | undefined {
  // Looked at before anything is made, so that a refused member leaves no trace.
  let probe: Node | undefined = root;
  for (const part of parts) {
    probe = probe?.children.get(part);
    if (probe?.kind === 'symlink') return undefined;
    if (probe && probe.kind !== 'directory' && !isWhiteout(probe)) return false;
  }
  let at = root;
  for (const part of parts) {
    let next = at.children.get(part);
    if (!next || isWhiteout(next)) {
      const opaque = next !== undefined;
      next = { ...node('directory'), mode: at.mode, uid: at.uid, opaque };
      at.children.set(part, next);
    }
    at = next;
  }
  return at;
}

function lookup(root: Node, path: string): Node | undefined {
  return path.split('/').reduce<Node | undefined>((at, part) => at?.children.get(part), root);
}

/** One line for each name. */
function* describeTree(at: Node, path: string): Generator<[string, string]> {
  for (const [name, child] of at.children) {
    const line = `${child.kind} ${child.mode.toString(8)} ${child.uid} ${child.opaque} ${digest(child.content)}`;
    yield [path + name, child.kind === 'character special' ? `${line} ${child.content || '0:0'}` : line];
    yield* describeTree(child, `${path}${name}/`);
  }
}

const digest = (content: string | Buffer): string => createHash('sha1').update(content).digest('hex').slice(0, 8);

const nameOf = fc.constantFrom('a', 'b', 'größe', 'with blank', 'x'.repeat(200), '~');
const path = fc.array(nameOf, { minLength: 1, maxLength: 4 }).map((parts) => parts.join('/'));
const prefix = fc.constantFrom('', './', '/');
const attributes = fc.record({
  mode: fc.integer({ min: 0, max: 0o7777 }),
  uid: fc.integer({ min: 0, max: 2 ** 31 - 1 }),
});
const content = fc.oneof(fc.constantFrom(0, 1, 4095, 4096, 4097, 8192), fc.integer({ min: 0, max: 20_000 }));
const memberOf: fc.Arbitrary<Member> = fc.oneof(
  {
    weight: 4,
    arbitrary: fc
      .tuple(path, attributes, content)
      .map(([name, more, size]) => ({ name, ...more, content: name.charAt(0).repeat(size) })),
  },
  { weight: 3, arbitrary: fc.tuple(path, attributes).map(([name, more]) => ({ name, type: '5', ...more })) },
  { weight: 2, arbitrary: fc.tuple(path, path).map(([name, linkname]) => ({ name, type: '1', linkname })) },
  {
    weight: 1,
    arbitrary: fc
      .tuple(path, fc.integer({ min: 1, max: 99 }))
      .map(([name, length]) => ({ name, type: '2', linkname: 'z'.repeat(length) })),
  },
  { weight: 1, arbitrary: path.map((name) => ({ name, type: '3', mode: 0o600, major: 1, minor: 3 })) },
  { weight: 1, arbitrary: path.map((name) => ({ name, type: '6', mode: 0o600 })) },
  { weight: 1, arbitrary: path.map((name) => ({ name: name.replace(/[^/]*$/, '.wh.$&') })) },
  { weight: 1, arbitrary: path.map((name) => ({ name: `${name}/.wh..wh..opq` })) },
);

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'lcow-property-'));
});
afterAll(() => rmSync(folder, { recursive: true }));

test('the image of any tar holds what the tar means, and e2fsck finds no fault in it', async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(fc.tuple(prefix, memberOf), { maxLength: 40 }), async (generated) => {
      const root = { ...node('directory'), mode: 0o755 };
      const members: Member[] = [];
      for (const [before, member] of generated) {
        // Names above 100 bytes need a pax header.
        const name = before + (member.name as string);
        const pax = { path: name, ...(member.type === '1' ? { linkpath: member.linkname! } : {}) };
        const taken = apply(root, { ...member, name });
        if (taken) members.push({ ...member, name: 'short', pax });
        else if (taken === false) await expectRefused([...members, { ...member, name: 'short', pax }]);
      }
      const image = join(folder, 'image');
      await tarToVhd(inPieces(makeTar(...members)), image, { appendVhdFooter: false });
      expect(await fsck(image)).toEqual({ exitCode: 0, complaints: [] });
      expect(await describeImage(image)).toEqual(new Map([...describeTree(root, '')].sort()));
    }),
    { numRuns: 60, seed: 42, endOnFailure: true },
  );
}, 180_000);

async function expectRefused(members: Member[]): Promise<void> {
  const target = join(folder, 'refused');
  await expect(tarToVhd(inPieces(makeTar(...members)), target)).rejects.toMatchObject({ code: 'BAD_TAR' });
}

async function describeImage(image: string): Promise<Map<string, string>> {
  const seen = await listImage(image);
  seen.delete('');
  const withContent = [
    ...new Set([...seen.values()].filter(({ type, size }) => type === 'regular' || (type === 'symlink' && size >= 60))),
  ];
  const inodes = [...new Set(withContent.map(({ inode }) => inode))];
  const contents = await readInodes(image, inodes);
  const lines = [...seen].map(([name, { type, mode, uid, xattrs, target, inode, device }]): [string, string] => {
    const held = contents[inodes.indexOf(inode)] ?? target ?? (device === '0:0' ? '' : (device ?? ''));
    const line = `${type} ${mode.toString(8)} ${uid} ${xattrs['trusted.overlay.opaque'] === 'y'} ${digest(held)}`;
    return [name, device === undefined ? line : `${line} ${device}`];
  });
  return new Map(lines.sort());
}
