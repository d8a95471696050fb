import { readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import type { PinnedPackage } from './packages.js';

/** File names in the guest image folder. */
export const GUEST_FILES = { kernel: 'vmlinux', initrd: 'initrd.img', manifest: 'manifest.json' } as const;

/** What a guest image is made of: guest/out/manifest.json. Holds no times, so equal inputs give an equal file. */
export interface GuestManifest {
  readonly formatVersion: 1;
  /** Digest over everything that decides the image's bytes; see {@link inputsDigest}. */
  readonly inputs: string;
  readonly kernelRelease: string;
  readonly agentVersion: string;
  readonly goVersion: string;
  readonly files: Readonly<Record<'vmlinux' | 'initrd.img', { readonly sizeBytes: number; readonly sha256: string }>>;
  /** Kernel modules in the order of loading. */
  readonly modules: readonly string[];
  /** Whether crun was compiled as a static program or is Debian's own, with its libraries. */
  readonly crun: 'static' | 'dynamic';
  /** What the image was built from. */
  readonly packages: readonly PinnedPackage[];
}

/** The manifest of a folder, or undefined when there is none that can be read. */
export async function readManifest(folder: string): Promise<GuestManifest | undefined> {
  try {
    const manifest = JSON.parse(await readFile(join(folder, GUEST_FILES.manifest), 'utf8')) as GuestManifest;
    return (manifest.formatVersion as number) === 1 ? manifest : undefined;
  } catch {
    return undefined;
  }
}

/** Whether the folder holds a whole image of these inputs. The files are judged by their size: reading them would take longer than it helps. */
export async function isUpToDate(folder: string, inputs: string): Promise<boolean> {
  const manifest = await readManifest(folder);
  if (manifest?.inputs !== inputs) return false;
  for (const [name, { sizeBytes }] of Object.entries(manifest.files)) {
    const found = await stat(join(folder, name)).catch(() => undefined);
    if (found?.size !== sizeBytes) return false;
  }
  return true;
}
