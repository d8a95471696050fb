import { randomInt } from 'node:crypto';

const MOODS =
  'able agile amber bold brave brisk calm clever crisp daring eager early easy fair fine fleet fond frank free fresh gentle glad grand happy hardy honest humble jolly keen kind lively lucid lucky merry mild neat nimble noble placid plucky proud quick quiet ready rosy sharp sleek smart snug solid spry steady sunny swift tidy true vivid warm wise witty'.split(
    ' ',
  );

const PEOPLE =
  'babbage backus bartik berners boole cerf church codd cray dijkstra engelbart floyd gosling goldberg hamilton hamming hoare holberton hopper iverson jennings joy kay kernighan kilby knuth lamport lampson lamarr liskov lovelace mccarthy mcilroy minsky moore naur neumann newell noether noyce perlis postel ritchie sammet shannon simon stallman sutherland tanenbaum thompson torvalds turing ullman wilkes wilkinson wirth zuse'.split(
    ' ',
  );

/** A random container name in docker's manner, e.g. "swift_lovelace". */
export function randomContainerName(): string {
  return `${MOODS[randomInt(MOODS.length)]!}_${PEOPLE[randomInt(PEOPLE.length)]!}`;
}
