import { z } from 'zod';

const identity = z.object({ pid: z.number().int(), startTime: z.number() });

/** What a container was asked to be; written once at creation. */
export const containerConfigSchema = z.object({
  /** 64 hexadecimal digits. */
  id: z.string().regex(/^[0-9a-f]{64}$/),
  name: z.string(),
  /** As the user wrote it. */
  image: z.string(),
  /** sha256:... of the image configuration. */
  imageId: z.string(),
  createdAt: z.string(),
  /** Executable and arguments: entrypoint and command put together. */
  args: z.array(z.string()),
  /** K=V, the image's first. */
  env: z.array(z.string()),
  workingDir: z.string(),
  /** As docker's --user. */
  user: z.string(),
  hostname: z.string(),
  tty: z.boolean(),
  openStdin: z.boolean(),
  stopSignal: z.string(),
  /** Limit of the container, bytes; 0 for none. */
  memoryBytes: z.number().int().nonnegative(),
  /** In units of 1e-9 CPUs; 0 for no limit. */
  nanoCpus: z.number().int().nonnegative(),
  autoRemove: z.boolean(),
  detached: z.boolean(),
  /** graphdriver ids of the image's layers, top-most first. */
  layerIds: z.array(z.string()),
});

export type ContainerConfig = z.infer<typeof containerConfigSchema>;

/** Where a container is in its life; rewritten whole at every change. */
export const containerStateSchema = z.object({
  status: z.enum(['created', 'starting', 'running', 'exited', 'removing']),
  /** The process that owns the utility VM; of a container being removed, the one that removes it. */
  supervisor: identity.optional(),
  pid: z.number().int().optional(),
  startedAt: z.string().optional(),
  finishedAt: z.string().optional(),
  exitCode: z.number().int().optional(),
  oomKilled: z.boolean().optional(),
  /** Why it could not start or ended without an exit code. */
  error: z.string().optional(),
});

export type ContainerState = z.infer<typeof containerStateSchema>;

/** Whether a utility VM belongs to the container, or is about to. */
export function isActive({ status }: ContainerState): boolean {
  return status === 'starting' || status === 'running';
}

/** A container as the store knows it. */
export interface ContainerRecord {
  readonly config: ContainerConfig;
  readonly state: ContainerState;
}
