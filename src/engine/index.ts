/** The engine: images and containers of one data root; each running container in the utility VM of its supervisor. */
export { Engine, type CreateOptions, type ExecOptions, type LogOptions } from './engine.js';
export type { ContainerOptions } from './container-options.js';
export type { ContainerConfig, ContainerRecord, ContainerState } from './container-record.js';
export { ControlClient, type RemoteExec } from './control-client.js';
export type { Supervisor, AttachedStreams } from './supervisor.js';
export { startFailureExitCode } from './start-failure.js';
export type { LogEntry, LogSource } from './log-file.js';
export { openLog } from './log.js';
export { parseCpus, parseSize } from './size.js';
export { linuxSignal, signalNumber } from './signals.js';
export { diagnose, type DiagnoseOptions, type Finding } from './diagnosis.js';
