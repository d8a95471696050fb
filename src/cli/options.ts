import { InvalidArgumentError } from 'commander';
import { errorMessage, LcowError } from '../errors/index.js';

/** Makes a commander parser of a function that throws on bad values. */
export function parsed<T>(parse: (text: string) => T): (text: string) => T {
  return (text) => {
    try {
      return parse(text);
    } catch (error) {
      throw new InvalidArgumentError(errorMessage(error));
    }
  };
}

/** Collects a repeatable option. */
export function repeated(value: string, before: string[] | undefined): string[] {
  return [...(before ?? []), value];
}

/** A whole number, 0 or more. */
export function count(text: string): number {
  if (!/^\d{1,15}$/.test(text)) throw new InvalidArgumentError('It must be a whole number.');
  return Number(text);
}

/** Seconds of docker's `stop --time`: a negative number stands for no limit. */
export function grace(text: string): number {
  return /^-\d+$/.test(text) ? Infinity : count(text);
}

/** How many lines docker's `logs --tail` shows: undefined, for "all" and negative numbers, is no limit. */
export function tail(text: string): number | undefined {
  return text === 'all' || /^-\d+$/.test(text) ? undefined : count(text);
}

const SPAN_MS: Readonly<Record<string, number>> = { ms: 1, s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 };
const SPAN = /(\d+(?:\.\d+)?)(ms|[smhd])/g;
const TIME = /^\d{4}-\d\d-\d\d(?:T\d\d(?::\d\d(?::\d\d(?:\.\d{1,9})?)?)?(?:Z|[+-]\d\d:\d\d)?)?$/;

/**
 * A time as docker's `logs --since` takes it: RFC 3339, in parts; seconds since 1970; or a span before now, as "1h30m".
 * @throws LcowError INVALID_ARGUMENT.
 */
export function time(text: string, now = Date.now()): Date {
  const spans = [...text.matchAll(SPAN)];
  let ms = NaN;
  if (spans.length > 0 && text.replace(SPAN, '') === '')
    ms = now - spans.reduce((sum, [, amount, unit]) => sum + Number(amount) * SPAN_MS[unit!]!, 0);
  else if (/^\d{1,12}(?:\.\d{1,9})?$/.test(text)) ms = Number(text) * 1000;
  else if (TIME.test(text)) ms = Date.parse(text.replace(/(T\d\d)(?=$|Z|[+-])/, '$1:00'));
  const date = new Date(ms);
  if (Number.isNaN(date.getTime())) throw new LcowError('INVALID_ARGUMENT', `Invalid time: '${text}'.`);
  return date;
}
