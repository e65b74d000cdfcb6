// Tidemark's JavaScript client: local collections, kept in step with a server. Everything public is exported here.

export { createClient } from './client.js'
export { TidemarkError } from './errors.js'

/** @typedef {import('./client.js').Client} Client */
/** @typedef {import('./client.js').Options} Options */
/** @typedef {import('./client.js').Status} Status */
/** @typedef {import('./clock.js').Clock} Clock */
/**
 * @template {object} [T=Record<string, any>]
 * @typedef {import('./collection.js').Collection<T>} Collection
 */
/**
 * @template {object} [T=Record<string, any>]
 * @typedef {import('./rows.js').Batch<T>} Batch
 */
/**
 * @template {object} [T=Record<string, any>]
 * @typedef {import('./rows.js').Change<T>} Change
 */
/** @typedef {import('./machine.js').Transport} Transport */
/** @typedef {import('./writer.js').Write} Write */
/**
 * @template {object} [T=Record<string, any>]
 * @typedef {import('./writer.js').Result<T>} Result
 */
