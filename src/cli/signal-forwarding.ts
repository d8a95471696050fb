import { linuxSignal, type Engine, type Supervisor } from '../engine/index.js';
import { onSignals } from './interruption.js';

const FORWARDED = ['SIGINT', 'SIGTERM', 'SIGHUP', 'SIGQUIT', 'SIGUSR1', 'SIGUSR2'] as const;
const ENDING: ReadonlySet<NodeJS.Signals> = new Set(['SIGINT', 'SIGTERM', 'SIGHUP']);

/**
 * The signals of a `run` in the foreground. Until the container runs the first that ends gives the start up. Then they are
 * handed on to the container, as `docker run` does. This process owns the VM, so it cannot leave before the container
 * ends: an ending signal that the init does not handle kills it, SIGTERM gives it the stop grace, and the third signal
 * kills it in any case.
 */
export class SignalForwarding implements Disposable {
  readonly #abort = new AbortController();
  readonly #handler: Disposable;
  #running: { engine: Engine; supervisor: Supervisor } | undefined;
  /** The signal that came before there was a container to send it to. */
  #early: NodeJS.Signals | undefined;
  #endings = 0;

  constructor() {
    this.#handler = onSignals(FORWARDED, (name) => this.#on(name));
  }

  /** Fires when the start is to be given up. */
  get signal(): AbortSignal {
    return this.#abort.signal;
  }

  /** From now on signals are for the container; one that came too late to give up its start, too. */
  to(engine: Engine, supervisor: Supervisor): void {
    this.#running = { engine, supervisor };
    if (this.#early) this.#forward(this.#early);
  }

  #on(name: NodeJS.Signals): void {
    const ending = ENDING.has(name);
    if (ending) this.#endings += 1;
    if (this.#running) this.#forward(name);
    else if (ending) {
      if (this.#early) process.exit(130);
      this.#early = name;
      this.#abort.abort();
    }
  }

  #forward(name: NodeJS.Signals): void {
    const { engine, supervisor } = this.#running!;
    const { init } = supervisor;
    // The container may end while a signal is on its way; its end is reported by wait().
    const ignore = (): undefined => undefined;
    if (this.#endings >= 3) void supervisor.stop(0).catch(ignore);
    else if (name === 'SIGTERM') void supervisor.stop(engine.stopGraceMs, linuxSignal(name)).catch(ignore);
    else
      void init
        .signal(linuxSignal(name))
        .then((delivered) => (delivered || !ENDING.has(name) ? undefined : init.kill()))
        .catch(ignore);
  }

  [Symbol.dispose](): void {
    this.#handler[Symbol.dispose]();
  }
}
