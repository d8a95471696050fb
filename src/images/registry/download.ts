import { LcowError } from '../../errors/index.js';
import { throwIfAborted } from '../../lifetime/index.js';
import type { Ingest } from '../content/ingest.js';
import type { Digest } from '../digest.js';
import type { RegistryClient } from './client.js';
import { isTransient, unreachable } from './failures.js';
import { pauseForRetry } from './retry.js';
import { discard, header, type HttpResponse } from './transport.js';

/** An attempt that brought this many bytes is a success as far as patience goes; the count of attempts starts again. */
const PROGRESS_BYTES = 64 * 1024;

/**
 * Downloads a blob into the store, from where an earlier attempt stopped, through as many broken connections as bring
 * the work forward.
 * @throws LcowError DIGEST_MISMATCH when the registry's blob is not of this size; REGISTRY_UNREACHABLE when connections
 * break without progress; and what {@link RegistryClient.blob} throws.
 */
export async function downloadBlob(
  client: RegistryClient,
  blob: { readonly digest: Digest; readonly size: number },
  ingest: Ingest,
  onBytes: (offset: number) => void,
  signal?: AbortSignal,
): Promise<void> {
  let attempt = 1;
  while (ingest.offset < blob.size) {
    const before = ingest.offset;
    try {
      await downloadOnce(client, blob, ingest, onBytes, signal);
    } catch (error) {
      if (ingest.offset - before >= PROGRESS_BYTES) attempt = 1;
      if (!isTransient(error) || !(await pauseForRetry(client.retries, attempt, undefined, signal))) throw error;
      attempt++;
    }
  }
}

async function downloadOnce(
  client: RegistryClient,
  blob: { readonly digest: Digest; readonly size: number },
  ingest: Ingest,
  onBytes: (offset: number) => void,
  signal?: AbortSignal,
): Promise<void> {
  const response = await client.blob(blob.digest, ingest.offset, signal);
  try {
    if (startOf(response, blob, ingest.offset) !== ingest.offset) await ingest.restart();
    onBytes(ingest.offset);
    for await (const chunk of bodyOf(response, signal)) {
      await ingest.write(chunk);
      onBytes(ingest.offset);
    }
  } catch (error) {
    discard(response);
    throw error;
  }
  // The answer was whole by its own account, and still too short.
  if (ingest.offset < blob.size)
    throw new LcowError(
      'DIGEST_MISMATCH',
      `The registry's blob ${blob.digest} ends after ${ingest.offset} of ${blob.size} bytes.`,
    );
}

/** Where in the blob an answer begins: at the wanted offset, or at 0 when ranges are ignored. Its size has to be the blob's. */
function startOf(
  response: HttpResponse,
  blob: { readonly digest: Digest; readonly size: number },
  wanted: number,
): number {
  if (response.status === 200) {
    checkSize(header(response, 'content-length'), blob);
    return 0;
  }
  const range = /^bytes (\d+)-\d+\/(\d+|\*)$/.exec(header(response, 'content-range') ?? '');
  if (!range || Number(range[1]) !== wanted)
    throw new LcowError(
      'REGISTRY_FAILED',
      `The registry answered the request for blob ${blob.digest} with another part than was asked for.`,
    );
  if (range[2] !== '*') checkSize(range[2], blob);
  return wanted;
}

function checkSize(stated: string | undefined, blob: { readonly digest: Digest; readonly size: number }): void {
  if (stated !== undefined && Number(stated) !== blob.size)
    throw new LcowError(
      'DIGEST_MISMATCH',
      `The registry's blob ${blob.digest} has ${stated} bytes instead of ${blob.size}.`,
    );
}

async function* bodyOf(response: HttpResponse, signal?: AbortSignal): AsyncGenerator<Buffer> {
  const chunks = (response.body as AsyncIterable<Buffer>)[Symbol.asyncIterator]();
  try {
    for (;;) {
      const next = await chunks.next().catch((cause: unknown) => {
        throwIfAborted(signal);
        throw unreachable(response.url, cause);
      });
      if (next.done) return;
      yield next.value;
    }
  } finally {
    await chunks.return?.();
  }
}
