import { MultiBar, Presets, type SingleBar } from 'cli-progress';
import prettyBytes from 'pretty-bytes';
import type { ProgressEvent } from '../images/index.js';

const PHASES: Readonly<Record<ProgressEvent['phase'], string>> = {
  waiting: 'Waiting',
  downloading: 'Downloading',
  verifying: 'Verifying',
  extracting: 'Extracting',
  done: 'Pull complete',
  exists: 'Already exists',
};

/** Shows the layers of a pull or import on stderr: bars on a terminal, else a line for every change of phase. */
export class PullProgress implements Disposable {
  #bars: MultiBar | undefined;
  readonly #layers = new Map<string, { bar?: SingleBar; phase: string }>();

  readonly show = (event: ProgressEvent): void => {
    const known = this.#layers.get(event.layer);
    const phase = PHASES[event.phase];
    if (process.stderr.isTTY) {
      this.#bars ??= newBars();
      const payload = { layer: event.layer, phase: phase.padEnd(14), amount: amount(event) };
      const total = event.total || 1;
      const bar = known?.bar ?? this.#bars.create(total, 0, payload);
      bar.setTotal(total);
      bar.update(event.phase === 'done' || event.phase === 'exists' ? total : event.current, payload);
      this.#layers.set(event.layer, { bar, phase });
    } else if (known?.phase !== phase) {
      process.stderr.write(`${event.layer}: ${phase}\n`);
      this.#layers.set(event.layer, { phase });
    }
  };

  [Symbol.dispose](): void {
    this.#bars?.stop();
  }
}

function newBars(): MultiBar {
  return new MultiBar(
    {
      stream: process.stderr,
      hideCursor: true,
      format: '{layer}: {phase} {bar} {amount}',
      barsize: 30,
      autopadding: true,
      gracefulExit: false,
    },
    Presets.legacy,
  );
}

function amount({ current, total }: ProgressEvent): string {
  return total > 0 ? `${prettyBytes(current)}/${prettyBytes(total)}` : prettyBytes(current);
}
