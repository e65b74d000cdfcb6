// Tidemark's JavaScript client: local collections, kept in step with a server. Everything public is exported here.

import { createBeyond } from './beyond.js'
import { createCore } from './client.js'
import { scope } from './scope.js'

export { TidemarkError } from './errors.js'

/**
 * A client of one tenant. It connects when the first collection is followed, and has one feed for all of them.
 * Throws a TypeError for a url, tenant or transport that is none.
 * @param {import('./client.js').Options} options
 * @returns {import('./client.js').Client}
 */
export const createClient = (options) =>
  createCore(options, (host) =>
    createBeyond(host, (token) =>
      // Whoever asks for no store does not load what makes one.
      options.persist && globalThis.indexedDB
        ? import('./store.js').then(({ createStore }) => createStore(host, token, scope(host)), host.report)
        : undefined,
    ),
  )

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
