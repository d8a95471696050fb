import { afterEach, describe, expect, it } from 'vitest';
import { LcowError } from '../errors/index.js';
import { abortable, Scope, setTimeoutFactor, timeoutMs, withDeadline } from './index.js';

describe('a scope', () => {
  it('releases in reverse, all of it, once, and tells every failure', async () => {
    const order: number[] = [];
    const scope = new Scope();
    for (const number of [1, 2, 3])
      scope.defer(() => {
        order.push(number);
        if (number !== 2) throw new Error(`no ${number}`);
      });
    await expect(scope.release()).rejects.toMatchObject({ errors: [{ message: 'no 3' }, { message: 'no 1' }] });
    await scope.release();
    expect(order).toEqual([3, 2, 1]);
  });

  it('hands what it holds over when set-up has succeeded', async () => {
    const released: string[] = [];
    let kept: Scope;
    {
      await using scope = new Scope();
      scope.defer(() => released.push('a'));
      kept = scope.move();
    }
    expect(released).toEqual([]);
    await kept.release();
    expect(released).toEqual(['a']);
  });
});

describe('a time-out', () => {
  afterEach(() => setTimeoutFactor(1));

  it('stretches under emulation only where a guest is waited for', () => {
    setTimeoutFactor(4);
    expect(timeoutMs('guestRequest', {})).toBe(480_000);
    expect(timeoutMs('registryIdle', {})).toBe(30_000);
  });

  it('keeps its default unless the override is a number of seconds above 0', () => {
    for (const bad of ['', '0', '-1', 'abc'])
      expect(timeoutMs('registryIdle', { LCOW_TIMEOUT_REGISTRYIDLE: bad })).toBe(30_000);
    expect(timeoutMs('registryIdle', { LCOW_TIMEOUT_REGISTRYIDLE: '2' })).toBe(2000);
  });

  it('names the operation and its variable, and aborts the work', async () => {
    process.env['LCOW_TIMEOUT_QMPCOMMAND'] = '0.01';
    let seen: AbortSignal | undefined;
    const never = withDeadline('qmpCommand', 'query-status', undefined, (signal) => {
      seen = signal;
      return new Promise(() => undefined);
    });
    await expect(never).rejects.toMatchObject({
      code: 'TIMED_OUT',
      hint: expect.stringContaining('QMPCOMMAND') as string,
    });
    expect(seen?.aborted).toBe(true);
    delete process.env['LCOW_TIMEOUT_QMPCOMMAND'];
  });
});

describe('an abortable promise', () => {
  it('rejects as soon as the signal fires, with its reason when that is ours', async () => {
    const abort = new AbortController();
    const waiting = abortable(new Promise(() => undefined), abort.signal);
    abort.abort(new LcowError('CLOSED', 'gone'));
    await expect(waiting).rejects.toMatchObject({ code: 'CLOSED' });
    await expect(abortable(Promise.resolve(1), AbortSignal.abort())).rejects.toMatchObject({ code: 'CANCELLED' });
    await expect(abortable(Promise.resolve(1), undefined)).resolves.toBe(1);
  });
});
