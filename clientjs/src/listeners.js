/**
 * Functions that want to be told. add returns its own undo; the same function may be added twice.
 * @template T
 */
export function createListeners() {
  /** @type {Set<{fn: (value: T) => void}>} */
  const entries = new Set()
  return {
    /** @param {(value: T) => void} fn */
    add(fn) {
      const entry = { fn }
      entries.add(entry)
      return () => {
        entries.delete(entry)
      }
    },
    /** How many there are. */
    get size() {
      return entries.size
    },
    /** @param {T} value */
    tell(value) {
      for (const entry of [...entries]) {
        if (!entries.has(entry)) continue
        try {
          entry.fn(value)
        } catch (error) {
          // It surfaces as an unhandled rejection, and costs neither the feed nor the others.
          Promise.reject(error)
        }
      }
    },
  }
}
