import { readFile } from 'node:fs/promises';
import { isAbsolute, join } from 'node:path';
import { LcowError } from '../errors/index.js';
import { asIoError, writeFileAtomic } from '../state/index.js';

/** Name of the file in a layer folder that lists the parents. */
export const LAYER_CHAIN_FILE = 'layerchain.json';

/**
 * The parents of the layer in `folder`: absolute folders, nearest first, base last; the layer itself is not listed.
 * A missing file or the value null is a base layer, as in the seed.
 * @throws LcowError IO_FAILED when the file is damaged.
 */
export async function readLayerChain(folder: string): Promise<string[]> {
  const path = join(folder, LAYER_CHAIN_FILE);
  let text: string;
  try {
    text = await readFile(path, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return [];
    throw asIoError(error, `The parents of the layer in ${folder} cannot be read`);
  }
  let chain: unknown;
  try {
    chain = JSON.parse(text);
  } catch (cause) {
    throw new LcowError('IO_FAILED', `The layer chain ${path} is damaged: it is no JSON.`, { cause });
  }
  if (chain === null) return [];
  if (!Array.isArray(chain) || !chain.every((parent) => typeof parent === 'string' && isAbsolute(parent)))
    throw new LcowError('IO_FAILED', `The layer chain ${path} is damaged: it is no list of absolute folders.`);
  return chain as string[];
}

/** Writes the parents of the layer in `folder`, mode 0600. */
export async function writeLayerChain(folder: string, chain: readonly string[]): Promise<void> {
  await writeFileAtomic(join(folder, LAYER_CHAIN_FILE), JSON.stringify(chain));
}
