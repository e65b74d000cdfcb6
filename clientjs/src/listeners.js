/**
 * Functions that want to be told. add returns its own undo; the same function may be added twice.
 * @template T
 */
export function createListeners() {
  /** @type {Set<(value: T) => void>} */
  const all = new Set()
  return {
    /** @param {(value: T) => void} fn */
    add(fn) {
      const own = (/** @type {T} */ value) => fn(value)
      all.add(own)
      return () => {
        all.delete(own)
      }
    },
    /** How many there are. */
    get size() {
      return all.size
    },
    /** @param {T} value */
    tell(value) {
      for (const own of [...all]) {
        try {
          if (all.has(own)) own(value)
        } catch (error) {
          // It surfaces as an unhandled rejection, and costs neither the feed nor the others.
          Promise.reject(error)
        }
      }
    },
  }
}
