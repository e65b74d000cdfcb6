import { known, problem, TidemarkError } from './errors.js'
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

/** One try, in ms. Then the answer counts as lost. */
const TRY = 30e3
/** No try begins later than this after the first, in ms. Well within the hour for which the server knows the ids. */
const LIMIT = 60e3

/**
 * Sends writes until there is an answer. Each change has an id of its own, so one whose answer was lost takes effect
 * once, however often it is sent.
 * @param {import('./clock.js').Clock} clock
 * @param {(body: string, first: boolean, signal: AbortSignal) => Promise<any>} transmit
 */
export function createWriter(clock, transmit) {
  let closed = false
  /** @type {Set<(error: Error) => void>} */
  const stops = new Set()
  const over = () => new TidemarkError('closed', 'the client was closed')

  /**
   * Settles as run does; rejects when the time is up, or resolves if there was nothing to run. Closing rejects it, too.
   * @param {number} ms
   * @param {(signal: AbortSignal) => Promise<any>} [run]
   * @returns {Promise<any>}
   */
  const within = (ms, run) => {
    const abort = new AbortController()
    /** @type {(error: Error) => void} */
    let stop
    /** @type {() => void} */
    let undo
    return new Promise((resolve, reject) => {
      stop = reject
      stops.add(stop)
      undo = clock.after(ms, () => (run ? reject('no answer') : resolve(0)))
      run?.(abort.signal).then(resolve, reject)
    }).finally(() => {
      stops.delete(stop)
      undo()
      abort.abort()
    })
  }

  return {
    /**
     * @param {string} body
     * @returns {Promise<Answer>}
     */
    async send(body) {
      const begun = clock.now()
      for (let attempt = 0; ; attempt++) {
        if (closed) throw over()
        try {
          const answer = await within(TRY, (signal) => transmit(body, !attempt, signal))
          if (Array.isArray(answer.results)) return answer
          throw problem(answer)
        } catch (cause) {
          const error = known(cause)
          const delay = (error.retry ?? Infinity) + backoff(attempt, clock.random())
          if (clock.now() + delay - begun > LIMIT) throw error
          await within(delay)
        }
      }
    },

    /** Gives up what is under way. */
    close() {
      closed = true
      for (const stop of stops) stop(over())
    },
  }
}
