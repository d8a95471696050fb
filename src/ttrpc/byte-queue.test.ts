import fc from 'fast-check';
import { expect, test } from 'vitest';
import { ByteQueue } from './byte-queue.js';

test('gives back the bytes in order, however they are pushed and taken', () => {
  fc.assert(
    fc.property(
      fc.array(
        fc.oneof(
          fc.record({ push: fc.integer({ min: 0, max: 3000 }) }),
          fc.record({ take: fc.nat(4000) }),
          fc.record({ piece: fc.integer({ min: 1, max: 4000 }) }),
        ),
        { maxLength: 60 },
      ),
      (steps) => {
        const queue = new ByteQueue();
        let written = 0;
        let read = 0;
        const expectNext = (bytes: Buffer): void => {
          expect(bytes.every((byte) => byte === read++ % 251)).toBe(true);
        };
        for (const step of steps) {
          if ('push' in step) {
            const chunk = Buffer.alloc(step.push);
            for (let i = 0; i < chunk.length; i++) chunk[i] = written++ % 251;
            queue.push(chunk);
          } else if ('take' in step) {
            const count = Math.min(step.take, queue.length);
            const taken = queue.take(count);
            expect(taken.length).toBe(count);
            expectNext(taken);
          } else expectNext(queue.takePiece(step.piece) ?? Buffer.alloc(0));
          expect(queue.length).toBe(written - read);
        }
        expectNext(queue.take(queue.length));
        expect(read).toBe(written);
      },
    ),
    { seed: 3, numRuns: 300 },
  );
});

test('does not change what was taken when more is pushed', () => {
  const queue = new ByteQueue();
  queue.push(Buffer.from('aa'));
  queue.push(Buffer.from('bb'));
  queue.push(Buffer.from('cc'));
  const taken = queue.take(5);
  const last = queue.take(1);
  queue.push(Buffer.from('dd'));
  queue.push(Buffer.from('ee'));
  expect(`${taken.toString()}${last.toString()}${queue.take(4).toString()}`).toBe('aabbccddee');
  expect(taken.toString()).toBe('aabbc');
});
