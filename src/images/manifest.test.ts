import { describe, expect, test } from 'vitest';
import { isLcowError, type ErrorCode } from '../errors/index.js';
import { chainIds, parseImageConfig } from './image-config.js';
import { MAX_MANIFEST_BYTES, imageEntries, parseManifest, type ImageIndex } from './manifest.js';
import { DOCKER_MANIFEST, DOCKER_MANIFEST_LIST, OCI_INDEX, OCI_MANIFEST } from './media-types.js';

const A = `sha256:${'a'.repeat(64)}`;
const B = `sha256:${'b'.repeat(64)}`;
const OCI_CONFIG_TYPE = 'application/vnd.oci.image.config.v1+json';
const config = { mediaType: OCI_CONFIG_TYPE, digest: A, size: 10 };
const layer = { mediaType: 'application/vnd.oci.image.layer.v1.tar+gzip', digest: B, size: 20 };
const manifest = { schemaVersion: 2, mediaType: OCI_MANIFEST, config, layers: [layer] };
const index = { schemaVersion: 2, mediaType: OCI_INDEX, manifests: [{ mediaType: OCI_MANIFEST, digest: A, size: 5 }] };

function parse(document: unknown, servedAs?: string): ReturnType<typeof parseManifest> {
  return parseManifest(
    Buffer.from(typeof document === 'string' ? document : JSON.stringify(document)),
    'The manifest of x',
    servedAs,
  );
}

function refusal(action: () => unknown): { code: ErrorCode; message: string } {
  try {
    action();
  } catch (error) {
    if (isLcowError(error)) return { code: error.code, message: error.message };
    throw error;
  }
  throw new Error('it was accepted');
}

describe('a manifest', () => {
  test('is told from an index by its fields', () => {
    expect(parse(manifest)).toMatchObject({ kind: 'manifest', mediaType: OCI_MANIFEST, layers: [layer] });
    expect(parse(index)).toMatchObject({ kind: 'index', mediaType: OCI_INDEX });
  });

  test('without a media type has the one it was served with, or the one its configuration suggests', () => {
    const silent = { schemaVersion: 2, config, layers: [layer] };
    expect(parse(silent)).toMatchObject({ mediaType: OCI_MANIFEST });
    expect(parse(silent, DOCKER_MANIFEST)).toMatchObject({ mediaType: DOCKER_MANIFEST });
    const docker = { ...silent, config: { ...config, mediaType: 'application/vnd.docker.container.image.v1+json' } };
    expect(parse(docker, 'application/json')).toMatchObject({ mediaType: DOCKER_MANIFEST });
  });

  test('of docker’s list type is an index', () => {
    expect(parse({ ...index, mediaType: DOCKER_MANIFEST_LIST })).toMatchObject({ kind: 'index' });
  });

  test.each<[string, unknown, string | undefined, ErrorCode, RegExp]>([
    ['that is no JSON', '{', undefined, 'BAD_MANIFEST', /not valid JSON/],
    ['that is an array', '[]', undefined, 'BAD_MANIFEST', /not a JSON object/],
    ['of schema 1', { schemaVersion: 1, name: 'x' }, undefined, 'NOT_SUPPORTED', /schema 1/],
    [
      'served as schema 1',
      manifest,
      'application/vnd.docker.distribution.manifest.v1+prettyjws',
      'NOT_SUPPORTED',
      /schema 1/,
    ],
    ['that is an index too', { ...manifest, manifests: [] }, undefined, 'BAD_MANIFEST', /ambiguous/],
    ['that says it is an index', { ...manifest, mediaType: OCI_INDEX }, undefined, 'BAD_MANIFEST', /does not fit/],
    ['served as an index', manifest, OCI_INDEX, 'BAD_MANIFEST', /does not fit/],
    [
      'with a bad digest',
      { ...manifest, config: { ...config, digest: 'sha256:x' } },
      undefined,
      'BAD_MANIFEST',
      /config\.digest: is not a sha256/,
    ],
    [
      'with an unknown algorithm',
      { ...manifest, layers: [{ ...layer, digest: `md5:${'a'.repeat(32)}` }] },
      undefined,
      'BAD_MANIFEST',
      /layers\.0\.digest/,
    ],
    [
      'with a negative size',
      { ...manifest, layers: [{ ...layer, size: -1 }] },
      undefined,
      'BAD_MANIFEST',
      /layers\.0\.size/,
    ],
    [
      'with a size beyond integers',
      { ...manifest, layers: [{ ...layer, size: 1e300 }] },
      undefined,
      'BAD_MANIFEST',
      /layers\.0\.size/,
    ],
    ['with too many layers', { ...manifest, layers: Array(1025).fill(layer) }, undefined, 'BAD_MANIFEST', /layers/],
    [
      'of a chart',
      { ...manifest, config: { ...config, mediaType: 'application/vnd.cncf.helm.config.v1+json' } },
      undefined,
      'NOT_SUPPORTED',
      /no container image.*helm/,
    ],
    [
      'with an encrypted layer',
      { ...manifest, layers: [{ ...layer, mediaType: `${layer.mediaType}+encrypted` }] },
      undefined,
      'NOT_SUPPORTED',
      /encrypted/,
    ],
  ])('%s is refused', (_, document, servedAs, code, message) => {
    const refused = refusal(() => parse(document, servedAs));
    expect(refused.code).toBe(code);
    expect(refused.message).toMatch(message);
  });

  test('larger than 4 MiB is refused unread', () => {
    const big = Buffer.alloc(MAX_MANIFEST_BYTES + 1, 0x20);
    expect(refusal(() => parseManifest(big, 'The manifest of x')).message).toMatch(/larger than/);
  });
});

test('attestations, unknown platforms and other artifacts are no images of an index', () => {
  const entry = { mediaType: OCI_MANIFEST, digest: A, size: 1 };
  const parsed = parse({
    ...index,
    manifests: [
      { ...entry, digest: B, platform: { os: 'linux', architecture: 'amd64' } },
      { ...entry, platform: { os: 'unknown', architecture: 'unknown' } },
      { ...entry, annotations: { 'vnd.docker.reference.type': 'attestation-manifest' } },
      { ...entry, mediaType: 'application/vnd.example+json' },
    ],
  }) as ImageIndex;
  expect(imageEntries(parsed).map((image) => image.digest)).toEqual([B]);
});

describe('an image configuration', () => {
  const good = { architecture: 'amd64', os: 'linux', rootfs: { type: 'layers', diff_ids: [A] } };
  const read = (document: unknown): ReturnType<typeof parseImageConfig> =>
    parseImageConfig(Buffer.from(JSON.stringify(document)), 'The configuration of x');

  test('may leave out or null everything optional, and keeps what it does not know', () => {
    const parsed = read({ ...good, config: { Cmd: null, Env: ['A=b'], ArgsEscaped: true }, 'moby.buildkit.x': 1 });
    expect(parsed.config).toEqual({ Cmd: null, Env: ['A=b'], ArgsEscaped: true });
    expect(read({ ...good, config: null, rootfs: { type: 'layers', diff_ids: null } }).rootfs.diff_ids).toEqual([]);
  });

  test.each([
    ['without rootfs', { architecture: 'amd64', os: 'linux' }],
    ['with a diff id that is none', { ...good, rootfs: { type: 'layers', diff_ids: ['x'] } }],
    ['with a command that is a text', { ...good, config: { Cmd: 'sh' } }],
  ])('%s is refused', (_, document) => {
    expect(refusal(() => read(document)).code).toBe('BAD_MANIFEST');
  });
});

test('a chain id covers a layer and all below it (image-spec, Layer ChainID)', () => {
  // printf 'sha256:aaa… sha256:bbb…' | sha256sum
  const [first, second] = chainIds([A, B] as ReturnType<typeof chainIds>);
  expect(first).toBe(A);
  expect(second).toBe('sha256:ccd722928bd92476ba1745586fed6e45a102504185ad88cd89e01ff116fd146c');
});
