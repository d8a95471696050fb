import { LAYERS } from './layers.mjs';

const room = (names) => `^src/(${names.join('|')})/`;

/** @type {import('dependency-cruiser').IConfiguration} */
export default {
  forbidden: [
    { name: 'no-circular', severity: 'error', from: {}, to: { circular: true } },
    {
      name: 'known-rooms',
      comment: 'A new room is placed in layers.mjs and DESIGN first.',
      severity: 'error',
      from: {},
      to: { path: '^src/', pathNot: room(LAYERS) },
    },
    {
      name: 'through-the-face',
      comment: "Another room is entered through its index.ts; gcs' generated messages are its own.",
      severity: 'error',
      from: { path: '^src/([^/]+)/' },
      to: { path: '^src/[^/]+/', pathNot: ['^src/$1/', '^src/[^/]+/index\\.ts$'] },
    },
    ...LAYERS.slice(1).map((name, index) => ({
      name: `down-only-${name}`,
      severity: 'error',
      from: { path: room([name]) },
      to: { path: room(LAYERS.slice(0, index + 1)) },
    })),
    {
      name: 'disk-knows-no-vm',
      severity: 'error',
      from: { path: '^src/disk/' },
      to: { path: '^src/', pathNot: room(['disk', 'state', 'lifetime', 'errors']) },
    },
    {
      name: 'images-and-graphdriver-know-no-vm-engine',
      severity: 'error',
      from: { path: '^src/(images|graphdriver)/' },
      to: { path: '^src/(hcs|gcs|uvm|hcsoci|layers)/' },
    },
    {
      name: 'declared-dependencies',
      severity: 'error',
      from: { path: '^src/', pathNot: '\\.test\\.ts$' },
      to: { dependencyTypes: ['npm-dev', 'npm-no-pkg', 'npm-unknown', 'unknown'] },
    },
  ],
  options: {
    doNotFollow: { path: 'node_modules' },
    tsPreCompilationDeps: true,
    tsConfig: { fileName: 'tsconfig.json' },
    enhancedResolveOptions: {
      exportsFields: ['exports'],
      conditionNames: ['import', 'require', 'node', 'default', 'types'],
    },
  },
};
