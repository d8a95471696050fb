/** Started by tests as a process of its own: owns a utility VM until it is killed, or lets go of a detached one. */
import { createUtilityVM } from '../../src/uvm/index.js';

const { runtimeFolder, cacheFolder, detached, stopAt } = JSON.parse(process.argv[2]!) as {
  runtimeFolder: string;
  cacheFolder: string;
  detached: boolean;
  stopAt: 'created' | 'starting' | 'started';
};

const vm = await createUtilityVM({ id: 'owned', runtimeFolder, cacheFolder, memorySizeInMB: 256, detached });
const say = (text: string): void => void process.stdout.write(`${text}\n`);
if (stopAt === 'created') say('created');
else {
  const starting = vm.start();
  if (stopAt === 'starting') say('starting');
  await starting;
  if (detached) {
    await vm.close();
    say('let go');
  } else say('started');
}
// Lives until it is killed, unless it has let go.
if (!detached) setInterval(() => {}, 1_000_000);
