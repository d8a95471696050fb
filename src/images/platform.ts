import { LcowError } from '../errors/index.js';

/** What an image runs on (image-spec, image-index.md "platform"). Values are GOOS, GOARCH and GOARM names. */
export interface Platform {
  readonly os: string;
  readonly architecture: string;
  readonly variant?: string | undefined;
}

// uname and common names on the left, Go's on the right.
const ARCHITECTURES: Readonly<Record<string, string>> = {
  x64: 'amd64',
  'x86-64': 'amd64',
  x86_64: 'amd64',
  ia32: '386',
  i386: '386',
  i686: '386',
  aarch64: 'arm64',
  armhf: 'arm',
  armel: 'arm',
  ppc64: 'ppc64le',
  loong64: 'loong64',
};

/** linux on the architecture of this host: the guest runs on the host's own. */
export function hostPlatform(architecture: string = process.arch): Platform {
  return normalisePlatform({ os: 'linux', architecture });
}

/**
 * Parses `os/architecture[/variant]`, or an architecture alone, which then is linux.
 * @throws LcowError INVALID_ARGUMENT when it is neither.
 */
export function parsePlatform(text: string): Platform {
  const parts = text.split('/');
  if (parts.length > 3 || !parts.every((part) => /^[A-Za-z0-9_.-]+$/.test(part)))
    throw new LcowError('INVALID_ARGUMENT', `The platform "${text}" is not of the form os/architecture[/variant].`);
  const [os, architecture, variant] = parts.length === 1 ? ['linux', parts[0]!] : (parts as [string, string, string?]);
  return normalisePlatform({ os, architecture, variant });
}

/** Brings synonyms to one name: x86_64 is amd64; arm64 is v8 and says no variant; arm without variant is v7. */
export function normalisePlatform(platform: Platform): Platform {
  const os = platform.os.toLowerCase();
  const named = platform.architecture.toLowerCase();
  const architecture = ARCHITECTURES[named] ?? named;
  let variant = platform.variant?.toLowerCase() ?? '';
  if (architecture === 'arm') {
    variant ||= named === 'armel' ? 'v6' : 'v7';
    if (/^\d$/.test(variant)) variant = `v${variant}`;
  }
  if (architecture === 'arm64' && (variant === 'v8' || variant === '8')) variant = '';
  if (architecture === 'amd64' && variant === 'v1') variant = '';
  return variant ? { os, architecture, variant } : { os, architecture };
}

/** `linux/arm/v7`. */
export function formatPlatform({ os, architecture, variant }: Platform): string {
  return [os, architecture, variant].filter(Boolean).join('/');
}

/**
 * How well an image for `offered` runs on `wanted`: undefined is not at all, 0 is exactly, more is worse.
 * A 32-bit arm runs images for older arms, the newest first.
 */
export function platformDistance(wanted: Platform, offered: Platform): number | undefined {
  const want = normalisePlatform(wanted);
  const offer = normalisePlatform(offered);
  if (want.os !== offer.os || want.architecture !== offer.architecture) return undefined;
  if (want.variant === offer.variant) return 0;
  if (want.architecture !== 'arm') return undefined;
  const distance = armVersion(want) - armVersion(offer);
  return distance >= 0 ? distance : undefined;
}

function armVersion({ variant }: Platform): number {
  return Number(/^v(\d)$/.exec(variant ?? '')?.[1] ?? Number.NaN);
}

/** The candidate that fits best; the first of equals, as the index orders them. */
export function choosePlatform<T>(
  candidates: readonly T[],
  platformOf: (candidate: T) => Platform | undefined,
  wanted: Platform,
): T | undefined {
  let best: { candidate: T; distance: number } | undefined;
  for (const candidate of candidates) {
    const platform = platformOf(candidate);
    const distance = platform && platformDistance(wanted, platform);
    if (distance !== undefined && (!best || distance < best.distance)) best = { candidate, distance };
  }
  return best?.candidate;
}

/** The error for an image that lacks the wanted platform, with what there is. */
export function noMatchingPlatform(image: string, wanted: Platform, offered: readonly Platform[]): LcowError {
  const names = [...new Set(offered.map(formatPlatform))];
  const there = names.length === 0 ? 'no platform at all' : names.join(', ');
  return new LcowError(
    'NO_MATCHING_PLATFORM',
    `no matching manifest for ${formatPlatform(wanted)} in ${image}: it offers ${there}.`,
    { details: { wanted: formatPlatform(wanted), offered: names } },
  );
}
