import { describe, expect, test } from 'vitest';
import { choosePlatform, formatPlatform, hostPlatform, parsePlatform, platformDistance } from './platform.js';

test.each([
  ['linux/amd64', 'linux/amd64'],
  ['linux/x86_64', 'linux/amd64'],
  ['amd64', 'linux/amd64'],
  ['linux/aarch64', 'linux/arm64'],
  ['linux/arm64/v8', 'linux/arm64'],
  ['linux/arm', 'linux/arm/v7'],
  ['linux/armel', 'linux/arm/v6'],
  ['Linux/ARM/6', 'linux/arm/v6'],
  ['linux/386', 'linux/386'],
])('%s is %s', (text, normal) => {
  expect(formatPlatform(parsePlatform(text))).toBe(normal);
});

test.each(['', 'a/b/c/d', 'linux/', 'linux/am d64'])('%j is no platform', (text) => {
  expect(() => parsePlatform(text)).toThrow(/not of the form/);
});

test.each([
  ['x64', 'amd64'],
  ['arm64', 'arm64'],
  ['arm', 'arm'],
  ['riscv64', 'riscv64'],
])('a host of node’s %s runs %s', (arch, architecture) => {
  expect(hostPlatform(arch)).toMatchObject({ os: 'linux', architecture });
});

describe('the platform of an index entry', () => {
  const choose = (wanted: string, offered: string[]): string | undefined =>
    choosePlatform(offered, parsePlatform, parsePlatform(wanted));

  test.each([
    ['linux/amd64', ['linux/arm64', 'linux/amd64'], 'linux/amd64'],
    ['linux/arm64', ['linux/amd64', 'linux/arm64/v8'], 'linux/arm64/v8'],
    ['linux/arm/v7', ['linux/arm/v5', 'linux/arm/v6', 'linux/arm64'], 'linux/arm/v6'],
    ['linux/arm/v7', ['linux/arm/v6', 'linux/arm/v7'], 'linux/arm/v7'],
    ['linux/arm/v6', ['linux/arm/v7'], undefined],
    ['linux/amd64', ['linux/amd64/v3'], undefined],
    ['linux/amd64', ['windows/amd64', 'linux/s390x'], undefined],
  ])('for %s of %j is %s', (wanted, offered, chosen) => {
    expect(choose(wanted, offered)).toBe(chosen);
  });

  test('is the first of several that fit as well', () => {
    const platform = { os: 'linux', architecture: 'amd64' };
    const candidates = [
      { id: 1, platform },
      { id: 2, platform },
    ];
    expect(choosePlatform(candidates, (candidate) => candidate.platform, platform)?.id).toBe(1);
  });
});

test('an arm of an unknown version fits nothing but itself', () => {
  expect(
    platformDistance(
      { os: 'linux', architecture: 'arm', variant: 'v7' },
      { os: 'linux', architecture: 'arm', variant: 'x' },
    ),
  ).toBeUndefined();
});
