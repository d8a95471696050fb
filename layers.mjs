/**
 * The rooms of src/, top to bottom: a room imports only rooms further down, and only their index.ts.
 * The lint rule in .dependency-cruiser.mjs is made from this list.
 */
export const LAYERS = [
  'cli',
  'docker',
  'shim',
  'engine',
  'images',
  'graphdriver',
  'hcsoci',
  'layers',
  'cmd',
  'lcow',
  'opengcs',
  'hns',
  'plan9',
  'uvm',
  'gcs',
  'hcs',
  'ttrpc',
  'disk',
  'state',
  'lifetime',
  'errors',
];
