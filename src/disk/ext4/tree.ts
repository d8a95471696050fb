import { LcowError } from '../../errors/index.js';
import type { InodeTable } from './inode-table.js';
import { MAXIMUM_LINKS, MAXIMUM_NAME_BYTES, MODE, ROOT_INODE } from './structures.js';

/** A directory under construction. Names are byte strings. */
export class Directory {
  /** Has xattr trusted.overlay.opaque: it hides what the layers below have under its name. */
  opaque = false;
  readonly children = new Map<string, number>();

  constructor(
    readonly inode: number,
    readonly parent: Directory | undefined,
  ) {}
}

/** A place for a name: its directory and the name in it. Without a name it is the root. */
export interface Place {
  readonly directory: Directory;
  readonly name: string;
}

/** As the kernel: more symbolic links in one path are a loop. */
const MAXIMUM_SYMLINKS = 40;

/**
 * The names of an image: which directory holds which inode under which name. Paths are those of tar members: relative to
 * the root whatever they begin with, `..` never leads out of it, and a symbolic link on the way is followed inside it.
 */
export class FileTree {
  readonly root = new Directory(ROOT_INODE, undefined);
  readonly directories = new Map<number, Directory>([[ROOT_INODE, this.root]]);
  /** Targets of symbolic links. */
  readonly symlinks = new Map<number, string>();
  /** The parent of the last path, since members come directory by directory. */
  #lastParentPath = '';
  #lastParent: Directory | undefined;

  /** @param onRelease called with an inode that lost its last name, before its number is given back. */
  constructor(
    private readonly inodes: InodeTable,
    private readonly onRelease: (inode: number) => void,
  ) {
    inodes.links[ROOT_INODE] = 2;
  }

  /**
   * Finds where a path belongs, making missing directories on the way; they take owner, permissions and times from the
   * directory they are made in.
   * @throws LcowError BAD_TAR when a file stands in the way or a name is too long.
   */
  place(path: string): Place {
    let end = path.length;
    while (end > 0 && path.charCodeAt(end - 1) === 0x2f) end -= 1;
    const slash = path.lastIndexOf('/', end - 1);
    const name = path.slice(slash + 1, end);
    if (slash < 0 || name === '' || name === '.' || name === '..') return this.#placeSlowly(path);
    const parentPath = path.slice(0, slash);
    if (!this.#lastParent || parentPath !== this.#lastParentPath) {
      this.#lastParent = this.#walk(lexicalParts(parentPath), path, true)!;
      this.#lastParentPath = parentPath;
    }
    checkName(name, path);
    return { directory: this.#lastParent, name };
  }

  #placeSlowly(path: string): Place {
    const parts = lexicalParts(path);
    const name = parts.pop() ?? '';
    checkName(name, path);
    return { directory: this.#walk(parts, path, true)!, name };
  }

  /** The directory a path leads to, made when it is missing. @throws LcowError BAD_TAR when it is something else. */
  directory(path: string): Directory {
    return this.#walk(lexicalParts(path), path, true)!;
  }

  /** The inode of a path, a symbolic link at its end not followed; undefined when there is none. */
  lookup(path: string): number | undefined {
    const parts = lexicalParts(path);
    const name = parts.pop();
    if (name === undefined) return ROOT_INODE;
    return this.#walk(parts, path, false)?.children.get(name);
  }

  /** Follows directories and symbolic links. Only without `create` may the result be undefined. */
  #walk(parts: readonly string[], path: string, create: boolean): Directory | undefined {
    let directory = this.root;
    let followed = 0;
    const pending = [...parts].reverse();
    for (let name = pending.pop(); name !== undefined; name = pending.pop()) {
      if (name === '' || name === '.') continue;
      if (name === '..') {
        directory = directory.parent ?? this.root;
        continue;
      }
      const inode = directory.children.get(name);
      if (inode === undefined) {
        if (!create) return undefined;
        checkName(name, path);
        directory = this.makeDirectory(directory, name);
        this.inodes.copyAttributes(directory.inode, directory.parent!.inode);
        continue;
      }
      const target = this.symlinks.get(inode);
      if (target !== undefined) {
        followed += 1;
        if (followed > MAXIMUM_SYMLINKS) throw bad(path, 'leads through more than 40 symbolic links');
        if (target.startsWith('/')) directory = this.root;
        pending.push(...target.split('/').reverse());
        continue;
      }
      const next = this.directories.get(inode);
      if (next) directory = next;
      else if (!create) return undefined;
      else if (this.isWhiteout(inode)) directory = this.#openWhiteout(directory, name);
      else throw bad(path, 'leads through a file that is not a directory');
    }
    return directory;
  }

  /** A whiteout says that the layers below lose the name; what this layer has there is a new, opaque directory. */
  #openWhiteout(parent: Directory, name: string): Directory {
    this.remove(parent, name);
    const made = this.makeDirectory(parent, name);
    this.inodes.copyAttributes(made.inode, parent.inode);
    made.opaque = true;
    return made;
  }

  /** Whether an inode is what overlayfs takes for a whiteout: a character device 0:0. */
  isWhiteout(inode: number): boolean {
    return this.inodes.kind(inode) === MODE.characterDevice && this.inodes.start[inode] === 0;
  }

  /** Makes a directory under a free name. */
  makeDirectory(parent: Directory, name: string): Directory {
    const made = new Directory(this.inodes.allocate(MODE.directory), parent);
    this.inodes.links[made.inode] = 2;
    this.inodes.links[parent.inode]! += 1;
    this.directories.set(made.inode, made);
    parent.children.set(name, made.inode);
    return made;
  }

  /** Gives an inode that is no directory a name, in place of what has it. */
  put(place: Place, inode: number): void {
    // Counted first: the old name may be the last one of the same inode, or a directory with it inside.
    this.inodes.links[inode]! += 1;
    this.remove(place.directory, place.name);
    place.directory.children.set(place.name, inode);
  }

  /** Gives an inode a further name. @throws LcowError BAD_TAR when it has 65000 already. */
  link(place: Place, inode: number, path: string): void {
    if (place.directory.children.get(place.name) === inode) return;
    if (this.inodes.links[inode]! >= MAXIMUM_LINKS)
      throw bad(path, `is one hard link more than the ${MAXIMUM_LINKS} a file may have`);
    this.put(place, inode);
  }

  /** Removes a name and, when it is a directory, all below it. Nothing happens when there is none. */
  remove(directory: Directory, name: string): void {
    const inode = directory.children.get(name);
    if (inode === undefined) return;
    directory.children.delete(name);
    this.#lastParent = undefined;
    const removed = this.directories.get(inode);
    if (!removed) {
      this.#unlink(inode);
      return;
    }
    this.inodes.links[directory.inode]! -= 1;
    const pending = [removed];
    for (let next = pending.pop(); next; next = pending.pop()) {
      for (const child of next.children.values()) {
        const below = this.directories.get(child);
        if (below) pending.push(below);
        else this.#unlink(child);
      }
      this.directories.delete(next.inode);
      this.#release(next.inode);
    }
  }

  #unlink(inode: number): void {
    this.inodes.links[inode]! -= 1;
    if (this.inodes.links[inode] === 0) this.#release(inode);
  }

  #release(inode: number): void {
    this.onRelease(inode);
    this.symlinks.delete(inode);
    this.inodes.release(inode);
  }
}

/** The parts of a path with `.` and `..` taken out by their text, as path.Clean("/" + name) in the seed does. */
function lexicalParts(path: string): string[] {
  const parts: string[] = [];
  for (const part of path.split('/')) {
    if (part === '' || part === '.') continue;
    if (part === '..') parts.pop();
    else parts.push(part);
  }
  return parts;
}

function checkName(name: string, path: string): void {
  if (name.length > MAXIMUM_NAME_BYTES)
    throw bad(path, `has a name of ${name.length} bytes; ext4 allows ${MAXIMUM_NAME_BYTES}`);
}

/** The error for a member that cannot be put into the image. */
export function bad(path: string, reason: string): LcowError {
  const readable = Buffer.from(path, 'latin1').toString();
  const shown = readable.length > 200 ? `${readable.slice(0, 200)}…` : readable;
  return new LcowError('BAD_TAR', `The tar member ${JSON.stringify(shown)} ${reason}.`, {
    details: { path: readable },
  });
}
