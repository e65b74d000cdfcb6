import { badFrame, DONE } from './errors.js'

/**
 * What the server sends: one JSON object a line, whatever the transport. Unknown types and fields are ignored.
 *
 * @typedef {{
 *   type: string, epoch?: string, heartbeat?: number, collections?: string[], cursor?: string,
 *   seq?: number, collection?: string, op?: string, key?: string, value?: any, more?: boolean,
 *   reason?: string, retry?: number | null, id?: string, status?: number, results?: any[],
 * }} Frame
 */

/** @typedef {import('./rows.js').Rows} Rows */

/**
 * The fold of one feed over the collections that it carries: which frame moves which rows, and which cursor. It
 * outlives connections and transports; begin says that a new one starts.
 * @param {(collection: string) => Rows | undefined} find the rows of a collection, if it is followed
 */
export function createFeed(find) {
  /** Of the connection; '' before its `open`. */
  let epoch = ''
  /**
   * What this connection was asked for: collection -> the id of the `subscribe` that is not `done` yet, '' for none.
   * Only the latter are covered: a `live` that is sent before the server has read our `subscribe` knows nothing of the
   * new collection. Whoever wants no more of one deletes it here.
   * @type {Map<string, string>}
   */
  const asked = new Map()
  /** @type {any[]} the changes of a transaction, until its last one is here */
  let pending = []

  /** @param {string} name */
  const rows = (name) => {
    if (!epoch) throw badFrame('no open')
    return asked.get(name) === '' ? find(name) : undefined
  }

  /** @param {Frame} frame */
  const change = (frame) => {
    const { seq = 0, key, op, value } = frame
    if (!(seq > 0) || typeof key !== 'string' || (op !== 'remove' && !(value instanceof Object))) {
      throw badFrame('no change')
    }
    pending.push(frame)
    let moved = false
    if (!frame.more) {
      const changes = pending
      pending = []
      // First all rows, then the cursors: below a cursor nothing is news, so it must not move inside a transaction.
      for (const c of changes) rows(c.collection)?.put(c.key, c.seq, c.op === 'remove' ? undefined : c.value)
      for (const c of changes) if (rows(c.collection)?.next(seq)) moved = true
    }
    return moved
  }

  return {
    asked,

    /** @param {Iterable<string>} collections that the connection asks for from the start */
    begin(collections) {
      epoch = ''
      pending = []
      asked.clear()
      for (const name of collections) asked.set(name, '')
    },

    /**
     * Takes one frame. Reports whether it brought something new: a cursor that moved by changes, not by a mere `live`.
     * Throws a `bad-frame` error for what the protocol does not allow.
     * @param {Frame} frame
     */
    take(frame) {
      const { type, cursor } = frame
      let moved = false
      if (type === 'change') {
        moved = change(frame)
      } else if (type === 'reset') {
        for (const name of frame.collections ?? []) rows(name)?.reset(epoch)
      } else if (type === 'open' || type === 'done') {
        epoch = frame.epoch ?? epoch
        // open covers what was asked for from the start, done what its subscribe asked for.
        for (const [name, id] of asked) {
          if (id === (frame.id ?? '')) {
            asked.set(name, '')
            rows(name)?.cover(epoch)
          }
        }
      } else if (type === 'live' || type === 'next') {
        const [of, seq] = split(cursor)
        if (of !== epoch || !(seq >= 0)) throw badFrame('no cursor')
        for (const name of asked.keys()) if (rows(name)?.[type](seq)) moved = true
      }
      return moved
    },

    /**
     * The server confirmed own writes, or some of them. They show in the collections that are followed.
     * @param {string} cursor of the answer
     * @param {{collection: string, op: string}[]} writes
     * @param {{status: string, key: string, seq: number, value?: object}[]} results in the same order
     */
    wrote(cursor, writes, results) {
      const [of] = split(cursor)
      results.forEach(({ status, key, seq, value }, i) => {
        const { collection, op } = writes[i]
        // A remove leaves no value. Of a row that was gone already it may have no sequence: nothing to show.
        if (DONE.test(status) && seq > 0 && (value || op === 'remove')) find(collection)?.wrote(of, key, seq, value)
      })
    },
  }
}

/**
 * @param {string} [cursor]
 * @returns {[epoch: string, seq: number]}
 */
function split(cursor = '') {
  const [epoch, seq] = cursor.split('-')
  return [epoch, +seq]
}
