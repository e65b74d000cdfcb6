/**
 * A change of the rows as shown. `op` says what it did to them, whatever the writer called it: `insert` for a key that
 * was not there, `modify` for one that was, `remove` for one that is gone (then without a value). `seq`: of the row's
 * last change that the server has confirmed, 0 if there is none yet.
 * @template {object} [T=Record<string, any>]
 * @typedef {{op: 'insert' | 'modify' | 'remove', key: string, value?: T, seq: number}} Change
 */

/**
 * What subscribers are told, once for all that came together, at most one change a key. `reset`: the rows were read
 * anew, and the changes are what really differs.
 * @template {object} [T=Record<string, any>]
 * @typedef {{changes: Change<T>[], reset: boolean}} Batch
 */

/** A row as confirmed; value undefined: it is gone. @typedef {{seq: number, value?: any}} Row */

/**
 * Rows as one log has them. cursor: the sequence up to which they have been read, -1 for nothing at all.
 * @typedef {{epoch: string, cursor: number, rows: Map<string, Row>}} Table
 */

/** What a write says that has no answer yet. @typedef {{op: string, key?: string, value?: any, patch?: any}} Guess */

/**
 * The rows of one collection, as a fold of what the feed brings and of one's own writes.
 *
 *     table    what the log says, as far as it was read: nothing below its cursor is news
 *     stale    while a reset is read: the table from before it, which is shown until live
 *     own      own writes that the server has confirmed before the feed brought them. The feed may be behind: after a
 *              remove at 12 it may still bring the same key's change at 10, and a reset may go live at 11
 *     guesses  own writes that have no answer yet, in order, on top of all that
 *     values   what comes out: the rows as shown
 *
 * Whatever moves marks its keys, and take() compares what is shown with what should be: so nothing is told twice, a
 * guess that came true is no change, and neither is a reset that brings the same rows.
 */
export function createRows() {
  /** @type {Table} */
  let table = { epoch: '', cursor: -1, rows: new Map() }
  /** @type {Table | undefined} */
  let stale
  /**
   * Of the table's epoch. brought: during a reset the feed has passed it, perhaps to a newer state. It is kept until
   * live all the same: it shows, and without it an older answer that comes late would bring back what was removed.
   * @type {Map<string, Row & {brought: boolean}>}
   */
  const own = new Map()
  /** @type {Map<string, Guess>} */
  const guesses = new Map()
  const values = new Map()
  /** Keys to look at, with the sequence of what touched them. @type {Map<string, number>} */
  const marked = new Map()
  let anew = false
  let tell = false
  let begun = false
  let watched = false

  /** @param {string} key */
  const ownSeq = (key) => own.get(key)?.seq ?? 0

  /**
   * Up to which sequence a table knows all there is to know of a key.
   * @param {Table} table
   * @param {string} key
   */
  const known = (table, key) => Math.max(table.cursor, table.rows.get(key)?.seq ?? 0)

  /**
   * The row that counts: the table's; during a reset the stale one, unless an own write is newer.
   * @param {string} key
   * @returns {Row | undefined}
   */
  const current = (key) => {
    const write = own.get(key)
    if (!stale) return table.rows.get(key)
    return write && (stale.epoch !== table.epoch || write.seq > known(stale, key)) ? write : stale.rows.get(key)
  }

  /** @param {string} key */
  const mark = (key, seq = current(key)?.seq ?? 0) => marked.set(key, seq)

  /**
   * @param {string} key
   * @param {number} seq
   * @param {any} value undefined: the row goes
   */
  const store = (key, seq, value) => {
    if (value) table.rows.set(key, { seq, value })
    else table.rows.delete(key)
    mark(key, seq)
  }

  /**
   * Every row follows. They are read beside the rows shown, until live.
   * @param {string} epoch
   */
  const reset = (epoch) => {
    stale ??= table
    if (epoch !== table.epoch) {
      // Sequences of two epochs do not compare. What shows by them goes on showing.
      for (const key of own.keys()) stale.rows.set(key, current(key) ?? { seq: 0 })
      own.clear()
    }
    table = { epoch, cursor: -1, rows: new Map() }
    for (const [key, write] of own) {
      write.brought = false
      store(key, write.seq, write.value)
    }
  }

  /** @param {number} seq */
  const next = (seq) => {
    const moved = seq > table.cursor
    if (moved) table.cursor = seq
    return moved
  }

  const self = {
    values,
    /** Grows whenever what is shown changes. */
    version: 0,
    /** Whether the rows shown were whole once. */
    ready: false,
    get cursor() {
      return table.cursor < 0 ? undefined : `${table.epoch}-${table.cursor}`
    },
    /** The cursor to ask for what follows. From then on it is too late to load: what went meanwhile may not be said. */
    ask() {
      begun = true
      return self.cursor
    },
    /** As the log has them; during a reset what has been read of it. Not to be changed. */
    get table() {
      return table
    },
    /** Whether a reset is under way, so that the table is not whole. */
    get staged() {
      return !!stale
    },
    /** @param {string} key */
    seq: (key) => current(key)?.seq,
    reset,
    next,

    /**
     * Rows that were kept from another time, or by another tab. Whatever the feed has brought knows better.
     * @param {Table} kept
     */
    load(kept) {
      if (table.epoch || begun) return
      table = kept
      self.ready = tell = true
      for (const key of kept.rows.keys()) mark(key)
    },

    /**
     * A feed of this epoch brings this collection from here on. Another epoch than before is a reset, also where the
     * server has no cursor to see it by.
     * @param {string} epoch
     */
    cover(epoch) {
      table.epoch ||= epoch
      if (table.epoch !== epoch) reset(epoch)
    },

    /**
     * A change from the feed. The cursor moves later, when its transaction is whole.
     * @param {string} key
     * @param {number} seq
     * @param {any} value undefined: removed
     * @param {string} [id] of the write that it comes from
     */
    put(key, seq, value, id = '') {
      const written = ownSeq(key)
      // Of a row that is held any later change is news, even below the cursor: another connection may have moved it.
      if (seq > written && seq > (table.rows.get(key)?.seq ?? table.cursor)) store(key, seq, value)
      const ours = guesses.has(id)
      if (seq >= written && (written || ours)) {
        if (stale) own.set(key, { seq, value, brought: true })
        else own.delete(key)
      }
      if (!ours) return
      // An own write came true before its answer; those before it on this row are part of it.
      mark(key)
      for (const [other, guess] of guesses) {
        if (guess.key === key) guesses.delete(other)
        if (other === id) break
      }
    },

    /**
     * The server confirmed an own write, perhaps before the feed brings it, perhaps long after.
     * @param {string} epoch
     * @param {string} key
     * @param {number} seq
     * @param {any} value undefined: removed
     */
    wrote(epoch, key, seq, value) {
      if (begun) table.epoch ||= epoch
      // Of another log than the feed is in: the feed will come to it, or has left it. Either way it tells the truth.
      if (epoch !== table.epoch || seq <= ownSeq(key)) return
      const row = table.rows.get(key)
      const brought = seq <= known(table, key)
      // What the feed has passed it has brought, or will bring in a newer state, or it is gone.
      if (brought && (!stale || (value && !row))) return
      own.set(key, { seq, value, ...(brought && row), brought })
      if (brought) mark(key)
      else store(key, seq, value)
    },

    /** Somebody looks at the rows. Before that own writes do not show until they are confirmed, and part of them. */
    watch() {
      watched = true
      for (const { key } of guesses.values()) mark(`${key}`)
    },

    /**
     * Shows a write before it has an answer, on top of all others; unguess takes it back, or makes room for the answer.
     * @param {string} id
     * @param {Guess} guess
     */
    guess(id, guess) {
      guesses.delete(id)
      guesses.set(id, guess)
      mark(`${guess.key}`)
    },

    /** @param {string} id */
    unguess(id) {
      const guess = guesses.get(id)
      if (guess) mark(`${guess.key}`)
      guesses.delete(id)
    },

    /**
     * The feed has brought everything up to seq. Own writes up to there that it did not bring are undone since: a feed
     * that starts from the beginning says nothing of rows that are gone. What was shown during a reset goes.
     * @param {number} seq
     */
    live(seq) {
      for (const [key, write] of own) {
        if (write.seq <= seq) {
          own.delete(key)
          mark(key)
          if (!write.brought && table.rows.get(key)?.seq === write.seq) store(key, seq, undefined)
        }
      }
      next(seq)
      tell ||= !self.ready
      self.ready = true
      if (!stale) return
      const keys = [...stale.rows.keys(), ...table.rows.keys()]
      stale = undefined
      anew = true
      for (const key of keys) mark(key, table.rows.get(key)?.seq ?? seq)
    },

    /**
     * What to tell subscribers since the last call, if anything.
     * @returns {Batch | undefined}
     */
    take() {
      /** @type {Change[]} */
      const changes = []
      // Over the guesses once, and not for each key: there may be thousands of both.
      const found = new Map()
      const at = (/** @type {string} */ key) => (found.has(key) ? found.get(key) : current(key)?.value)
      for (const guess of guesses.values()) {
        const { key = '' } = guess
        if (watched && marked.has(key)) found.set(key, apply(guess, at(key)))
      }
      for (const [key, seq] of marked) {
        const value = at(key)
        const old = values.get(key)
        // An equal row keeps its object, so that whoever compares by identity sees no change either.
        if (same(old, value)) continue
        if (value) values.set(key, value)
        else values.delete(key)
        changes.push({ op: value ? (old ? 'modify' : 'insert') : 'remove', key, value, seq })
      }
      const batch = changes.length || tell ? { changes, reset: anew } : undefined
      marked.clear()
      anew = tell = false
      if (batch) self.version++
      return batch
    },
  }
  return self
}

/** @typedef {ReturnType<typeof createRows>} Rows */

/**
 * What the server will make of a row, if all goes well.
 * @param {Guess} guess
 * @param {any} old undefined: there is none
 */
const apply = ({ op, value, patch }, old) =>
  op === 'remove' || (op === 'modify' && !old) ? undefined : (value ?? merge(old, patch))

/**
 * RFC 7396: null removes a member, an object is merged, anything else replaces.
 * @param {any} old
 * @param {any} patch
 * @returns {any}
 */
function merge(old, patch) {
  if (!isObject(patch)) return patch
  // From entries, because an assignment to a member called __proto__ would not make one.
  const members = new Map(Object.entries(isObject(old) ? old : {}))
  for (const [name, value] of Object.entries(patch)) {
    if (value === null) members.delete(name)
    else members.set(name, merge(members.get(name), value))
  }
  return Object.fromEntries(members)
}

/** @param {any} value */
const isObject = (value) => value instanceof Object && !Array.isArray(value)

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
    Object.keys({ ...a, ...b }).every((key) => Object.hasOwn(a, key) && Object.hasOwn(b, key) && same(a[key], b[key])))
