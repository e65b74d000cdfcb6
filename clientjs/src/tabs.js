import { fold } from './feed.js'
import { scope } from './scope.js'

/** @typedef {import('./feed.js').Fact} Fact */
/** @typedef {import('./client.js').Status} Status */

/**
 * What tabs say to each other. Each bears who says it, and to whom if not to all.
 *
 * Whoever leads says how the feed is (`status`) with whatever it says:
 *
 * - `lead`: I have the connection from now on; say what you follow.
 * - `facts`: what the feed brought; `joins`: from here on you hear all of these collections.
 * - `alone`: go on by yourself; what all of us follow is more than one feed holds.
 *
 * The others ask the leader whether it is there, which is also a clock for one in a hidden tab, whose own timers are
 * slow; and with `names` they say what they follow, and how far they have come.
 *
 * @typedef {object} Message
 * @property {string} from
 * @property {string} [to]
 * @property {Status} [status]
 * @property {boolean} [lead]
 * @property {Fact[]} [facts]
 * @property {string[]} [joins]
 * @property {boolean} [alone]
 * @property {[name: string, cursor: string | undefined][]} [names]
 */

/** How often a visible tab looks whether the leader is there, in ms. It is replaced after two of them in silence. */
const PING = 250

/**
 * One connection for all tabs that share a scope. Who holds the Web Lock leads: it connects, and tells the others what
 * it hears. A tab that joins gets the rows from the leader, not from the server, unless it has come as far already.
 * When the leader closes, crashes or freezes, the next in line for the lock goes on from where its own rows are.
 * @param {import('./client.js').Host} host
 * @param {string} token names this client among all
 * @param {() => void} adopt takes over what a tab that is gone has not written yet
 * @param {(facts: Fact[]) => void} passed is told what the leader says
 */
export function createTabs(host, token, adopt, passed) {
  const { options, clock, followed } = host
  const { navigator, BroadcastChannel, document } = globalThis
  const locks = navigator?.locks
  if (!(options.tabs ?? document) || !locks || !BroadcastChannel) return

  /** @type {BroadcastChannel} */
  let channel
  let name = ''
  let leading = false
  let closed = false
  /** Lets go of the lock, or of the place in line for it. */
  let release = (/** @type {unknown} */ _) => {}
  /** @type {Status | undefined} */
  let status
  /** What the leader has told us all of. @type {Set<string>} */
  const joined = new Set()
  /** Who follows what, with the cursor that it had; of collections that are not whole here yet. @type {Map<string, Map<string, string | undefined>>} */
  const peers = new Map()
  /** What is followed for others. @type {Map<string, () => void>} */
  const lent = new Map()
  let heard = clock.now()
  /** Nobody else is heard: who was replaced may not know it yet. */
  let leader = ''

  /** @param {Omit<Message, 'from'>} message */
  const post = (message) => closed || channel?.postMessage({ from: token, ...message })

  /** As the leader. @param {Omit<Message, 'from'>} message */
  const say = (message) => post({ status: { ...host.client.status }, ...message })

  function hello() {
    if (leading || !channel) return
    for (const name of joined) if (!followed.has(name)) joined.delete(name)
    post({ names: [...followed].map(([name, { rows }]) => [name, rows.staged ? undefined : rows.cursor]) })
    tell()
  }

  /** What is shown is the leader's status, but live only with all that is followed here. */
  function tell() {
    if (leading || !status) return
    const whole = [...followed.keys()].every((name) => joined.has(name))
    host.show(status.state === 'live' && !whole ? { ...status, state: 'catching-up' } : status)
  }

  /** Follows what the others follow. */
  function lend() {
    const wanted = new Set([...peers.values()].flatMap((names) => [...names.keys()]))
    for (const name of wanted) if (!lent.has(name)) lent.set(name, host.member(name).collection.start())
    for (const [name, undo] of lent) {
      if (!wanted.has(name)) {
        lent.delete(name)
        undo()
      }
    }
  }

  /** Who waits for rows that are whole by now gets them, or goes on where it is. */
  function welcome() {
    for (const [to, names] of peers) {
      for (const [name, cursor] of names) {
        const { rows } = host.member(name)
        const { epoch, cursor: seq } = rows.table
        if (cursor === '' || !rows.ready || rows.staged) continue
        names.set(name, '')
        const [of, at = 0] = cursor?.split('-') ?? []
        // From as far as it has come already, or from the beginning.
        const known = of === epoch && +at >= seq
        const all = { epoch, names: [name] }
        const changes = known ? [] : [...rows.table.rows].map(([key, row]) => ({ collection: name, key, ...row }))
        /** @type {Fact[]} */
        const facts = [
          { type: known ? 'cover' : 'reset', ...all },
          { type: 'live', ...all, seq: known ? +at : seq, changes },
        ]
        say({ to, facts, joins: [name] })
      }
    }
  }

  /** @param {Message} message */
  function take({ from, to, status: said, lead, facts = [], joins = [], alone: apart, names }) {
    if (to && to !== token) return
    if (leading) {
      if (lead) {
        leader = from
        return stop()
      }
      if (names) {
        const known = peers.get(from)
        if (!known) locks.request(`${name} ${from}`, () => gone(from)).catch(() => {})
        // What it hears already it need not be told again, unless it asks from further back than it should.
        peers.set(from, new Map(names.map(([name, cursor]) => [name, known?.get(name) === '' ? '' : cursor])))
        try {
          lend()
        } catch {
          // More than one feed may hold.
          peers.delete(from)
          lend()
          return say({ to: from, alone: true })
        }
        // Whoever it is gets its rows as soon as we follow the same.
        host.lead(true)
      }
      say({ to: from })
      return host.act({ type: 'wake' })
    }
    if (!said) return
    if (lead || !leader) leader = from
    if (from !== leader) return
    if (apart) return alone()
    heard = clock.now()
    status = said
    if (lead) {
      joined.clear()
      hello()
    }
    for (const name of joins) joined.add(name)
    for (const fact of facts) fold(fact, (name) => (joined.has(name) ? host.member(name).rows : undefined))
    passed(facts)
    // What came shows before the status says that all is here.
    host.act({ type: 'wake' })
    tell()
  }

  /** Waits for the lock, or takes it from somebody who does not answer. */
  function queue(steal = false) {
    release(0)
    const abort = new AbortController()
    release = () => abort.abort()
    const held = () => {
      if (closed || abort.signal.aborted) return
      leading = true
      leader = ''
      joined.clear()
      peers.clear()
      host.lead(true)
      say({ lead: true })
      return new Promise((resolve) => (release = resolve))
    }
    const ended = locks.request(name, steal ? { steal } : { signal: abort.signal }, held)
    // Rejected: it was taken from us, or we left the line.
    ended.catch(({ name }) => {
      if (abort.signal.aborted) return
      if (leading) stop()
      else if (name !== 'AbortError') alone()
    })
  }

  /** Whether the page is. */
  let there = true
  /** Lets go of the lock that says so. */
  let leave = (/** @type {unknown} */ _) => {}
  const join = () => {
    const until = new Promise((resolve) => (leave = resolve))
    const here = () => {
      hello()
      return until
    }
    locks.request(`${name} ${token}`, here).catch(() => {})
    queue()
  }

  /** It left, or crashed. @param {string} peer */
  function gone(peer) {
    if (peers.delete(peer)) lend()
    if (!closed) clock.after(1000, adopt)
  }

  /** Goes on without the others. */
  function alone() {
    close()
    host.lead(true)
  }

  function close() {
    undo()
    closed = true
    status = undefined
    leave(0)
    leading = false
    release(0)
    channel?.close()
  }

  /** Neither leads nor waits for it. */
  function rest() {
    if (leading) host.lead(false)
    leading = false
    joined.clear()
    peers.clear()
    lend()
    release(0)
  }

  /** Somebody else leads now. */
  function stop() {
    rest()
    queue()
    hello()
  }

  /** The time of the last look: whoever comes late to it was not awake to hear an answer. */
  let looked = clock.now()
  let undo = () => {}
  function look() {
    const now = clock.now()
    const late = now - looked > 2 * PING
    looked = now
    if (leading || late || document?.hidden) heard = now
    else if (now - heard > 2 * PING) {
      heard = now
      queue(true)
    } else post({})
    if (!closed) undo = clock.after(PING, look)
  }

  scope(host).then(
    (scope) => {
      if (closed) return
      name = `tidemark 2 ${scope}`
      channel = new BroadcastChannel(name)
      channel.onmessage = ({ data }) => take(data)
      join()
      look()
    },
    // Without a credential there is nobody to share with; the server will say what is wrong.
    () => host.lead(true),
  )

  return {
    /** What is followed has changed. */
    follow() {
      hello()
      if (leading) welcome()
    },
    /** @param {Fact[]} facts */
    heard(facts) {
      if (!leading || !peers.size) return
      say({ facts })
      welcome()
    },
    /** The status has changed. */
    told() {
      if (!leading) return
      if (!peers.size || host.client.status.state !== 'denied') return say({})
      // It may be for our credential, or for what another follows: each is judged by itself, the next in line first.
      peers.clear()
      lend()
      close()
    },
    /** Whether the page is there, not frozen or in the back-forward cache. @param {boolean} on */
    page(on) {
      // From the back-forward cache a page comes back twice: by resume, and by pageshow.
      if (!channel || closed || on === there) return
      there = on
      if (on) join()
      else {
        leave(0)
        rest()
      }
    },
    close,
  }
}
