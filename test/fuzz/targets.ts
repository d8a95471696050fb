import { join } from 'node:path';
import { truncateSync, writeFileSync } from 'node:fs';
import {
  checkDisk,
  openVhdx,
  readTar,
  repairVhdx,
  tarToVhd,
  vhdInfo,
  vhdToTar,
  type VhdxDisk,
} from '../../src/disk/index.js';
import type { ErrorCode } from '../../src/errors/index.js';
import { openDisk } from '../../src/disk/source/index.js';
import type { Random } from './random.js';
import { ext4Seeds, resealTar, resealVhd, resealVhdx, tarSeeds, vhdSeeds, vhdxSeeds } from './seeds.js';

/** A parser under test. */
export interface Target {
  /** Good inputs to damage. */
  seeds(folder: string): Buffer[] | Promise<Buffer[]>;
  /** Puts checksums right, in place, so that damage gets past them. */
  reseal(bytes: Buffer): Buffer;
  /** What a refusal may be. */
  readonly codes: readonly ErrorCode[];
  /** Everything that is to be tried, each on its own. Called with the input, which is also in the file. */
  attempts(bytes: Buffer, path: string, random: Random): (() => Promise<unknown>)[];
}

/** A damaged file system may tell of a file of any size: this much of it shows all there is to see. */
const ENOUGH_BYTES = 32 * 2 ** 20;

async function drain(chunks: AsyncIterable<Uint8Array>): Promise<void> {
  let bytes = 0;
  for await (const chunk of chunks) if ((bytes += chunk.length) > ENOUGH_BYTES) return;
}

/** In pieces as a stream would bring them. */
async function* pieces(bytes: Buffer, random: Random): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < bytes.length;) {
    const length = 1 + random.below(8192);
    yield bytes.subarray(at, at + length);
    at += length;
  }
}

async function readSome(disk: Pick<VhdxDisk, 'sizeBytes' | 'readInto'>): Promise<void> {
  const piece = Buffer.alloc(Math.min(disk.sizeBytes, 65536));
  await disk.readInto(piece, 0);
  await disk.readInto(piece, disk.sizeBytes - piece.length);
  await disk.readInto(piece, Math.floor((disk.sizeBytes - piece.length) / 2));
}

async function readDisk(path: string): Promise<void> {
  await using disk = await openDisk(path);
  await readSome({
    sizeBytes: disk.source.sizeBytes,
    readInto: async (target, at) => disk.source.readInto(target, at),
  });
}

export const TARGETS: Readonly<Record<string, Target>> = {
  tar: {
    seeds: tarSeeds,
    reseal: resealTar,
    codes: ['BAD_TAR', 'DISK_FULL'],
    attempts: (bytes, path, random) => [
      async () => {
        let total = 0;
        for await (const { data } of readTar(pieces(bytes, random)))
          for await (const chunk of data) if ((total += chunk.length) > ENOUGH_BYTES) return;
      },
      async () => tarToVhd(pieces(bytes, random), `${path}.vhd`, { maximumDiskSizeBytes: 64 * 2 ** 20 }),
    ],
  },
  ext4: {
    seeds: ext4Seeds,
    reseal: (bytes) => bytes,
    codes: ['BAD_EXT4', 'BAD_VHD', 'BAD_TAR', 'IO_FAILED'],
    attempts: (_, path) => [async () => drain(vhdToTar(path, { sparse: true }))],
  },
  vhd: {
    seeds: vhdSeeds,
    reseal: resealVhd,
    codes: ['BAD_VHD', 'BAD_EXT4'],
    attempts: (_, path) => [() => vhdInfo(path), () => checkDisk(path), () => readDisk(path)],
  },
  vhdx: {
    seeds: vhdxSeeds,
    reseal: resealVhdx,
    codes: ['BAD_VHDX', 'BAD_VHD', 'NOT_SUPPORTED'],
    attempts: (bytes, path, random) => {
      const reading = [() => vhdInfo(path), () => checkDisk(path), () => readDisk(path)];
      if (!random.once(4)) return reading;
      return [
        ...reading,
        async () => {
          await using disk = await openVhdx(path, { writable: true });
          await disk.write(random.below(disk.sizeBytes > 2 ** 32 ? 2 ** 32 - 1 : disk.sizeBytes), Buffer.from('x'));
        },
        async () => {
          truncateSync(path, 0);
          writeFileSync(path, bytes);
          await repairVhdx(path);
        },
      ];
    },
  },
};

/** Where the input of a target is put. */
export function inputPath(folder: string, target: string): string {
  return join(folder, `input.${target}`);
}
