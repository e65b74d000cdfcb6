import { badFrame, FINE } from './errors.js'

/**
 * What the server sends: one JSON object a line, whatever the transport. Unknown types and fields are ignored.
 *
 * @typedef {{
 *   type: string, epoch?: string, heartbeat?: number, network?: string, collections?: string[], cursor?: string,
 *   seq?: number, collection?: string, op?: string, key?: string, value?: any, by?: {id?: string}, more?: boolean,
 *   reason?: string, detail?: string, retry?: number | null, id?: string, status?: number, results?: any[],
 * }} Frame
 */

/**
 * What frames come to: the same whether they came over a connection of our own or through another tab. As data, so that
 * it can be handed on.
 *
 * - `cover`: these collections are heard from here on. `reset`: and from their beginning.
 * - `next`: they have come to seq, by these changes, which are a whole transaction.
 * - `live`: and that is all there is.
 *
 * @typedef {{collection: string, key: string, seq: number, value?: any, id?: string}} Changed
 * @typedef {{epoch: string, names: string[]} & (
 *   {type: 'reset' | 'cover', seq?: undefined, changes?: undefined}
 *   | {type: 'next' | 'live', seq: number, changes?: Changed[]})} Fact
 */

/** @typedef {import('./rows.js').Rows} Rows */

/**
 * What one connection says, as facts. Several connections may speak of the same collections at once: each says nothing
 * but what is true from the cursor on that it was asked for.
 * @param {(fact: Fact) => boolean} apply reports whether a cursor moved
 */
export function createFeed(apply) {
  /** Of the connection; '' before its `open`. */
  let epoch = ''
  /**
   * What this connection was asked for: collection -> the id of the `subscribe` that is not `done` yet, '' for none.
   * Only the latter are covered: a `live` that is sent before the server has read our `subscribe` knows nothing of the
   * new collection. Whoever wants no more of one deletes it here.
   * @type {Map<string, string>}
   */
  const asked = new Map()
  /** @type {Changed[]} the changes of a transaction, until its last one is here */
  let pending = []

  /** @param {Iterable<string>} names */
  const covered = (names) => {
    if (!epoch) throw badFrame('no open')
    return [...names].filter((name) => asked.get(name) === '')
  }

  return {
    asked,

    /**
     * Takes one frame. Reports whether it brought something new: a cursor that moved by changes, not by a mere `live`.
     * Throws a `bad-frame` error for what the protocol does not allow.
     * @param {Frame} frame
     */
    take(frame) {
      const { type, cursor, seq = 0, collection = '', key, op, value, by, more } = frame
      if (type === 'change') {
        if (!(seq > 0) || typeof key !== 'string' || (op !== 'remove' && !(value instanceof Object))) {
          throw badFrame('no change')
        }
        if (covered([collection])[0]) {
          pending.push({ collection, key, seq, value: op === 'remove' ? undefined : value, id: by?.id })
        }
        if (more) return false
        const changes = pending
        pending = []
        return apply({ type: 'next', epoch, seq, names: changes.map(({ collection }) => collection), changes })
      }
      if (type === 'reset') apply({ type, epoch, names: covered(frame.collections ?? []) })
      else if (type === 'open' || type === 'done') {
        epoch = frame.epoch ?? epoch
        // open covers what was asked for from the start, done what its subscribe asked for.
        const names = [...asked.keys()].filter((name) => asked.get(name) === (frame.id ?? ''))
        for (const name of names) asked.set(name, '')
        if (epoch) apply({ type: 'cover', epoch, names })
      } else if (type === 'live' || type === 'next') {
        const [of, seq] = split(cursor)
        if (of !== epoch || !(seq >= 0)) throw badFrame('no cursor')
        return apply({ type, epoch, names: covered(asked.keys()), seq })
      }
      return false
    },
  }
}

/**
 * Applies a fact to the rows that are followed. Reports whether a cursor moved, other than by a mere `live`.
 * @param {Fact} fact
 * @param {(collection: string) => Rows | undefined} find
 */
export function fold({ type, epoch, names, seq, changes = [] }, find) {
  let moved = false
  /** Facts of a log that was left are nothing to its successor. @param {string} name @returns {any} */
  const rows = (name) => {
    const found = find(name)
    return seq === undefined || found?.table.epoch === epoch ? found : undefined
  }
  // First all rows, then the cursors: below a cursor nothing is news, so it must not move inside a transaction.
  for (const c of changes) rows(c.collection)?.put(c.key, c.seq, c.value, c.id)
  for (const name of names) if (rows(name)?.[type](seq ?? epoch)) moved = true
  return moved
}

/**
 * The server confirmed own writes, or some of them. They show in the collections that are followed.
 * @param {string} cursor of the answer
 * @param {{collection: string, op: string}[]} writes
 * @param {{status: string, key: string, seq: number, value?: object}[]} results in the same order
 * @param {(collection: string) => Rows | undefined} find
 */
export function confirm(cursor, writes, results, find) {
  const [epoch] = split(cursor)
  results.forEach(({ status, key, seq, value }, i) => {
    const { collection, op } = writes[i]
    // A remove leaves no value. Of a row that was gone already it may have no sequence: nothing to show.
    if (FINE.test(status) && seq > 0 && (value || op === 'remove')) find(collection)?.wrote(epoch, key, seq, value)
  })
}

/**
 * @param {string} [cursor]
 * @returns {[epoch: string, seq: number]}
 */
function split(cursor = '') {
  const [epoch, seq] = cursor.split('-')
  return [epoch, +seq]
}
