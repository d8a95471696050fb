import { z } from 'zod';
import { LcowError } from '../errors/index.js';
import { digestHex, digestOf, isDigest, type Digest } from './digest.js';
import { parseJson } from './json.js';
import { checked } from './manifest.js';
import type { Platform } from './platform.js';

/** Largest image configuration we read, in bytes. */
export const MAX_CONFIG_BYTES = 8 * 1024 * 1024;

const strings = z.array(z.string()).nullish();
const set = z.record(z.string(), z.unknown()).nullish();

const healthcheck = z.looseObject({
  Test: strings,
  /** Nanoseconds, as in docker's API. */
  Interval: z.number().nullish(),
  Timeout: z.number().nullish(),
  StartPeriod: z.number().nullish(),
  StartInterval: z.number().nullish(),
  Retries: z.number().nullish(),
});

const runConfig = z.looseObject({
  User: z.string().nullish(),
  ExposedPorts: set,
  Env: strings,
  Entrypoint: strings,
  Cmd: strings,
  Volumes: set,
  WorkingDir: z.string().nullish(),
  Labels: z.record(z.string(), z.string()).nullish(),
  StopSignal: z.string().nullish(),
  Healthcheck: healthcheck.nullish(),
  OnBuild: strings,
  Shell: strings,
});

const configSchema = z.looseObject({
  created: z.string().nullish(),
  author: z.string().nullish(),
  comment: z.string().nullish(),
  docker_version: z.string().nullish(),
  architecture: z.string(),
  os: z.string(),
  variant: z.string().nullish(),
  config: runConfig.nullish(),
  rootfs: z.looseObject({
    type: z.literal('layers'),
    // An image FROM scratch without files says null.
    diff_ids: z
      .array(z.custom<Digest>(isDigest, 'is not a sha256 or sha512 digest'))
      .nullish()
      .transform((ids) => ids ?? []),
  }),
  history: z.array(z.looseObject({})).nullish(),
});

/** An image configuration (image-spec config.md): what to run by default, and the diff ids of its layers. */
export type OciImageConfig = z.infer<typeof configSchema>;
/** The part of a configuration that a container inherits. */
export type OciRunConfig = z.infer<typeof runConfig>;

/** @throws LcowError BAD_MANIFEST when the configuration is not well formed or larger than {@link MAX_CONFIG_BYTES}. */
export function parseImageConfig(bytes: Uint8Array, what: string): OciImageConfig {
  if (bytes.byteLength > MAX_CONFIG_BYTES)
    throw new LcowError('BAD_MANIFEST', `${what} is larger than ${MAX_CONFIG_BYTES} bytes.`);
  return checked(configSchema, parseJson(bytes, what), what);
}

/** What the image of a configuration runs on. */
export function configPlatform(config: OciImageConfig): Platform {
  return { os: config.os, architecture: config.architecture, variant: config.variant ?? undefined };
}

/**
 * The chain ids of layers, base first (image-spec config.md "Layer ChainID"): a layer's identity together with all
 * below it, which is what a graphdriver layer is named by.
 */
export function chainIds(diffIds: readonly Digest[]): Digest[] {
  const chain: Digest[] = [];
  for (const diffId of diffIds) {
    const parent = chain.at(-1);
    chain.push(parent === undefined ? diffId : digestOf(`${parent} ${diffId}`));
  }
  return chain;
}

/** The graphdriver id of a chain id. */
export function layerId(chainId: Digest): string {
  return digestHex(chainId);
}
