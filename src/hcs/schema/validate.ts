import type { z } from 'zod';
import { LcowError } from '../../errors/index.js';
import { ComputeSystemSchema, NETWORK_ADAPTERS, type ComputeSystemDocument } from './document.js';
import { isKnownField } from './known-fields.js';

type Issue = z.core.$ZodIssue;

const dotted = (path: readonly PropertyKey[]): string => path.map(String).join('.') || 'the document';

/** The first thing wrong, in words: the field's path and what it should be. */
function refusal(subject: string, issue: Issue, prefix: readonly string[]): LcowError {
  const path = [...prefix, ...issue.path.map(String)];
  if (issue.code === 'unrecognized_keys') {
    const name = issue.keys[0] ?? '';
    const field = dotted([...path, name]);
    return isKnownField(path, name)
      ? new LcowError('NOT_SUPPORTED', `${subject}: the field ${field} cannot be honoured by the QEMU engine.`, {
          details: { field },
        })
      : new LcowError('INVALID_ARGUMENT', `${subject}: the field ${field} is unknown.`, { details: { field } });
  }
  const field = dotted(path);
  // A record's bad key is told in a nested issue.
  const reason = issue.code === 'invalid_key' ? (issue.issues[0]?.message ?? issue.message) : issue.message;
  if (isKnownField(path.slice(0, -1), path.at(-1) ?? ''))
    return new LcowError('NOT_SUPPORTED', `${subject}: the field ${field} cannot be honoured by the QEMU engine.`, {
      details: { field },
    });
  const notSupported = issue.code === 'custom' && issue.params?.['notSupported'] === true;
  return new LcowError(notSupported ? 'NOT_SUPPORTED' : 'INVALID_ARGUMENT', `${subject}: ${field}: ${reason}.`, {
    details: { field },
  });
}

/**
 * Checks a value against a schema of this room.
 * @param prefix Where in the compute system document the value belongs, for messages and the list of known fields.
 * @throws LcowError INVALID_ARGUMENT naming the unknown or malformed field; NOT_SUPPORTED naming a field or value that
 * HCS has and this engine cannot honour.
 */
export function validate<T>(schema: z.ZodType<T>, value: unknown, subject: string, prefix: readonly string[] = []): T {
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  const issues = result.error.issues;
  // A malformed field is told before one that is merely unsupported: it is the likelier mistake.
  const refusals = issues.map((issue) => refusal(subject, issue, prefix));
  throw refusals.find((error) => error.code === 'INVALID_ARGUMENT') ?? refusals[0]!;
}

/**
 * Checks a whole compute system document, the rules between fields included.
 * @throws LcowError INVALID_ARGUMENT, NOT_SUPPORTED: see {@link validate}.
 */
export function validateDocument(value: unknown): ComputeSystemDocument {
  const document = validate<ComputeSystemDocument>(ComputeSystemSchema, value, 'Compute system document');
  const { Memory } = document.VirtualMachine.ComputeTopology;
  if (Memory.AllowOvercommit === false && Memory.EnableDeferredCommit === true)
    throw new LcowError(
      'INVALID_ARGUMENT',
      'Compute system document: VirtualMachine.ComputeTopology.Memory.EnableDeferredCommit needs AllowOvercommit.',
      { details: { field: 'VirtualMachine.ComputeTopology.Memory.EnableDeferredCommit' } },
    );
  const adapters = Object.keys(document.VirtualMachine.Devices?.NetworkAdapters ?? {}).length;
  if (adapters > NETWORK_ADAPTERS)
    throw new LcowError(
      'INVALID_ARGUMENT',
      `Compute system document: VirtualMachine.Devices.NetworkAdapters has ${adapters} entries, at most ${NETWORK_ADAPTERS} are possible.`,
      { details: { field: 'VirtualMachine.Devices.NetworkAdapters' } },
    );
  return document;
}
