// Writes docs/errors.md from the catalogue (after npm run build).
import { writeFileSync } from 'node:fs';
import { CATALOGUE } from '../dist/errors/index.js';

const rows = Object.entries(CATALOGUE).map(
  ([code, { meaning, hint }]) => `| \`${code}\` | ${meaning} | ${hint ?? ''} |`,
);
writeFileSync(
  new URL('../docs/errors.md', import.meta.url),
  `# Errors

Every error of the library is an \`LcowError\` with a \`code\` from this list, a sentence, often a \`cause\` and \`details\`. The command
prints the sentence and the hint; \`--debug\` the chain of causes. Made from \`src/errors/catalogue.ts\` by \`node scripts/errors-doc.mjs\`.

| code | meaning | hint |
|---|---|---|
${rows.join('\n')}
`,
);
