import { readFile } from 'node:fs/promises';
import { pack, type Header } from 'tar-stream';

/** busybox-static: one program with no libraries, so that a layer can be made without an image. */
const BUSYBOX = '/bin/busybox';

/** A file of a layer: a header and, for files, its content. */
export type LayerEntry = Pick<Header, 'name'> & Partial<Header> & { readonly content?: string | Buffer };

/** A tar stream of the entries, in their order. */
export function layerTar(entries: readonly LayerEntry[]): AsyncIterable<Uint8Array> {
  const tar = pack();
  void (async () => {
    for (const { content, ...header } of entries)
      await new Promise<void>((resolve, reject) => {
        tar.entry(header, content ?? '', (error) => {
          if (error) reject(error);
          else resolve();
        });
      });
    tar.finalize();
  })().catch((error: unknown) => {
    tar.destroy(error instanceof Error ? error : undefined);
  });
  return tar as unknown as AsyncIterable<Uint8Array>;
}

/** The root file system of a small system: busybox with its applets, users root and web (1000:1000). */
export async function busyboxRoot(applets: readonly string[]): Promise<LayerEntry[]> {
  const folder = (name: string, mode = 0o755): LayerEntry => ({ name, type: 'directory', mode });
  return [
    ...['bin', 'dev', 'etc', 'proc', 'root', 'sys', 'var', 'var/cache', 'home'].map((name) => folder(name)),
    folder('tmp', 0o1777),
    { name: 'bin/busybox', mode: 0o755, content: await readFile(BUSYBOX) },
    ...applets.map((applet): LayerEntry => ({ name: `bin/${applet}`, type: 'symlink', linkname: 'busybox' })),
    { name: 'bin/not-executable', mode: 0o644, content: '#!/bin/sh\n' },
    { name: 'etc/passwd', content: 'root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1000::/home/web:/bin/sh\n' },
    { name: 'etc/group', content: 'root:x:0:\nweb:x:1000:\naudio:x:29:web\n' },
    { name: 'etc/motd', content: 'the base layer\n' },
    { name: 'etc/removed', content: 'only in the base layer\n' },
    { name: 'var/cache/old', content: 'hidden by an opaque folder\n' },
  ];
}
