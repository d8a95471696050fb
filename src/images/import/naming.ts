import { LcowError } from '../../errors/index.js';
import { REF_NAME } from '../content/layout-index.js';
import type { Descriptor } from '../manifest.js';
import { MAX_TAG_LENGTH, parseReference, type ImageReference } from '../reference.js';

/** The full name that containerd and docker put beside the tag. */
const CONTAINERD_NAME = 'io.containerd.image.name';

/**
 * The name a user gives to what is imported: with a tag, and never with a digest.
 * @throws LcowError BAD_REFERENCE, INVALID_ARGUMENT.
 */
export function givenName(text: string): ImageReference {
  const reference = parseReference(text);
  if (reference.digest !== undefined)
    throw new LcowError('INVALID_ARGUMENT', `The name "${text}" of an imported image cannot have a digest.`);
  return reference;
}

/** Whether a name says its tag itself. */
function hasTag(text: string): boolean {
  return text.lastIndexOf(':') > text.lastIndexOf('/');
}

/**
 * The name of an entry of a layout's index. The specification leaves open what ref.name holds: docker and buildx put
 * the tag there, skopeo and podman what the user said. A word that can only be a tag names nothing without a repository.
 * @param wanted The name the user gave: whole, or a repository that the layout's tags go to.
 */
export function entryName(entry: Descriptor, wanted: string | undefined): ImageReference | undefined {
  const refName = entry.annotations?.[REF_NAME];
  if (wanted !== undefined) {
    const isTag = refName !== undefined && refName.length <= MAX_TAG_LENGTH && isOnlyTag(refName);
    return givenName(!hasTag(wanted) && isTag ? `${wanted}:${refName}` : wanted);
  }
  for (const text of [entry.annotations?.[CONTAINERD_NAME], refName]) {
    if (text === undefined || isOnlyTag(text)) continue;
    const reference = attempt(text);
    if (reference) return reference;
  }
  return undefined;
}

/** `latest`, `3.19` and `v2` are versions; `debian` is a name. */
function isOnlyTag(text: string): boolean {
  return text === 'latest' || /^v?\d[\w.-]*$/.test(text);
}

function attempt(text: string): ImageReference | undefined {
  try {
    const reference = parseReference(text);
    return reference.digest === undefined ? reference : undefined;
  } catch {
    // Other tools name entries as they like.
    return undefined;
  }
}
