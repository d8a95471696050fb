/**
 * Applies a unified diff to files in memory. Strict: every hunk must match where it says or, shifted by earlier hunks, elsewhere.
 * @param read - the text of a file that the diff names (its first path component is taken off)
 * @returns the changed files
 * @throws Error naming the file and line of a hunk that does not match
 */
export function applyPatch(diff: string, read: (path: string) => string): Map<string, string> {
  const changed = new Map<string, string>();
  const lines = diff.split('\n');
  let path: string | undefined;
  let content: string[] = [];
  for (let at = 0; at < lines.length; at++) {
    const line = lines[at]!;
    const file = /^\+\+\+ [^/\s]+\/(\S+)/.exec(line);
    if (file && lines[at - 1]?.startsWith('--- ')) {
      path = file[1]!;
      content = (changed.get(path) ?? read(path)).split('\n');
      continue;
    }
    const hunk = /^@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@/.exec(line);
    if (!hunk || path === undefined) continue;
    const before: string[] = [];
    const after: string[] = [];
    const [oldCount, newCount] = [Number(hunk[2] ?? 1), Number(hunk[4] ?? 1)];
    while (before.length < oldCount || after.length < newCount) {
      const next = lines[++at];
      if (next === undefined) throw new Error(`A patch of ${path} ends in the middle.`);
      if (!next.startsWith('+')) before.push(next.slice(1));
      if (!next.startsWith('-')) after.push(next.slice(1));
    }
    const start = findLines(content, before, Number(hunk[3]) - 1);
    if (start < 0) throw new Error(`A patch of ${path} does not fit at line ${hunk[1]!}.`);
    content.splice(start, before.length, ...after);
    changed.set(path, content.join('\n'));
  }
  return changed;
}

function findLines(content: readonly string[], wanted: readonly string[], expected: number): number {
  const fits = (start: number): boolean => wanted.every((line, index) => content[start + index] === line);
  if (fits(expected)) return expected;
  return content.findIndex((_, start) => fits(start));
}
