import type { Image } from './image.js';
import { familiarReference, parseReference } from './reference.js';

/** What `docker image inspect` shows, with docker's names. */
export interface ImageInspect {
  readonly Id: string;
  readonly RepoTags: readonly string[];
  readonly RepoDigests: readonly string[];
  readonly Parent: string;
  readonly Comment: string;
  readonly Created: string;
  readonly DockerVersion: string;
  readonly Author: string;
  readonly Config: Readonly<Record<string, unknown>>;
  readonly Architecture: string;
  readonly Variant?: string;
  readonly Os: string;
  readonly Size: number;
  readonly GraphDriver: { readonly Name: string; readonly Data: Readonly<Record<string, string>> | null };
  readonly RootFS: { readonly Type: string; readonly Layers: readonly string[] };
  readonly Metadata: { readonly LastTagTime: string };
  /** The manifest, as docker's containerd image store shows it. */
  readonly Descriptor: { readonly digest: string };
}

/** What docker shows for a time that is not known: Go's zero time. */
const ZERO_TIME = '0001-01-01T00:00:00Z';

/** Makes docker's view of an image. `graphData` is the graphdriver's metadata of its top layer. */
export function inspectImage(image: Image, graphData: Readonly<Record<string, string>> | undefined): ImageInspect {
  const { config } = image;
  const run = config.config ?? {};
  return {
    Id: image.id,
    RepoTags: image.references.map(familiar),
    RepoDigests: image.digestReferences.map(familiar),
    Parent: '',
    Comment: config.comment ?? '',
    Created: image.created ?? ZERO_TIME,
    DockerVersion: config.docker_version ?? '',
    Author: config.author ?? '',
    Config: {
      ...run,
      User: run.User ?? '',
      Env: run.Env ?? null,
      Cmd: run.Cmd ?? null,
      Entrypoint: run.Entrypoint ?? null,
      Volumes: run.Volumes ?? null,
      WorkingDir: run.WorkingDir ?? '',
      OnBuild: run.OnBuild ?? null,
      Labels: run.Labels ?? null,
    },
    Architecture: config.architecture,
    ...(config.variant && { Variant: config.variant }),
    Os: config.os,
    Size: image.sizeBytes,
    GraphDriver: { Name: 'lcow', Data: graphData ?? null },
    RootFS: { Type: 'layers', Layers: image.layers.map((layer) => layer.diffId) },
    Metadata: { LastTagTime: ZERO_TIME },
    Descriptor: { digest: image.manifestDigest },
  };
}

function familiar(reference: string): string {
  return familiarReference(parseReference(reference));
}
