import { LcowError, errorMessage, isLcowError } from '../../errors/index.js';

/** Errors of the transport after which the same request may succeed. */
const TRANSIENT = new Set([
  'ECONNRESET',
  'EPIPE',
  'ETIMEDOUT',
  'EAI_AGAIN',
  'UND_ERR_SOCKET',
  'UND_ERR_CONNECT_TIMEOUT',
  'UND_ERR_HEADERS_TIMEOUT',
  'UND_ERR_BODY_TIMEOUT',
  'UND_ERR_ABORTED',
]);

function codeOf(error: unknown): string | undefined {
  const code = (error as { code?: unknown } | null)?.code;
  return typeof code === 'string' ? code : undefined;
}

/** A request that got no answer, or whose answer broke off. */
export function unreachable(url: URL, cause: unknown): LcowError {
  const reason = describe(cause);
  return new LcowError('REGISTRY_UNREACHABLE', `The registry at ${url.host} could not be reached: ${reason}.`, {
    cause,
    details: { url: safeUrl(url), transient: TRANSIENT.has(codeOf(cause) ?? '') },
  });
}

function describe(cause: unknown): string {
  // Several addresses were tried; the first tells most.
  const first: unknown = cause instanceof AggregateError ? cause.errors[0] : cause;
  return printable(errorMessage(first)).replace(/\.$/, '') || codeOf(cause) || 'the connection failed';
}

/** Whether trying once more makes sense. */
export function isTransient(error: unknown): boolean {
  return isLcowError(error, 'REGISTRY_UNREACHABLE') && error.details['transient'] === true;
}

/** A URL without its query, which may hold a signature. */
export function safeUrl(url: URL): string {
  return `${url.origin}${url.pathname}`;
}

/** Text from outside for a message: one line, no control characters, not too long. */
export function printable(text: string): string {
  const line = text.replace(/[\u0000-\u001f\u007f-\u009f\s]+/g, ' ').trim();
  return line.length > 300 ? `${line.slice(0, 300)}…` : line;
}

/** The registry's own words: the first of `{"errors":[{"code","message","detail"}]}` (distribution-spec "Error Codes"). */
export function registryMessage(body: Uint8Array): { code?: string; message: string } {
  const text = Buffer.from(body).toString('utf8');
  try {
    const document = JSON.parse(text) as {
      errors?: { code?: unknown; message?: unknown }[];
      details?: unknown;
      error?: unknown;
    };
    const first = document.errors?.[0];
    if (first) {
      const code = typeof first.code === 'string' ? printable(first.code) : undefined;
      const message = typeof first.message === 'string' ? printable(first.message) : '';
      return { ...(code && { code }), message: message || code?.toLowerCase() || 'no reason given' };
    }
    // Token servers answer {"details": "..."} (docker) or OAuth2's {"error": "..."}.
    const other = document.details ?? document.error;
    if (typeof other === 'string') return { message: printable(other) };
  } catch {
    // Not JSON: a proxy's page, say.
  }
  return { message: /<html|<!doctype/i.test(text) ? '' : printable(text) };
}

/** What was asked for, for the sentence of an error. */
export interface Subject {
  /** `docker.io/library/busybox`. */
  readonly repository: string;
  /** `manifest for busybox:latest`, `blob sha256:...`. */
  readonly object: string;
}

/** The error for a status that is no success: 401/403 REGISTRY_DENIED, 404 IMAGE_NOT_FOUND, else REGISTRY_FAILED. */
export function statusError(status: number, body: Uint8Array, subject: Subject, hint?: string): LcowError {
  const { code, message } = registryMessage(body);
  const said = message ? `: ${message}` : '';
  const details = { status, ...(code && { registryCode: code }) };
  if (status === 401 || status === 403)
    return new LcowError(
      'REGISTRY_DENIED',
      `pull access denied for ${subject.repository}, repository does not exist or may require credentials${said}`,
      { details, hint: hint ?? `Log in with docker login ${subject.repository.split('/')[0]!}, or check the name.` },
    );
  if (status === 404)
    return new LcowError('IMAGE_NOT_FOUND', `${subject.object} not found${said || ': manifest unknown'}`, { details });
  return new LcowError(
    'REGISTRY_FAILED',
    `The registry answered the request for the ${subject.object} with status ${status}${said}.`,
    { details, ...(hint && { hint }) },
  );
}
