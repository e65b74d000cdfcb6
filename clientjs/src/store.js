/** @typedef {import('./rows.js').Rows} Rows */

/** Changes are written together, so many ms after the first of them. */
const PAUSE = 200
/** A database that does not open in so many ms is none. */
const PATIENCE = 2000

/**
 * Rows, cursors and unsent writes in IndexedDB. A collection's rows and its cursor change in one transaction, so there
 * is never a cursor without its rows. Whoever leads writes rows; writes are kept by the tab that made them, and adopted
 * by another when that one is gone.
 * @param {import('./client.js').Host} host
 * @param {string} token names this client among all
 * @param {Promise<string>} scope names the database
 * @returns {import('./beyond.js').Store}
 */
export function createStore(host, token, scope) {
  const { clock, member } = host
  const { indexedDB, navigator } = globalThis

  /** What differs from what is on disk: keys, or undefined for perhaps all of it. @type {Map<string, Set<string> | undefined>} */
  const dirty = new Map()
  /** The cursors as we last wrote or read them. @type {Map<string, string | undefined>} */
  const saved = new Map()
  let undo = () => {}
  let pending = false
  let broken = false
  /** @type {(value?: unknown) => void} */
  let release = () => {}
  const alive = new Promise((resolve) => (release = resolve))

  /** @type {(name: string) => string} */
  const lock = (name) => `tidemark writes ${name}`
  // Held for as long as this client lives, so that nobody takes its writes for orphans.
  navigator?.locks?.request(lock(token), () => alive).catch(() => {})

  /** @type {Promise<IDBDatabase>} */
  const opened = scope.then(
    (scope) =>
      new Promise((resolve, reject) => {
        const request = indexedDB.open(`tidemark ${scope}`, 1)
        request.onupgradeneeded = () => {
          request.result.createObjectStore('rows')
          request.result.createObjectStore('cursors')
          request.result.createObjectStore('writes', { autoIncrement: true })
        }
        request.onsuccess = () => {
          const db = request.result
          db.onversionchange = () => db.close()
          resolve(db)
        }
        const undo = clock.after(PATIENCE, () => reject('IndexedDB does not answer'))
        opened.catch(() => {}).finally(undo)
        request.onerror = () => reject(request.error)
      }),
  )
  // A browser that refuses, as in some private windows, costs what was to be kept, and nothing else.
  opened.catch(fail)

  /** @param {unknown} error */
  function fail(error) {
    if (!broken) host.report(error)
    broken = true
  }

  /**
   * One transaction; resolves with what act gave once it is on disk.
   * @template T
   * @param {IDBTransactionMode} mode
   * @param {string[]} names
   * @param {(...stores: IDBObjectStore[]) => T} act
   * @returns {Promise<T>}
   */
  const transact = async (mode, names, act) => {
    const transaction = (await opened).transaction(names, mode)
    const result = act(...names.map((name) => transaction.objectStore(name)))
    await new Promise((resolve, reject) => {
      transaction.oncomplete = resolve
      transaction.onabort = () => reject(transaction.error)
    })
    return result
  }

  /** All rows of a collection. @param {string} name */
  const range = (name) => IDBKeyRange.bound([name], [name, []])

  /** @param {string} name */
  const save = (name) =>
    transact('readwrite', ['rows', 'cursors'], (rows, cursors) => {
      const found = cursors.get(name)
      found.onsuccess = () => {
        const { table, staged, cursor, ready } = member(name).rows
        // In the middle of a reset what is on disk is better.
        if (staged || !ready || !cursor || !dirty.has(name)) return
        const before = found.result
        if (before?.epoch === table.epoch && before.cursor > table.cursor) return
        const keys = before && saved.get(name) === `${before.epoch}-${before.cursor}` ? dirty.get(name) : undefined
        if (!keys) rows.delete(range(name))
        for (const key of keys ?? table.rows.keys()) {
          const row = table.rows.get(key)
          if (row) rows.put({ ...row, key }, [name, key])
          else rows.delete([name, key])
        }
        cursors.put({ epoch: table.epoch, cursor: table.cursor }, name)
        saved.set(name, cursor)
        dirty.delete(name)
      }
    })

  const flush = async () => {
    undo()
    pending = false
    try {
      if (!broken) await Promise.all([...dirty.keys()].map(save))
    } catch (error) {
      saved.clear()
      fail(error)
    }
  }

  return {
    async load(name, rows) {
      if (broken || rows.table.epoch || saved.has(name)) return
      saved.set(name, undefined)
      try {
        /** @type {[IDBRequest, IDBRequest]} */
        const [entries, found] = await transact('readonly', ['rows', 'cursors'], (rows, cursors) => [
          rows.getAll(range(name)),
          cursors.get(name),
        ])
        if (!found.result) return
        const { epoch, cursor } = found.result
        /** @type {any[]} */
        const kept = entries.result
        rows.load({ epoch, cursor, rows: new Map(kept.map(({ key, seq, value }) => [key, { seq, value }])) })
        saved.set(name, rows.cursor)
      } catch (error) {
        fail(error)
      }
    },

    heard(facts) {
      for (const { type, names, changes = [] } of facts) {
        for (const name of names) {
          if (type === 'reset') dirty.set(name, undefined)
          else if (type !== 'cover' && !dirty.has(name)) dirty.set(name, new Set())
        }
        for (const { collection, key } of changes) dirty.get(collection)?.add(key)
      }
      if (pending) return
      pending = true
      undo = clock.after(PAUSE, flush)
    },

    // Whether that tab has written it is not known, so what differs from what is on disk is not either.
    passed(facts) {
      for (const { type, names, changes = [] } of facts)
        for (const name of names) if (saved.has(name) && (changes[0] || type === 'reset')) saved.set(name, undefined)
    },

    async keep(entry) {
      if (broken) return
      try {
        const { place, since, ...rest } = entry
        const request = await transact('readwrite', ['writes'], (writes) =>
          writes.put({ owner: token, ...rest }, place),
        )
        entry.place = request.result
      } catch (error) {
        fail(error)
      }
    },

    drop({ place }) {
      if (place) transact('readwrite', ['writes'], (writes) => writes.delete(place)).catch(fail)
    },

    async adopt() {
      /** @type {any[]} */
      const orphans = []
      try {
        const held = (await navigator?.locks?.query())?.held?.map(({ name }) => name) ?? []
        await transact('readwrite', ['writes'], (writes) => {
          const request = writes.openCursor()
          request.onsuccess = () => {
            const cursor = request.result
            if (!cursor) return
            const { owner, ...entry } = cursor.value
            if (!entry.changes[0]) cursor.delete()
            else if (owner !== token && !held.includes(lock(owner))) {
              cursor.update({ ...entry, owner: token })
              orphans.push({ ...entry, place: cursor.key })
            }
            cursor.continue()
          }
        })
      } catch (error) {
        fail(error)
      }
      return orphans
    },

    async close() {
      await flush()
      release()
      ;(await opened.catch(() => undefined))?.close()
    },
  }
}
