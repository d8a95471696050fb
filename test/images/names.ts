/** The test images: folders of test/images/out. */
export const IMAGE_NAMES = ['busybox', 'busybox-zstd', 'whiteout', 'platforms', 'arm64-only', 'debian'] as const;

export type ImageName = (typeof IMAGE_NAMES)[number];

/** Whether there is a test image of that name. */
export function isImageName(name: string): name is ImageName {
  return (IMAGE_NAMES as readonly string[]).includes(name);
}
