/** @typedef {import('./machine.js').Network} Network */

/**
 * What is known of the network: which HTTP it speaks, and what worked on it, kept for the next page. Without a memory
 * each page learns anew.
 * @param {import('./client.js').Host} host
 */
export function createNetwork({ base, clock }) {
  /** Which HTTP it is, once that is known. @type {string | undefined} */
  let protocol
  const place = `tidemark ${base}`
  /** Throws where there is no memory. @returns {Record<string, Network>} */
  const all = () => JSON.parse(localStorage.getItem(place) ?? '{}')

  return {
    /** Whether it has as many connections as one likes. HTTP/1.1 has six for a page, and a WebSocket costs none of them. */
    http2() {
      // A page may have thousands of entries, so they are looked through until the answer is there, and not after.
      protocol ||= /** @type {any} */ (performance)
        .getEntries?.()
        .find(
          (/** @type {any} */ entry) => entry.name.startsWith(base.origin) && entry.nextHopProtocol,
        )?.nextHopProtocol
      return /^h[23]/.test(`${protocol}`)
    },

    /** Pages note a moment after an answer which HTTP it was. */
    noted: () =>
      !protocol &&
      performance.getEntriesByType?.('navigation')[0] &&
      new Promise((resolve) => clock.after(0, () => resolve(0))),

    /** What is known of one, unless that is too old. @param {string} name @returns {Network | undefined} */
    recall(name) {
      try {
        const found = all()[name]
        return clock.now() - /** @type {number} */ (found.at) < 864e5 ? found : undefined
      } catch {
        return undefined
      }
    },

    /** @param {string} name @param {Network} net */
    remember(name, net) {
      try {
        // The one that was used last comes first, also where it is known.
        const entries = Object.entries({ [name]: net, ...all(), [name]: net })
        localStorage.setItem(place, JSON.stringify(Object.fromEntries(entries.slice(0, 8))))
      } catch {
        // There is no memory.
      }
    },
  }
}
