/** The hash of names in directory indexes: half MD4 as fs/ext4/hash.c has it, with unsigned characters. */
import { HASH_SEED } from './superblock.js';

const SEED = [0, 4, 8, 12].map((at) => HASH_SEED.readUInt32LE(at) | 0);
const K2 = 0x5a827999;
const K3 = 0x6ed9eba1;
/** EXT4_HTREE_EOF_32BIT: the largest hash means the end. */
const END = 0x7fffffff;

const words = new Int32Array(8);
const state = new Int32Array(4);

/** The hash of a name (a byte string), with its lowest bit clear. */
export function hashName(name: string): number {
  for (let i = 0; i < 4; i += 1) state[i] = SEED[i]!;
  for (let at = 0; at < name.length; at += 32) {
    loadWords(name, at);
    halfMd4();
  }
  const hash = (state[1]! & ~1) >>> 0;
  return hash === END * 2 ? (END - 1) * 2 : hash;
}

/** str2hashbuf_unsigned: eight big-endian words, short names filled up with their length. */
function loadWords(name: string, at: number): void {
  const left = name.length - at;
  let fill = left | (left << 8);
  fill |= fill << 16;
  const length = Math.min(left, 32);
  let word = fill;
  let filled = 0;
  for (let i = 0; i < length; i += 1) {
    word = (name.charCodeAt(at + i) + (word << 8)) | 0;
    if (i % 4 === 3) {
      words[filled++] = word;
      word = fill;
    }
  }
  if (filled < 8) words[filled++] = word;
  while (filled < 8) words[filled++] = fill;
}

function rotate(value: number, bits: number): number {
  return (value << bits) | (value >>> (32 - bits));
}

/** Order of the words, and shifts, in the three rounds of lib: half_md4_transform. */
const ROUND_1 = [0, 1, 2, 3, 4, 5, 6, 7];
const SHIFTS_1 = [3, 7, 11, 19];
const ROUND_2 = [1, 3, 5, 7, 0, 2, 4, 6];
const SHIFTS_2 = [3, 5, 9, 13];
const ROUND_3 = [3, 7, 2, 6, 1, 5, 0, 4];
const SHIFTS_3 = [3, 9, 11, 15];

function halfMd4(): void {
  let a = state[0]!;
  let b = state[1]!;
  let c = state[2]!;
  let d = state[3]!;
  // Each step works on a and turns the four round: a, d, c, b.
  for (let i = 0; i < 8; i += 1) {
    const sum = (a + (d ^ (b & (c ^ d))) + words[ROUND_1[i]!]!) | 0;
    a = d;
    d = c;
    c = b;
    b = rotate(sum, SHIFTS_1[i & 3]!);
  }
  for (let i = 0; i < 8; i += 1) {
    const sum = (a + ((b & c) + ((b ^ c) & d)) + words[ROUND_2[i]!]! + K2) | 0;
    a = d;
    d = c;
    c = b;
    b = rotate(sum, SHIFTS_2[i & 3]!);
  }
  for (let i = 0; i < 8; i += 1) {
    const sum = (a + (b ^ c ^ d) + words[ROUND_3[i]!]! + K3) | 0;
    a = d;
    d = c;
    c = b;
    b = rotate(sum, SHIFTS_3[i & 3]!);
  }
  state[0] = (state[0]! + a) | 0;
  state[1] = (state[1]! + b) | 0;
  state[2] = (state[2]! + c) | 0;
  state[3] = (state[3]! + d) | 0;
}
