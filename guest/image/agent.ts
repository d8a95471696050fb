import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { inWorkFolder, type Report } from './download.js';
import { goEnvironment, goToolchain, requiredGo } from './go-toolchain.js';
import { run } from './programs.js';

/** Paths of the agent's sources, sorted: what decides its bytes, so no tests. */
export async function agentSources(folder: string): Promise<string[]> {
  const found = await readdir(folder, { recursive: true }).catch(() => [] as string[]);
  const sources = found.filter((path) => /(\.go|^go\.(mod|sum))$/.test(path) && !path.endsWith('_test.go')).sort();
  if (!sources.includes('go.mod')) throw new Error(`The guest agent's sources are not in ${folder}.`);
  return sources.map((path) => join(folder, path));
}

/** Builds the guest agent: a static program without paths, times or build ids in it. */
export async function buildAgent(
  folder: string,
  version: string,
  report: Report,
): Promise<{ program: Buffer; goVersion: string }> {
  const go = await goToolchain(await requiredGo(join(folder, 'go.mod')), report);
  report(`building the guest agent ${version} with Go ${go.version}`);
  return inWorkFolder('agent', async (work) => {
    const output = join(work, 'agent');
    const linker = `-s -w -buildid= -X main.version=${version}`;
    await run(
      go.program,
      ['build', '-C', folder, '-trimpath', '-buildvcs=false', '-ldflags', linker, '-o', output, '.'],
      {
        env: goEnvironment(),
      },
    );
    return { program: await readFile(output), goVersion: go.version };
  });
}
