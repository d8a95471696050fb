/** The part of a pino logger this room uses. */
export interface Logger {
  debug(facts: object, message: string): void;
  info(facts: object, message: string): void;
  warn(facts: object, message: string): void;
}

const silent = (): void => {};

/** Says nothing. */
export const NO_LOG: Logger = { debug: silent, info: silent, warn: silent };
