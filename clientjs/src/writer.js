import { closed, known, TidemarkError } from './errors.js'
import { backoff } from './machine.js'

/**
 * One change to write. `if`: the sequence that the row must have now, 0 for none. `ttl`: after how many seconds the row
 * goes by itself. `id` is given by the client; whoever gives one of their own answers for it being unique.
 * @typedef {{
 *   collection: string, op: 'insert' | 'modify' | 'put' | 'remove', key?: string,
 *   value?: object, patch?: object, if?: number, ttl?: number, id?: string,
 * }} Write
 */

/**
 * @template {object} [T=Record<string, any>]
 * @typedef {{id: string, status: string, key: string, seq: number, value?: T}} Result
 */

/** @typedef {{cursor: string, results: Result[]}} Answer */

/**
 * Sends a request to write, once, and gives its answer. `first`: it was not tried before.
 * @typedef {(request: Pick<Entry, 'client' | 'atomic' | 'changes'>, first: boolean) => Promise<Answer>} Transmit
 */

/**
 * A request to write, as it is kept: what is sent is the same whoever sends it, and however often.
 * @typedef {object} Entry
 * @property {string} client whose ids the changes bear
 * @property {boolean} atomic
 * @property {(Write & {id: string})[]} changes
 * @property {number} [at] when it was sent first, in ms since 1970 by the machine's clock
 * @property {number} [since] the same by a clock that nobody sets
 * @property {any} [place] where a store keeps it
 */

/**
 * A write that was sent so long ago, in ms, is not sent again: servers know the ids of what they took for an hour unless
 * told otherwise, and after that the same write would take effect twice.
 */
const WINDOW = 55 * 60e3
/** Single changes that wait go together, at most so many, and about so many characters. */
const TOGETHER = 100
const LENGTH = 2e5

/**
 * Sends writes in order, one request at a time, until each has an answer. Each change has an id of its own, so one
 * whose answer was lost takes effect once, however often it is sent. What gathers meanwhile goes together, if it is
 * single changes: those succeed or fail each for itself either way.
 * @param {object} options
 * @param {import('./clock.js').Clock} options.clock
 * @param {() => boolean} options.ready whether it is worth a try
 * @param {Transmit} options.transmit
 * @param {(entry: Entry) => unknown} [options.keep] resolves when the entry is safe
 * @param {(entry: Entry) => void} [options.drop]
 */
export function createWriter({ clock, ready, transmit, keep, drop }) {
  let over = false
  /** Whether it sends, or pauses between two tries. */
  let running = false
  /** So often in a row the next ones were tried in vain. */
  let attempt = 0
  /** So many of the next are sent alone, because one of them is refused wherever it is. */
  let alone = 0
  /** @type {{entry: Entry, length: number, kept: unknown, lost?: boolean, resolve: (answer: Answer) => void, reject: (error: Error) => void}[]} */
  const queue = []
  /** Ends the pause between two tries. */
  let stop = () => {}
  const wall = clock.wall ?? clock.now

  /** Since when it may have taken effect: by whichever clock says the worse. @param {Entry} entry */
  const age = ({ at = Infinity, since = Infinity }) => Math.max(wall() - at, clock.now() - since)

  /**
   * What goes next. Two changes of one row go together only if the first can't be refused, or both are refused alike:
   * else the first may be refused, its answer lost, and be taken the second time, after the other.
   */
  const batch = () => {
    /** @type {typeof queue} */
    const batch = []
    let length = 0
    /** What was said of a row last. */
    const rows = new Map()
    for (const one of queue) {
      const { changes, client } = one.entry
      const { collection, key, op, if: condition } = changes[0]
      const row = `${collection} ${key}`
      const kind = condition === undefined ? op : 'insert'
      const before = rows.get(row) ?? 'put'
      const together = /put|remove/.test(before) || (before === 'modify' && kind === 'modify')
      length += one.length
      const first = batch[0]?.entry
      const full = alone || length > LENGTH || batch.length >= TOGETHER
      if (first && (full || !together || changes[1] || first.changes[1] || client !== first.client)) break
      rows.set(row, kind)
      batch.push(one)
    }
    return batch
  }

  /** Sends what there is, as long as there is a chance. To be called whenever that changes. */
  async function run() {
    if (running) return
    running = true
    while (queue.length && !over && ready()) {
      const sent = batch()
      const [{ entry }] = sent
      /** @param {(one: typeof sent[0], i: number) => void} tell */
      const done = (tell) => {
        attempt = 0
        alone -= alone && 1
        for (const [i, one] of sent.entries()) {
          queue.shift()
          drop?.(one.entry)
          tell(one, i)
        }
      }
      try {
        if (sent.some((one) => age(one.entry) > WINDOW)) {
          throw new TidemarkError('unknown', 'sent too long ago')
        }
        for (const one of sent) {
          one.entry.since ??= clock.now()
          if (one.entry.at) continue
          one.entry.at = wall()
          one.kept = Promise.resolve(one.kept).then(() => keep?.(one.entry))
        }
        await Promise.all(sent.map(({ kept }) => kept))
        const { client, atomic } = entry
        const changes = sent.flatMap(({ entry }) => entry.changes)
        const answer = await transmit({ client, atomic: atomic && !sent[1], changes }, !attempt++)
        const { cursor, results } = answer
        done(({ resolve }, i) => resolve(sent[1] ? { cursor, results: [results[i]] } : answer))
      } catch (cause) {
        const error = known(cause)
        if (over) break
        if (error.retry !== null) {
          // These two say that nothing was taken; after all else it may have been.
          if (!/429|503/.test(`${error.status}`)) for (const one of sent) one.lost = true
          stop = clock.after(error.retry + backoff(attempt - 1, clock.random()), () => {
            running = false
            run()
          })
          return
        } else if (sent[1]) alone = sent.length
        else {
          // What was not let in now may have got in before; but then these, from a server, would not be said of it.
          const definite = /^4(00|09|13|29)/.test(`${error.status}`) && error.code !== 'refused'
          const unsure = entry.at && sent[0].lost && !definite
          done(({ reject }) => reject(unsure ? new TidemarkError('unknown', error.detail, error) : error))
        }
      }
    }
    running = false
  }

  return {
    run,

    /**
     * @param {Entry} entry
     * @returns {Promise<Answer>}
     */
    send(entry) {
      if (over) return Promise.reject(closed())
      return new Promise((resolve, reject) => {
        // Safe from the start, because it may be long until there is a network.
        if (ready() && !queue.length) entry.at ??= wall()
        queue.push({ entry, length: JSON.stringify(entry.changes).length, kept: keep?.(entry), resolve, reject })
        run()
      })
    },

    /** Gives up what is under way. */
    close() {
      over = true
      stop()
      for (const { reject } of queue) reject(closed())
    },
  }
}
