/** Errors: one class, one catalogue of codes. Every other room throws from here. */
export { LcowError, isLcowError, errorMessage, type LcowErrorOptions } from './lcow-error.js';
export { CATALOGUE, isErrorCode, type ErrorCode, type CatalogueEntry } from './catalogue.js';
