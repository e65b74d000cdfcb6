import { useMemo, useSyncExternalStore } from 'react'

/** @typedef {import('../index.js').Client} Client */
/** @typedef {import('../index.js').Status} Status */
/**
 * @template {object} [T=Record<string, any>]
 * @typedef {import('../index.js').Collection<T>} Collection
 */

/**
 * Which rows, in which order, and what of them. A function that is made anew by each render is called for every row by
 * each render; one that keeps its identity (module level, useCallback) only for what is new.
 * @template {object} T
 * @template S
 * @typedef {object} RowsOptions
 * @property {(row: T, key: string) => unknown} [filter]
 * @property {(a: T, b: T) => number} [sort] as of an Array
 * @property {(row: T, key: string) => S} [select] instead of the row
 */

/** What is shown where nothing is followed: on a server, and by the page while it hydrates. */
const NONE = /** @type {any} */ (Object.freeze([]))
/** @type {Readonly<Status>} */
const OFFLINE = Object.freeze({
  state: 'offline',
  transport: 'websocket',
  cursor: undefined,
  since: 0,
  reason: 'idle',
  why: '',
})

/**
 * The rows of a collection, which is followed as long as the component is there. The same array until one of its
 * members is another.
 * @template {object} [T=Record<string, any>]
 * @template [S=T]
 * @param {Collection<T>} collection
 * @param {RowsOptions<T, S>} [options]
 * @returns {S[]}
 */
export function useRows(collection, options = {}) {
  const read = useMemo(() => /** @type {typeof createReader<T, S>} */ (createReader)(collection), [collection])
  return useSyncExternalStore(
    collection.subscribe,
    () => read(options),
    () => NONE,
  )
}

/**
 * One row, or undefined.
 * @template {object} [T=Record<string, any>]
 * @param {Collection<T>} collection
 * @param {string} key
 * @returns {T | undefined}
 */
export const useRow = (collection, key) =>
  useSyncExternalStore(
    collection.subscribe,
    () => collection.rows.get(key),
    () => undefined,
  )

/**
 * Whether the rows are whole. Until then an empty list means nothing.
 * @param {Collection<any>} collection
 * @returns {boolean}
 */
export const useReady = (collection) =>
  useSyncExternalStore(
    collection.subscribe,
    () => collection.ready,
    () => false,
  )

/**
 * How the feed is.
 * @param {Client} client
 * @returns {Status}
 */
export const useStatus = (client) =>
  useSyncExternalStore(
    client.onStatus,
    () => client.status,
    () => OFFLINE,
  )

/**
 * Reads rows for one component. React asks often, and must get the same array for the same rows.
 * @template {object} T
 * @template S
 * @param {Collection<T>} collection
 */
function createReader(collection) {
  let version = -1
  /** @type {RowsOptions<T, S>} */
  let last = {}
  /** @type {S[]} */
  let shown = []
  /** What select made of a row, so that of an equal row it is the same object. @type {WeakMap<T, S>} */
  let selected = new WeakMap()

  /** @param {RowsOptions<T, S>} options */
  return (options) => {
    const { filter, sort, select } = options
    if (select !== last.select) selected = new WeakMap()
    else if (version === collection.version && filter === last.filter && sort === last.sort) return shown
    version = collection.version
    last = options

    const entries = [...collection.rows].filter(([key, row]) => !filter || filter(row, key))
    if (sort) entries.sort(([, a], [, b]) => sort(a, b))
    const rows = entries.map(([key, row]) => {
      if (!select) return /** @type {any} */ (row)
      if (!selected.has(row)) selected.set(row, select(row, key))
      return selected.get(row)
    })
    if (rows.length !== shown.length || rows.some((row, i) => row !== shown[i])) shown = rows
    return shown
  }
}
