/**
 * Pulls an image in a process of its own: `tsx pull-process.ts ROOT NAME`. Says "ready", waits for a line on its
 * standard input, pulls, and prints {"id", "applied", "linked"}.
 */
import { once } from 'node:events';
import { ImageRoot } from './image-root.js';

const [folder, name] = process.argv.slice(2);
const root = await ImageRoot.open(folder);
console.log('ready');
await once(process.stdin, 'data');
process.stdin.destroy();
const { id } = await root.store.pull(name!);
console.log(JSON.stringify({ id, applied: root.driver.applied, linked: root.driver.linked }));
