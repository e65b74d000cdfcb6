/** @typedef {import('@tanstack/query-core').QueryKey} QueryKey */
/** @typedef {'getQueryCache' | 'getQueryDefaults' | 'invalidateQueries' | 'setQueryData' | 'setQueryDefaults'} Used */
/** @typedef {Pick<import('@tanstack/query-core').QueryClient, Used>} QueryClient */
/**
 * @template {object} [T=Record<string, any>]
 * @typedef {import('../index.js').Collection<T>} Collection
 */
/**
 * @template {object} [T=Record<string, any>]
 * @typedef {import('../index.js').Batch<T>} Batch
 */

/**
 * Has queries fetched again when rows change, for answers that a backend makes of them. However fast the changes come,
 * each query is fetched at most once in `throttle` ms, no fetch under way is thrown away, and the last change is always
 * followed by a fetch that began after it.
 *
 * @param {QueryClient} queryClient
 * @param {Collection<any> | Collection<any>[]} collections
 * @param {object} options
 * @param {QueryKey} [options.queryKey] what to fetch again: all queries whose key begins so
 * @param {(batch: Batch<any>, collection: Collection<any>) => QueryKey[]} [options.queryKeys] or what of it, by what changed
 * @param {number} [options.throttle] ms, 250 by default
 * @returns {() => void} its undo
 */
export function invalidateOnChange(queryClient, collections, { queryKey, queryKeys, throttle = 250 }) {
  const cache = queryClient.getQueryCache()
  /** The hashes of queries that are to be fetched again. @type {Set<string>} */
  const stale = new Set()
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let timer

  const fetchAgain = () => {
    timer = undefined
    const idle = cache
      .getAll()
      .filter(({ queryHash, state }) => stale.has(queryHash) && state.fetchStatus !== 'fetching')
    // A fetch that is under way may have begun before the change: then its answer is too old, and it has to wait.
    const due = new Set(idle.map(({ queryHash }) => queryHash))
    for (const hash of stale) if (due.has(hash) || !cache.get(hash)) stale.delete(hash)
    later()
    queryClient.invalidateQueries({ predicate: ({ queryHash }) => due.has(queryHash) }, { cancelRefetch: false })
  }

  const later = () => {
    if (stale.size) timer ??= setTimeout(fetchAgain, throttle)
  }

  const undos = [collections].flat().map((collection) =>
    collection.subscribe((batch) => {
      if (!batch.changes.length) return
      for (const key of queryKeys?.(batch, collection) ?? [queryKey ?? []]) {
        for (const { queryHash } of cache.findAll({ queryKey: key })) stale.add(queryHash)
      }
      later()
    }),
  )
  return () => {
    for (const undo of undos) undo()
    clearTimeout(timer)
  }
}

/**
 * Keeps the rows of a collection as a query's data, as an array: `useQuery({ queryKey })` needs no queryFn. The query is
 * pending until the rows are whole. Rows that have not changed are the same objects, and an array of the same rows in
 * the same order is the same array.
 *
 * @template {object} [T=Record<string, any>]
 * @template {object} [S=T]
 * @param {QueryClient} queryClient
 * @param {Collection<T>} collection
 * @param {QueryKey} queryKey
 * @param {object} [options]
 * @param {(rows: T[]) => S[]} [options.select] which of them, and in which order
 * @returns {() => void} its undo; the data stays
 */
export function bindQueryData(queryClient, collection, queryKey, { select = /** @type {any} */ (all) } = {}) {
  const data = () => select([...collection.rows.values()])
  queryClient.setQueryDefaults(queryKey, {
    ...queryClient.getQueryDefaults(queryKey),
    staleTime: Infinity,
    // The default compares rows by their place, and would copy every row behind one that is removed.
    structuralSharing: (old, next) => (same(old, next) ? old : next),
    // For whoever asks before there are rows, or after the query was thrown away.
    queryFn: () => whole(collection).then(data),
  })
  const show = () => {
    if (collection.ready) queryClient.setQueryData(queryKey, data())
  }
  const undo = collection.subscribe(show)
  show()
  return undo
}

/** @param {object[]} rows */
const all = (rows) => rows

/**
 * Whether two arrays hold the same objects. Other queries, whose keys begin alike, may hold anything.
 * @param {any} a
 * @param {any} b
 */
const same = (a, b) =>
  Array.isArray(a) &&
  Array.isArray(b) &&
  a.length === b.length &&
  b.every((/** @type {object} */ row, /** @type {number} */ i) => row === a[i])

/**
 * Resolves once the rows are whole; follows the collection until then.
 * @param {Collection<any>} collection
 * @returns {Promise<void>}
 */
const whole = (collection) =>
  new Promise((resolve) => {
    const look = () => {
      if (!collection.ready) return
      undo()
      resolve()
    }
    const undo = collection.subscribe(look)
    look()
  })
