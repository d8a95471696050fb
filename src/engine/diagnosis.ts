import { readFile, statfs } from 'node:fs/promises';
import { join } from 'node:path';
import { errorMessage, LcowError } from '../errors/index.js';
import { findQemu, probeAccelerators, type QemuBinary } from '../hcs/index.js';
import { stateFolders, type StateFolders } from '../state/index.js';
import { guestImageFolder } from '../uvm/index.js';

/** One thing that `lcow doctor` looked at. */
export interface Finding {
  readonly subject: string;
  readonly verdict: 'ok' | 'warning' | 'missing';
  readonly text: string;
  /** What to do about it. */
  readonly hint?: string;
}

/** Below this a pull of an ordinary image may fail. */
const LITTLE_SPACE_BYTES = 2 * 2 ** 30;

export interface DiagnoseOptions {
  readonly formatBytes: (bytes: number) => string;
}

/** Looks at everything a container needs. Never throws for what is missing: that is a finding. */
export async function diagnose(options: DiagnoseOptions): Promise<Finding[]> {
  const findings: Finding[] = [nodeFinding()];
  let folders: StateFolders | undefined;
  try {
    folders = stateFolders();
  } catch (error) {
    findings.push(failure('data folder', error));
  }
  const qemu = await attempt('QEMU', findings, async () => {
    const found = await findQemu();
    findings.push({ subject: 'QEMU', verdict: 'ok', text: `${found.version} (${found.path})` });
    return found;
  });
  const guest = await attempt('guest image', findings, async () => {
    findings.push(await guestFinding());
    return true;
  });
  if (qemu && guest && folders) {
    const { cache } = folders;
    await attempt('accelerators', findings, async () => {
      findings.push(...(await acceleratorFindings(qemu, cache)));
    });
  }
  if (folders) {
    const { root } = folders;
    await attempt('disk', findings, async () => {
      const { bavail, bsize } = await statfs(root);
      const free = bavail * bsize;
      findings.push({
        subject: 'data folder',
        verdict: free < LITTLE_SPACE_BYTES ? 'warning' : 'ok',
        text: `${root}, ${options.formatBytes(free)} free`,
        ...(free < LITTLE_SPACE_BYTES
          ? { hint: 'Free space there, or set LCOW_ROOT to a folder on another disk.' }
          : {}),
      });
    });
  }
  return findings;
}

function nodeFinding(): Finding {
  const [major = 0, minor = 0] = process.versions.node.split('.').map(Number);
  const recent = major > 20 || (major === 20 && minor >= 19);
  return {
    subject: 'Node.js',
    verdict: recent ? 'ok' : 'missing',
    text: process.versions.node,
    ...(recent ? {} : { hint: 'Install Node.js 20.19 or newer.' }),
  };
}

async function guestFinding(): Promise<Finding> {
  const folder = guestImageFolder();
  const manifest = JSON.parse(await readFile(join(folder, 'manifest.json'), 'utf8')) as {
    kernelRelease?: string;
    agentVersion?: string;
  };
  return {
    subject: 'guest image',
    verdict: 'ok',
    text: `Linux ${manifest.kernelRelease ?? '?'}, agent ${manifest.agentVersion ?? '?'} (${folder})`,
  };
}

async function acceleratorFindings(qemu: QemuBinary, cacheFolder: string): Promise<Finding[]> {
  const kernelFilePath = join(guestImageFolder(), 'vmlinux');
  const verdicts = await probeAccelerators({ qemu, kernelFilePath, cacheFolder });
  const chosen = verdicts.find(({ usable }) => usable);
  const findings: Finding[] = verdicts.map(({ accelerator, usable, reason }) => ({
    subject: `accelerator ${accelerator}`,
    verdict: usable ? ('ok' as const) : ('warning' as const),
    text: `${reason}${accelerator === chosen?.accelerator ? ' (in use)' : ''}`,
  }));
  if (!chosen)
    findings.push({ subject: 'accelerators', verdict: 'missing', text: 'none can run a guest, not even emulation' });
  else if (chosen.accelerator === 'tcg')
    findings.push({
      subject: 'isolation',
      verdict: 'warning',
      text: 'guests are emulated (TCG), which QEMU itself does not call a security boundary',
      hint: 'Use a host with KVM (Linux), HVF (macOS) or WHPX (Windows) to run code you do not trust.',
    });
  return findings;
}

async function attempt<T>(subject: string, findings: Finding[], look: () => Promise<T>): Promise<T | undefined> {
  try {
    return await look();
  } catch (error) {
    findings.push(failure(subject, error));
    return undefined;
  }
}

function failure(subject: string, error: unknown): Finding {
  const hint = error instanceof LcowError ? error.hint : undefined;
  return { subject, verdict: 'missing', text: errorMessage(error), ...(hint ? { hint } : {}) };
}
