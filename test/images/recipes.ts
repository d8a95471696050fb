import { busyboxLayer, debianLayer, lowerLayer, tarOf, whiteoutLayer } from './layers.js';
import type { Layer, LayoutWriter } from './layout.js';
import type { ImageName } from './names.js';

const BUSYBOX = { architecture: 'amd64', Cmd: ['sh'] } as const;

async function busybox(layout: LayoutWriter, compression: 'gzip' | 'zstd' = 'gzip'): Promise<Layer> {
  return layout.addLayer(await busyboxLayer(), 'ADD busybox of Debian bookworm', compression);
}

/** How each test image is made. */
export const RECIPES: Readonly<Record<ImageName, (layout: LayoutWriter) => Promise<void>>> = {
  /** One layer, gzip. */
  busybox: async (layout) => layout.finish(await layout.addImage([await busybox(layout)], BUSYBOX)),

  /** The same layer (equal diff id), compressed with zstd. */
  'busybox-zstd': async (layout) => layout.finish(await layout.addImage([await busybox(layout, 'zstd')], BUSYBOX)),

  /** Two layers over busybox', the upper one with whiteouts and an opaque folder. */
  whiteout: async (layout) => {
    const layers = [
      await busybox(layout),
      await layout.addLayer(lowerLayer(), 'ADD what the next layer deletes'),
      await layout.addLayer(whiteoutLayer(), 'ADD whiteouts'),
    ];
    await layout.finish(await layout.addImage(layers, BUSYBOX));
  },

  /** An index of busybox for amd64 and of a thing for arm64 that cannot run anywhere. */
  platforms: async (layout) => {
    const arm = await layout.addLayer(tarOf({ 'arm64-only': 'not for this machine\n' }), 'ADD a file');
    const manifests = [
      await layout.addImage([arm], { architecture: 'arm64', variant: 'v8', Cmd: ['/none'] }),
      await layout.addImage([await busybox(layout)], BUSYBOX),
    ];
    await layout.finish(await layout.addIndex(manifests));
  },

  /** The other half alone: an image that has no platform this machine can run. */
  'arm64-only': async (layout) => {
    const arm = await layout.addLayer(tarOf({ 'arm64-only': 'not for this machine\n' }), 'ADD a file');
    await layout.finish(await layout.addImage([arm], { architecture: 'arm64', variant: 'v8', Cmd: ['/none'] }));
  },

  /** Debian bookworm, minbase. */
  debian: async (layout) => {
    const layer = await debianLayer(async (tar) => layout.addLayer(tar, 'mmdebstrap --variant=minbase bookworm'));
    await layout.finish(await layout.addImage([layer], { architecture: 'amd64', Cmd: ['bash'] }));
  },
};
