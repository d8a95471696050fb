import { spawnSync } from 'node:child_process';
import { describe, expect, it } from 'vitest';
import { compareDebianVersions } from '../../../guest/image/debian-version.js';

const ASCENDING = [
  '1.0~~',
  '1.0~~a',
  '1.0~',
  '1.0',
  '1.0-0.1',
  '1.0-1',
  '1.0-1+b1',
  '1.0-1+deb12u1',
  '1.0-1+deb12u1+b1',
  '1.0-1+deb12u2',
  '1.0-1+deb12u10',
  '1.0a',
  '1.0+dfsg-1',
  '1.0.1-1',
  '1.2-3',
  '1.10-1',
  '6.1.176-1',
  '6.1.192-2',
  '1:0.1',
  '1:0.1-rc1-1',
];

describe('Debian versions', () => {
  it('are ordered as deb-version(7) says', () => {
    ASCENDING.forEach((a, i) =>
      ASCENDING.forEach((b, j) =>
        expect(Math.sign(compareDebianVersions(a, b)), `${a} to ${b}`).toBe(Math.sign(i - j)),
      ),
    );
  });

  it.skipIf(spawnSync('dpkg', ['--version']).error)('are ordered as dpkg orders them', () => {
    for (const [i, a] of ASCENDING.entries())
      for (const b of ASCENDING.slice(i + 1))
        expect(spawnSync('dpkg', ['--compare-versions', a, 'lt', b]).status, `${a} before ${b}`).toBe(0);
  });
});
