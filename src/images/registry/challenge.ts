/** One challenge of a WWW-Authenticate header (RFC 9110, 11.6.1). */
export interface Challenge {
  /** Lower case. */
  readonly scheme: string;
  /** Names in lower case. */
  readonly parameters: ReadonlyMap<string, string>;
}

/** Longest header we read, in characters. */
const MAX_HEADER_LENGTH = 16 * 1024;

// RFC 9110: token; blanks; and auth-param with a token or a quoted string.
const SCHEME = /[\s,]*([!#$%&'*+.^_`|~0-9A-Za-z-]+)(?:[ \t]+|(?=,)|$)/y;
const PARAMETER =
  /[\s,]*([!#$%&'*+.^_`|~0-9A-Za-z-]+)[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*)"|([!#$%&'*+.^_`|~0-9A-Za-z:/?=-]+))/y;

/** Parses the challenges of one or several WWW-Authenticate headers. What cannot be read ends the list. */
export function parseChallenges(headers: string | readonly string[] | undefined): Challenge[] {
  const challenges: Challenge[] = [];
  for (const header of typeof headers === 'string' ? [headers] : (headers ?? []))
    if (header.length <= MAX_HEADER_LENGTH) challenges.push(...parseHeader(header));
  return challenges;
}

function parseHeader(header: string): Challenge[] {
  const challenges: Challenge[] = [];
  let position = 0;
  while (position < header.length) {
    SCHEME.lastIndex = position;
    const scheme = SCHEME.exec(header);
    if (!scheme) break;
    position = SCHEME.lastIndex;
    const parameters = new Map<string, string>();
    for (;;) {
      PARAMETER.lastIndex = position;
      const parameter = PARAMETER.exec(header);
      if (!parameter) break;
      position = PARAMETER.lastIndex;
      const value = parameter[2]?.replace(/\\(.)/g, '$1') ?? parameter[3] ?? '';
      parameters.set(parameter[1]!.toLowerCase(), value);
    }
    challenges.push({ scheme: scheme[1]!.toLowerCase(), parameters });
  }
  return challenges;
}
