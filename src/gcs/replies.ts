/**
 * Bounds on what the guest answers. A reply is at most 4 MiB by its frame; here each part of it is held to what the
 * contract can mean, before anybody computes with it.
 */
import type { DescMessage, Message, MessageShape } from '@bufbuild/protobuf';
import { LcowError } from '../errors/index.js';
import { ContainerInfo_State, Guest } from './guest_pb.js';

const MAX_TEXT = 16_384;
const MAX_LIST = 4096;
const MAX_CONTENT_BYTES = 1024 * 1024;
const MAX_ID = 128;
/** Linux PID_MAX_LIMIT. */
const MAX_PID = 4_194_304;
/** The last instant of a Date, in nanoseconds. */
const MAX_UNIX_NANOS = 8_640_000_000_000_000n * 1_000_000n;

type Check = (reply: Message) => string | undefined;

function check<D extends DescMessage>(_desc: D, find: (reply: MessageShape<D>) => string | undefined): Check {
  return (reply) => find(reply as MessageShape<D>);
}

function badPid(pid: number): string | undefined {
  return pid >= 1 && pid <= MAX_PID ? undefined : `process id ${pid}`;
}

function badExitCode(code: number): string | undefined {
  return code <= 255 ? undefined : `exit code ${code}`;
}

const { method } = Guest;

const CHECKS: Readonly<Record<string, Check>> = {
  [method.createContainer.name]: check(method.createContainer.output, ({ pid }) => badPid(pid)),
  [method.exec.name]: check(method.exec.output, ({ pid }) => badPid(pid)),
  [method.waitProcess.name]: check(
    method.waitProcess.output,
    ({ exitCode, exitedAtUnixNanos: at }) =>
      badExitCode(exitCode) ?? (at >= 0n && at <= MAX_UNIX_NANOS ? undefined : `time of exit ${at} ns`),
  ),
  [method.listContainers.name]: check(method.listContainers.output, ({ containers }) => {
    for (const { containerId, state, pid, exitCode, execIds } of containers) {
      if (!isId(containerId) || !execIds.every(isId)) return 'id';
      if (!(state in ContainerInfo_State)) return `container state ${state}`;
      const bad = badExitCode(exitCode) ?? (pid === 0 ? undefined : badPid(pid));
      if (bad) return bad;
    }
    return undefined;
  }),
  [method.attachProcess.name]: check(method.attachProcess.output, ({ stdinOffset }) =>
    stdinOffset <= BigInt(Number.MAX_SAFE_INTEGER) ? undefined : `offset ${stdinOffset}`,
  ),
  [method.addNetworkNamespace.name]: check(method.addNetworkNamespace.output, ({ path }) =>
    path.startsWith('/') && path.length <= 4096 ? undefined : 'path of a network namespace',
  ),
  [method.readFile.name]: check(method.readFile.output, ({ mode }) => (mode <= 0o177_777 ? undefined : `mode ${mode}`)),
};

function isId(id: string): boolean {
  return id.length > 0 && id.length <= MAX_ID;
}

/**
 * Refuses a reply that no honest guest would send.
 * @throws LcowError GUEST_PROTOCOL naming the method and what is wrong.
 */
export function checkReply(methodName: string, reply: Message): void {
  const bad = outOfBounds(reply) ?? CHECKS[methodName]?.(reply);
  if (bad) throw new LcowError('GUEST_PROTOCOL', `The guest answered ${methodName} with an impossible ${bad}.`);
}

/** Texts, lists and contents of any message, at any depth its type has. */
function outOfBounds(value: unknown): string | undefined {
  if (typeof value === 'string') return value.length <= MAX_TEXT ? undefined : `text of ${value.length} characters`;
  if (value instanceof Uint8Array)
    return value.length <= MAX_CONTENT_BYTES ? undefined : `content of ${value.length} bytes`;
  if (typeof value !== 'object' || value === null) return undefined;
  if (Array.isArray(value) && value.length > MAX_LIST) return `list of ${value.length} entries`;
  for (const part of Object.values(value)) {
    const bad = outOfBounds(part);
    if (bad) return bad;
  }
  return undefined;
}
