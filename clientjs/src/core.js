// The client without what reaches beyond one page: no other tabs, no IndexedDB.

import { createCore } from './client.js'

export { TidemarkError } from './errors.js'

/**
 * As createClient of `tidemark`, but that the options `tabs`, `persist` and `user` mean nothing.
 * @param {import('./client.js').Options} options
 * @returns {import('./client.js').Client}
 */
export const createClient = (options) => createCore(options)
