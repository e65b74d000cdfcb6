/**
 * A change of the rows as shown. `op` says what it did to them, whatever the writer called it: `insert` for a key that
 * was not there, `modify` for one that was, `remove` for one that is gone (then without a value).
 * @template {object} [T=Record<string, any>]
 * @typedef {{op: 'insert' | 'modify' | 'remove', key: string, value?: T, seq: number}} Change
 */

/**
 * What subscribers are told, once for all that came together. `reset`: the rows were read anew, and the changes are
 * what really differs.
 * @template {object} [T=Record<string, any>]
 * @typedef {{changes: Change<T>[], reset: boolean}} Batch
 */

/**
 * Rows as one log has them. cursor: the sequence up to which they have been read, 0 for nothing; seqs: of the keys in
 * values.
 * @typedef {{epoch: string, cursor: number, values: Map<string, any>, seqs: Map<string, number>}} Table
 */

/** @returns {Table} */
const table = (epoch = '') => ({ epoch, cursor: 0, values: new Map(), seqs: new Map() })

/**
 * @param {Table} table
 * @param {string} key
 */
const seqOf = (table, key) => table.seqs.get(key) ?? 0

/**
 * Up to which sequence a table knows all there is to know of a key.
 * @param {Table} table
 * @param {string} key
 */
const known = (table, key) => Math.max(table.cursor, seqOf(table, key))

/**
 * The rows of one collection, as a fold of what the feed brings and of one's own writes.
 *
 * Four things are held: the rows as shown; during a reset the rows that will replace them (staged); the cursor, below
 * which nothing is news; and the own writes that the server has confirmed before the feed brought them (own). The last
 * are needed because the feed may be behind: after a remove at 12 the feed may still bring the same key's change at
 * 10, and a reset may go live at 11. Removed keys need no memory beyond that: what the feed brought is below the cursor.
 */
export function createRows() {
  let shown = table()
  /** @type {Table | undefined} */
  let staged
  /** What the next change goes to: staged, else shown. */
  let to = shown
  let version = 0
  let anew = false
  /** @type {Change[]} */
  let changes = []
  /**
   * Of the epoch of to. brought: the feed has passed it, but the rows shown are still those from before the reset, and
   * without this an older answer that comes late would bring back a row that was removed since.
   * @type {Map<string, {seq: number, value: any, brought?: boolean}>}
   */
  const own = new Map()

  /** @param {string} key */
  const ownSeq = (key) => own.get(key)?.seq ?? 0

  /**
   * @param {Change['op']} op
   * @param {string} key
   * @param {number} seq
   * @param {any} [value]
   */
  const report = (op, key, seq, value) => changes.push({ op, key, value, seq })

  /**
   * @param {Table} table
   * @param {string} key
   * @param {number} seq
   * @param {any} [value] undefined: the row goes
   */
  const store = (table, key, seq, value) => {
    const { values, seqs } = table
    const held = values.has(key)
    if (table === shown && (value || held)) report(value ? (held ? 'modify' : 'insert') : 'remove', key, seq, value)
    if (value) {
      values.set(key, value)
      seqs.set(key, seq)
    } else {
      values.delete(key)
      seqs.delete(key)
    }
  }

  /**
   * Every row follows. They are staged, beside the rows shown, until live.
   * @param {string} epoch
   */
  const reset = (epoch) => {
    // Sequences of two epochs do not compare.
    if (epoch !== to.epoch) own.clear()
    to = staged = table(epoch)
    for (const [key, write] of own) {
      write.brought = false
      store(to, key, write.seq, write.value)
    }
  }

  return {
    get values() {
      return shown.values
    },
    /** Grows whenever the values change. */
    get version() {
      return version
    },
    get cursor() {
      return to.cursor ? `${to.epoch}-${to.cursor}` : undefined
    },
    /** @param {string} key */
    seq: (key) => shown.seqs.get(key),

    reset,

    /**
     * A feed of this epoch brings this collection from here on. Another epoch than before is a reset, also where the
     * server has no cursor to see it by.
     * @param {string} epoch
     */
    cover(epoch) {
      to.epoch ||= epoch
      if (to.epoch !== epoch) reset(epoch)
    },

    /**
     * A change from the feed. The cursor moves later, when its transaction is whole.
     * @param {string} key
     * @param {number} seq
     * @param {any} value undefined: removed
     */
    put(key, seq, value) {
      const write = own.get(key)
      if (write && seq >= write.seq) {
        if (staged) write.brought = true
        else own.delete(key)
      }
      if (seq > ownSeq(key) && seq > known(to, key)) store(to, key, seq, value)
    },

    /**
     * The server confirmed an own write, perhaps before the feed brings it, perhaps long after.
     * @param {string} epoch
     * @param {string} key
     * @param {number} seq
     * @param {any} value undefined: removed
     */
    wrote(epoch, key, seq, value) {
      // Of another log than the feed is in: the feed will come to it, or has left it. Either way it tells the truth.
      if (epoch !== to.epoch || seq <= ownSeq(key)) return
      if (seq > known(to, key)) {
        own.set(key, { seq, value })
        if (staged) store(staged, key, seq, value)
      } else if (!staged) return
      // Shown at once, also beside a staged table, which may know better by now.
      if (seqOf(to, key) > seq) {
        seq = seqOf(to, key)
        value = to.values.get(key)
      }
      if (epoch === shown.epoch ? seq > known(shown, key) : !same(value, shown.values.get(key))) {
        store(shown, key, seq, value)
      }
    },

    /**
     * Moves the cursor, never back. Reports whether it moved.
     * @param {number} seq
     */
    next(seq) {
      const moved = seq > to.cursor
      if (moved) to.cursor = seq
      return moved
    },

    /**
     * The feed has brought everything up to seq. Own writes up to there that it did not bring are undone since: a feed
     * that starts from the beginning says nothing of rows that are gone. A staged table takes its place now.
     * @param {number} seq
     */
    live(seq) {
      for (const [key, write] of own) {
        if (write.seq <= seq) {
          own.delete(key)
          if (!write.brought && seqOf(to, key) === write.seq) store(to, key, seq)
        }
      }
      this.next(seq)
      if (!staged) return
      const before = shown.values
      shown = staged
      staged = undefined
      anew = true
      for (const key of minus(before, shown.values)) report('remove', key, to.cursor)
      for (const [key, value] of shown.values) {
        const old = before.get(key)
        // An equal row keeps its object, so that whoever compares by identity sees no change either.
        if (same(old, value)) shown.values.set(key, old)
        else report(old ? 'modify' : 'insert', key, seqOf(shown, key), value)
      }
    },

    /**
     * What to tell subscribers since the last call, if anything.
     * @returns {Batch | undefined}
     */
    take() {
      const batch = { changes, reset: anew }
      changes = []
      anew = false
      if (!batch.changes.length) return
      version++
      return batch
    },
  }
}

/** @typedef {ReturnType<typeof createRows>} Rows */

/**
 * The keys of a that b lacks.
 * @param {Map<string, unknown>} a
 * @param {Map<string, unknown>} b
 */
export const minus = (a, b) => [...a.keys()].filter((key) => !b.has(key))

/**
 * Whether two values that came as JSON are equal, whatever the order of their members.
 * @param {any} a
 * @param {any} b
 * @returns {boolean}
 */
export const same = (a, b) =>
  a === b ||
  (a instanceof Object &&
    b instanceof Object &&
    Array.isArray(a) === Array.isArray(b) &&
    Object.keys({ ...a, ...b }).every((key) => same(a[key], b[key])))
