import { Command } from 'commander';
import prettyBytes from 'pretty-bytes';
import { diagnose, type Finding } from '../engine/index.js';
import { ExitWith } from './failure.js';
import { printJson } from './output.js';
import { spinner } from './spinner.js';

const MARKS: Readonly<Record<Finding['verdict'], string>> = { ok: '✓', warning: '!', missing: '✗' };

/** `lcow doctor` */
export function doctorCommand(): Command {
  return new Command('doctor')
    .description('Tell what is there, what is missing and how to get it')
    .option('--json', 'as JSON')
    .action(async (options: { json?: boolean }) => {
      const busy = spinner('Trying the accelerators');
      const findings = await diagnose({ formatBytes: prettyBytes });
      busy.stop();
      if (options.json) printJson(findings);
      else
        for (const { verdict, subject, text, hint } of findings) {
          console.log(`${MARKS[verdict]} ${subject}: ${text}`);
          if (hint) console.log(`    ${hint}`);
        }
      if (findings.some(({ verdict }) => verdict === 'missing')) throw new ExitWith(1);
    });
}
