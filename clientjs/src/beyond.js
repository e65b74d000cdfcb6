import { random } from './client.js'
import { createNetwork } from './network.js'
import { createTabs } from './tabs.js'
import { createWriter } from './writer.js'

/** @typedef {import('./client.js').Host} Host */
/** @typedef {import('./writer.js').Entry} Entry */
/**
 * @typedef {object} Store
 * @property {(name: string, rows: import('./rows.js').Rows) => Promise<void>} load
 * @property {(facts: import('./feed.js').Fact[]) => void} heard
 * @property {(facts: import('./feed.js').Fact[]) => void} passed what another tab heard
 * @property {(entry: Entry) => Promise<unknown>} keep
 * @property {(entry: Entry) => void} drop
 * @property {() => Promise<Entry[]>} adopt the writes of clients that are gone
 * @property {() => Promise<void>} close
 */

/**
 * What goes beyond one page and one moment: a queue of writes, other tabs, and perhaps a store.
 * @param {Host} host
 * @param {(token: string) => Promise<Store | void> | undefined} [createStore] rejects never
 * @returns {import('./client.js').Beyond}
 */
export function createBeyond(host, createStore) {
  /** Names this client among all. */
  const token = random(32)
  const store = createStore?.(token)
  const { clock, followed, client, transmit, submit, report } = host
  let over = false

  /**
   * @template T
   * @param {(store: Store) => T} act
   */
  const stored = (act) => store?.then((store) => (store ? act(store) : undefined))

  const writer = createWriter({
    clock,
    transmit,
    ready: () => !followed.size || /catching-up|live/.test(client.status.state),
    keep: (entry) => stored((store) => store.keep(entry)),
    drop: (entry) => stored((store) => store.drop(entry)),
  })

  /** Writes of tabs that are gone go on as ours. */
  async function adopt() {
    const entries = await stored((store) => (over ? [] : store.adopt()))
    past = undefined
    for (const entry of entries ?? []) submit(entry, true).catch(report)
  }
  /** Settles when the writes of those that are gone are in line. */
  let past = store && adopt()

  const tabs = createTabs(host, token, adopt, (facts) => stored((store) => store.passed(facts)))

  return {
    ...createNetwork(host),
    leads: !tabs,
    async send(entry, guess) {
      if (past) {
        await past
        // On top of what was written before.
        guess()
      }
      return writer.send(entry)
    },
    load: (name, rows) => stored((store) => store.load(name, rows)),
    follow() {
      tabs?.follow()
      writer.run()
    },
    heard(facts) {
      if (!facts.length) return
      tabs?.heard(facts)
      stored((store) => store.heard(facts))
    },
    told() {
      if (client.status.state === 'live') adopt()
      tabs?.told()
      writer.run()
    },
    page: (on) => tabs?.page(on),
    close() {
      over = true
      writer.close()
      tabs?.close()
      return stored((store) => store.close())
    },
  }
}
