import { closed } from './errors.js'
import { createListeners } from './listeners.js'
import { createRows } from './rows.js'

/**
 * @template {object} [T=Record<string, any>]
 * @typedef {import('./rows.js').Batch<T>} Batch
 */
/**
 * @template {object} [T=Record<string, any>]
 * @typedef {import('./writer.js').Result<T>} Result
 */
/** @typedef {import('./writer.js').Write} Write */

/**
 * A collection of a client: its rows as they are here and now, and how to change them. No method needs its `this`, so
 * each may be handed on as it is.
 *
 * The four writes show at once (unless `optimistic` is false), are sent in order, wait for the network as long as need
 * be, and resolve once the server has made them durable, with the row as it then is. They reject with a TidemarkError,
 * and are taken back: `conflict`, `exists` or `missing` (with the row as it stands in `seq` and `value`), any other
 * refusal, or `unknown` where nobody can tell any more.
 *
 * @template {object} [T=Record<string, any>]
 * @typedef {object} Collection
 * @property {string} name
 * @property {ReadonlyMap<string, T>} rows as shown, own writes that have no answer yet among them. Always the same Map;
 *   equal rows keep their objects
 * @property {boolean} ready whether the rows were whole once: the feed was live with them, or they were kept
 * @property {number} version grows with each visible change of the rows
 * @property {(key: string) => number | undefined} seq the sequence of a row's last change, for `if`
 * @property {(fn: (batch: Batch<T>) => void) => () => void} subscribe follows the collection, and calls fn after the
 *   rows have changed, once for all changes that came together, and when they become ready; returns its undo. Throws `too-many` beyond 256
 *   collections
 * @property {() => () => void} start follows the collection without listening; returns its undo. Where the server had
 *   ended the feed, start and subscribe try again
 * @property {(seq: number) => Promise<void>} awaitSeq resolves when the rows hold all that was written up to seq;
 *   rejects with `closed` once the client is
 * @property {(value: T, options?: {key?: string} & How) => Promise<Result<T>>} insert a new row; without a key it gets a
 *   UUIDv7, and with a ttl the row goes by itself after so many seconds
 * @property {(key: string, patch: object, options?: {if?: number} & How) => Promise<Result<T>>} modify merges
 *   patch into the row (RFC 7396: null removes a member), and leaves it the time that it has, unless ttl gives another
 * @property {(key: string, value: T, options?: {if?: number} & How) => Promise<Result<T>>} put inserts or
 *   replaces; without a ttl the row stays
 * @property {(key: string, options?: {if?: number, optimistic?: boolean}) => Promise<Result<T>>} remove is fine with a
 *   row that is gone, unless `if` is given
 */
/** @typedef {{ttl?: number, optimistic?: boolean}} How */

/**
 * What the client holds of a collection. take: what to tell its subscribers, if anything, once all rows are in place.
 * close: nothing comes any more.
 * @typedef {{
 *   collection: Collection,
 *   rows: import('./rows.js').Rows,
 *   take: () => (() => void) | undefined,
 *   close: () => void,
 * }} Member
 */

/**
 * @param {string} name
 * @param {(member: Member, on: boolean) => void} follow
 * @param {(writes: Write[], how: {optimistic?: boolean}) => Promise<Result[]>} write
 * @returns {Member}
 */
export function createCollection(name, follow, write) {
  const rows = createRows()
  /** @type {import('./listeners.js').Listeners<Batch>} */
  const [add, tell, listeners] = createListeners()

  /** @type {Collection['subscribe']} */
  const subscribe = (fn) => {
    follow(member, true)
    const undo = add(fn)
    return () => {
      undo()
      if (!listeners.size) follow(member, false)
    }
  }

  /**
   * @param {Write['op']} op
   * @param {Partial<Write>} change
   * @param {any} [options]
   */
  const one = async (op, change, { optimistic, ...more } = {}) =>
    (await write([{ collection: name, op, ...more, ...change }], { optimistic }))[0]

  /**
   * Those who wait for a sequence look whether it is here; and what tells them that it will not come.
   * @type {Map<() => void, (cause: Error) => void>}
   */
  const waiting = new Map()
  let over = false

  /** @type {Member} */
  const member = {
    rows,
    take() {
      const batch = rows.take()
      for (const look of waiting.keys()) look()
      return batch && (() => tell(batch))
    },
    close() {
      over = true
      for (const reject of waiting.values()) reject(closed())
      waiting.clear()
    },
    collection: {
      name,
      rows: rows.values,
      get version() {
        return rows.version
      },
      get ready() {
        return rows.ready
      },
      seq: rows.seq,
      awaitSeq: (seq) =>
        new Promise((resolve, reject) => {
          const look = () => {
            if (rows.table.cursor < seq || !rows.cursor || rows.staged) return
            waiting.delete(look)
            resolve()
          }
          waiting.set(look, reject)
          look()
          if (over) member.close()
        }),
      subscribe,
      start: () => subscribe(() => {}),
      insert: (value, options) => one('insert', { value }, options),
      modify: (key, patch, options) => one('modify', { key, patch }, options),
      put: (key, value, options) => one('put', { key, value }, options),
      remove: (key, options) => one('remove', { key }, options),
    },
  }
  return member
}
