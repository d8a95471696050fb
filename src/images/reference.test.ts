import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { isLcowError } from '../errors/index.js';
import { familiarName, familiarReference, formatReference, parseReference } from './reference.js';

const D256 = `sha256:${'0123456789abcdef'.repeat(4)}`;
const D512 = `sha512:${'0123456789abcdef'.repeat(8)}`;

describe('a reference is completed as docker completes it', () => {
  test.each([
    ['busybox', 'docker.io/library/busybox:latest', 'busybox:latest'],
    ['busybox:1.36', 'docker.io/library/busybox:1.36', 'busybox:1.36'],
    ['library/busybox', 'docker.io/library/busybox:latest', 'busybox:latest'],
    ['docker.io/busybox', 'docker.io/library/busybox:latest', 'busybox:latest'],
    ['index.docker.io/library/busybox', 'docker.io/library/busybox:latest', 'busybox:latest'],
    ['grafana/loki', 'docker.io/grafana/loki:latest', 'grafana/loki:latest'],
    ['a/b/c:t', 'docker.io/a/b/c:t', 'a/b/c:t'],
    ['localhost/x', 'localhost/x:latest', 'localhost/x:latest'],
    ['localhost:5000/x', 'localhost:5000/x:latest', 'localhost:5000/x:latest'],
    ['localhost:5000', 'docker.io/library/localhost:5000', 'localhost:5000'],
    ['127.0.0.1:5000/a/b:tag', '127.0.0.1:5000/a/b:tag', '127.0.0.1:5000/a/b:tag'],
    [`127.0.0.1:5000/a/b:tag@${D256}`, `127.0.0.1:5000/a/b:tag@${D256}`, `127.0.0.1:5000/a/b:tag@${D256}`],
    [`busybox@${D256}`, `docker.io/library/busybox@${D256}`, `busybox@${D256}`],
    [`busybox@${D512}`, `docker.io/library/busybox@${D512}`, `busybox@${D512}`],
    ['quay.io/a__b/c--d/e.f:V1.0_x-Y', 'quay.io/a__b/c--d/e.f:V1.0_x-Y', 'quay.io/a__b/c--d/e.f:V1.0_x-Y'],
    ['[::1]:5000/x', '[::1]:5000/x:latest', '[::1]:5000/x:latest'],
    ['Registry/x', 'Registry/x:latest', 'Registry/x:latest'],
    ['library/localhost/x', 'docker.io/library/localhost/x:latest', 'library/localhost/x:latest'],
    [`x:${'t'.repeat(128)}`, `docker.io/library/x:${'t'.repeat(128)}`, `x:${'t'.repeat(128)}`],
  ])('%s', (text, full, familiar) => {
    const reference = parseReference(text);
    expect(formatReference(reference)).toBe(full);
    expect(familiarReference(reference)).toBe(familiar);
  });
});

describe('what is no reference is refused in docker’s words', () => {
  test.each([
    ['', 'invalid reference format'],
    ['Busybox', 'invalid reference format: repository name (library/Busybox) must be lowercase'],
    ['docker.io/a/B', 'invalid reference format: repository name (a/B) must be lowercase'],
    ['a b', 'invalid reference format'],
    [':tag', 'invalid reference format'],
    ['x:', 'invalid reference format'],
    ['x@', 'invalid reference format'],
    ['x:-t', 'invalid reference format'],
    ['/x', 'invalid reference format'],
    ['x/', 'invalid reference format'],
    ['a//b', 'invalid reference format'],
    ['-a', 'invalid reference format'],
    ['a_-b', 'invalid reference format'],
    ['a..b', 'invalid reference format'],
    ['a___b', 'invalid reference format'],
    ['../../etc', 'invalid reference format'],
    ['host:port/x', 'invalid reference format'],
    ['-host.io/x', 'invalid reference format'],
    ['x:a:b', 'invalid reference format'],
    [`x:${'t'.repeat(129)}`, 'invalid reference format'],
    ['a'.repeat(248), 'invalid reference format: repository name must not be more than 255 characters'],
    [
      'f'.repeat(64),
      `invalid reference format: invalid repository name (${'f'.repeat(64)}), cannot specify 64-byte hexadecimal strings`,
    ],
    ['x@sha256:abc', 'invalid reference format: invalid checksum digest length'],
    [`x@md5:${'a'.repeat(32)}`, 'invalid reference format: unsupported digest algorithm'],
    ['x\u0000', 'invalid reference format'],
    ['a'.repeat(5000), 'invalid reference format'],
  ])('%j', (text, message) => {
    let thrown: unknown;
    try {
      parseReference(text);
    } catch (error) {
      thrown = error;
    }
    expect(isLcowError(thrown, 'BAD_REFERENCE')).toBe(true);
    expect((thrown as Error).message).toBe(message);
  });
});

test('a path of exactly 255 characters is accepted', () => {
  expect(parseReference(`x.io/${'a'.repeat(255)}`).path).toHaveLength(255);
  expect(parseReference('a'.repeat(247)).path).toHaveLength(255);
});

test('the short name is the whole one without registry and prefix of docker hub', () => {
  expect(familiarName(parseReference('busybox'))).toBe('busybox');
  expect(familiarName(parseReference('quay.io/busybox'))).toBe('quay.io/busybox');
});

test('whatever is accepted reads back as itself, in its full and in its familiar form', () => {
  const segment = fc.stringMatching(/^[a-zA-Z0-9._:@-]{1,12}$/);
  fc.assert(
    fc.property(fc.array(segment, { minLength: 1, maxLength: 4 }), (segments) => {
      let reference;
      try {
        reference = parseReference(segments.join('/'));
      } catch (error) {
        expect(isLcowError(error, 'BAD_REFERENCE')).toBe(true);
        return;
      }
      expect(parseReference(formatReference(reference))).toEqual(reference);
      expect(parseReference(familiarReference(reference))).toEqual(reference);
    }),
    { numRuns: 2000, seed: 7 },
  );
});
