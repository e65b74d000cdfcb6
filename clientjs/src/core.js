// The client without what reaches beyond one page and one moment: no other tabs, no queue, no IndexedDB,
// no memory of networks.

import { createCore } from './client.js'
import { known } from './errors.js'

export { TidemarkError } from './errors.js'

/**
 * Sends writes in order, each once the one before it was answered. One that gets no answer is sent once more, under the
 * same id and perhaps another way, so that it takes effect once; then whoever made it is told.
 * @param {import('./client.js').Host} host
 * @returns {import('./client.js').Beyond}
 */
const createBeyond = ({ transmit }) => {
  /** @type {Promise<unknown>} */
  let last = Promise.resolve()
  return {
    send(entry) {
      const answer = last
        .then(() => transmit(entry, true))
        .catch((cause) => {
          if (known(cause).status) throw cause
          return transmit(entry, false)
        })
      last = answer.catch(() => {})
      return answer
    },
  }
}

/**
 * As createClient of `tidemark`, but that the options `tabs`, `persist` and `user` mean nothing, and that a write
 * that gets no answer rejects, with `unavailable`, instead of waiting for the network. It may have taken effect; written
 * again under the same id it takes effect once.
 * @param {import('./client.js').Options} options
 * @returns {import('./client.js').Client}
 */
export const createClient = (options) => createCore(options, createBeyond)
