// The client without what reaches beyond one page and one moment: no other tabs, no queue, no IndexedDB.

import { createCore } from './client.js'

export { TidemarkError } from './errors.js'

/**
 * Sends writes in order, each once it was answered to the one before, and each once: whoever is told that there was no
 * answer may write the same again, under the same id.
 * @type {typeof import('./writer.js').createWriter}
 */
const createWriter = ({ transmit }) => {
  /** @type {Promise<unknown>} */
  let last = Promise.resolve()
  return {
    run: async () => {},
    send({ client, atomic, changes }) {
      const answer = last.then(() => transmit({ client, atomic, changes }, true))
      last = answer.catch(() => {})
      return answer
    },
    close: () => {},
  }
}

/**
 * As createClient of `tidemark`, but that the options `tabs`, `persist` and `user` mean nothing, and that a write that
 * gets no answer rejects instead of waiting for the network.
 * @param {import('./client.js').Options} options
 * @returns {import('./client.js').Client}
 */
export const createClient = (options) => createCore(options, { createWriter })
