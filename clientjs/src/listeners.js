/**
 * How to add one, to tell all, and who they are. add returns its own undo; the same function may be added twice.
 * @template T
 * @typedef {[add: (fn: (value: T) => void) => () => void, tell: (value: T) => void, all: Set<unknown>]} Listeners
 */

/**
 * Functions that want to be told.
 * @template T
 * @returns {Listeners<T>}
 */
export function createListeners() {
  /** @type {Set<[fn: (value: T) => void]>} */
  const all = new Set()
  return [
    (fn) => {
      /** @type {[typeof fn]} */
      const own = [fn]
      all.add(own)
      return () => {
        all.delete(own)
      }
    },
    (value) => {
      for (const own of [...all]) {
        // What it throws surfaces as an unhandled rejection, and costs neither the feed nor the others.
        const tell = async () => all.has(own) && own[0](value)
        tell()
      }
    },
    all,
  ]
}
