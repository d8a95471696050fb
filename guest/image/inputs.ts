import { createHash } from 'node:crypto';
import { readFile } from 'node:fs/promises';

/** One digest over names and contents, in the order given. */
export async function inputsDigest(files: readonly string[], facts: readonly string[]): Promise<string> {
  const hash = createHash('sha256');
  for (const path of files) {
    const content = await readFile(path);
    hash.update(`${content.length}:`).update(content);
  }
  for (const fact of facts) hash.update(`${fact}\n`);
  return hash.digest('hex');
}
