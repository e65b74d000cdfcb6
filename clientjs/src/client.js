import { systemClock } from './clock.js'
import { createCollection } from './collection.js'
import { closed, known, problem, refusal, TidemarkError, unfit } from './errors.js'
import { confirm, createFeed, fold } from './feed.js'
import { createListeners } from './listeners.js'
import { CAREFUL, due, initial, quiet, step } from './machine.js'
import { minus } from './rows.js'
import { openStream } from './stream.js'
import { claims } from './token.js'
import { openSocket } from './websocket.js'

/** @typedef {import('./machine.js').Transport} Transport */
/** @typedef {import('./machine.js').Stream} Stream */
/** @typedef {import('./feed.js').Frame} Frame */
/** @typedef {import('./feed.js').Fact} Fact */
/** @typedef {import('./stream.js').Connection} Connection */
/** @typedef {import('./writer.js').Write} Write */
/** @typedef {import('./writer.js').Result} Result */
/** @typedef {import('./collection.js').Member} Member */
/**
 * @template {object} [T=Record<string, any>]
 * @typedef {import('./collection.js').Collection<T>} Collection
 */

/**
 * @typedef {object} Options
 * @property {string} url where the server is: `http://127.0.0.1:7333`, `/` for where the page came from
 * @property {string} tenant
 * @property {Transport | 'auto'} [transport] `auto` by default: whatever the network lets through. Another one is the
 *   only one then, but for the polls that catch up
 * @property {number} [heartbeat] seconds, 3 to 30, 15 by default: how often a quiet feed says that it is there. After
 *   2.5 of them in silence the client connects anew
 * @property {() => string | undefined | Promise<string | undefined>} [getToken] gives the credential. Asked again when
 *   the server does not take it any more, and some time before the end of a JWT
 * @property {string} [user] whose rows and tabs these are, where the credential does not say so: two users of one
 *   browser share nothing
 * @property {boolean} [tabs] one connection for all tabs of a browser that follow the same: true by default, where the
 *   browser can
 * @property {boolean} [persist] keeps rows, cursors and unsent writes in IndexedDB: false by default
 * @property {string} [client] who writes, as others see it in `by`; random by default
 * @property {typeof globalThis.fetch} [fetch] instead of the platform's
 * @property {new (url: string) => import('./websocket.js').Socket} [WebSocket] instead of the platform's; Node 20 has
 *   none, and does without
 * @property {AbortSignal} [signal] closes the client
 * @property {import('./clock.js').Clock} [clock] time and chance, for tests
 */

/**
 * How the feed is. The same object until something but the cursor changes.
 * @typedef {object} Status
 * @property {'connecting' | 'catching-up' | 'live' | 'offline' | 'denied'} state `offline`: it will come back by itself,
 *   or nothing is followed (`reason` is `idle`), or the client was closed (`closed`). `denied`: the server refused;
 *   it is asked again, but minutes apart, or by start, subscribe or setTransport
 * @property {Transport} transport what carries the feed now
 * @property {string | undefined} cursor how far the feed has come, as its last `live` said
 * @property {number} since ms since 1970
 * @property {string} reason why it is offline or denied, else empty: an error's code (`unavailable` when there is no
 *   answer), an `end` frame's reason, or `idle`, `silent` (no frame for too long), `ended`, `cut off`, `nothing new` (a
 *   poll was answered at once without need), `hidden` (the page), `offline` (the network), `closed`
 * @property {string} why the transport last changed: `websocket: proven`, `sse: not proven`, `websocket: silent`
 */

/**
 * No method needs its `this`.
 * @typedef {object} Client
 * @property {<T extends object = Record<string, any>>(name: string) => Collection<T>} collection the same object for
 *   the same name. Throws `bad-name`
 * @property {(writes: Write[], options?: {atomic?: boolean, optimistic?: boolean}) => Promise<Result[]>} write up to 500
 *   changes, as one transaction (atomic, the default: all or nothing, and rejects if it is refused), or each for itself
 *   (then each result has a status of its own). They show at once, unless optimistic is false
 * @property {Status} status
 * @property {(fn: (status: Status) => void) => () => void} onStatus returns its undo
 * @property {(fn: (error: TidemarkError) => void) => () => void} onError what the client can't mend by itself, or what
 *   the server should not have sent; returns its undo. Without a listener errors go to the console
 * @property {(transport: Transport | 'auto') => void} setTransport at any moment; the cursors carry over
 * @property {(name: string) => string | undefined} cursor how far a collection has come
 * @property {() => Promise<void>} close ends the feed and gives up writes that are under way; resolves when nothing
 *   is left running. For good
 */

/**
 * What the core offers to what goes beyond one page: other tabs, and a store on disk.
 * @typedef {object} Host
 * @property {URL} base
 * @property {Options} options
 * @property {import('./clock.js').Clock} clock
 * @property {string} token names this client among all
 * @property {Map<string, Member>} followed
 * @property {(name: string) => Member} member
 * @property {() => string | undefined | Promise<string | undefined>} bearer the credential
 * @property {string} [subject] whose rows are shared or kept: nobody else's credential is used then
 * @property {(facts: Fact[], names: Set<string>) => void} apply takes what another tab has heard of these
 * @property {(lead: boolean) => void} lead whether this client connects itself
 * @property {() => Promise<void>} adopt
 * @property {() => void} wake looks whether anything is due
 * @property {Status} status
 * @property {(status: Status) => void} show the status of whoever leads
 * @property {(error: unknown) => void} report
 */
/**
 * @typedef {object} Tabs
 * @property {() => void} follow what is followed has changed
 * @property {(facts: Fact[]) => void} heard
 * @property {() => void} told the status has changed
 * @property {(on: boolean) => void} page whether the page is there, not frozen or in the back-forward cache
 * @property {() => void} close
 */
/**
 * @typedef {object} Store
 * @property {(name: string, rows: import('./rows.js').Rows) => Promise<void>} load
 * @property {(facts: Fact[]) => void} heard
 * @property {(entry: import('./writer.js').Entry) => Promise<unknown>} keep
 * @property {(entry: import('./writer.js').Entry) => void} drop
 * @property {() => Promise<import('./writer.js').Entry[]>} adopt the writes of clients that are gone
 * @property {() => Promise<void>} close
 */

/** As many collections fit in one feed. */
const MOST = 256
const NAME = /^[\w-]{1,64}(\/[\w-]{1,64}){0,7}$/
/** A write without an answer for so long, in ms, may be waiting for the connection that the feed holds. */
const STUCK = 3000
/** One try, in ms. Then the answer counts as lost. */
const TRY = 30e3
/** A credential is not renewed before its end if that is nearer than so, in ms: the server says when it is over, too. */
const SOON = 3000
/** And a WebSocket that does not answer one for so long, in ms, does not hear us. */
const DEAF = 10e3

/**
 * A client of one tenant. It connects when the first collection is followed, and has one feed for all of them.
 * Throws a TypeError for a url that is none.
 * @param {Options} options
 * @param {object} more
 * @param {typeof import('./writer.js').createWriter} more.createWriter
 * @param {(host: Host) => Tabs | undefined} [more.createTabs]
 * @param {(host: Host) => Promise<Store | void> | undefined} [more.createStore] rejects never
 * @returns {Client}
 */
export function createCore(options, { createWriter, createTabs, createStore }) {
  // 128 random bits: an id that came twice would be taken for the write that it once was. No crypto.randomUUID, which
  // pages over plain http do not have.
  const token = crypto.getRandomValues(new Uint32Array(4)).join('')
  const { url, tenant, heartbeat = 15, client = token, signal, getToken } = options
  const { fetch = globalThis.fetch, WebSocket = globalThis.WebSocket, clock = systemClock } = options
  const base = new URL(url.replace(/\/*$/, `/v1/${tenant}/`), globalThis.location?.href)

  /** @type {Map<string, Member>} */
  const members = new Map()
  /** @type {typeof members} */
  const followed = new Map()
  /** @type {ReturnType<typeof createListeners<Status>>} */
  const statusListeners = createListeners()
  /** @type {ReturnType<typeof createListeners<TidemarkError>>} */
  const errorListeners = createListeners()

  /**
   * What is connected: what it was asked for, as its feed says, its ends once it has them, and the credential that it
   * lives on, with the id of the frame that gave it. One that was dropped is here no more; it may still speak, but is
   * not heard.
   * @typedef {{transport: Transport, asked: Map<string, string>, connection?: Pick<Connection, 'close' | 'send'>,
   *   bearing?: string, auth?: string}} Link
   * @type {{poll?: Link, stream?: Link}}
   */
  const links = {}
  /** @type {string | undefined} */
  let cursor
  /** The write that was sent over the WebSocket, and waits for its answer. */
  let sent = { id: '', answer: (/** @type {any} */ _) => {} }
  let requests = 0
  /** The credential; when it is over, and when the next one is due: as far as it says so itself, and it is taken. */
  let bearing = /** @type {string | undefined} */ (undefined)
  let ends = 0
  let dueToken = Infinity
  /** @type {Promise<string | undefined> | undefined} */
  let asking
  /** What the server said of the credential that there is: it is not tried again by itself. @type {TidemarkError | undefined} */
  let verdict
  /** Whether the credential was renewed since the feed brought anything: once is enough. */
  let renewed = false

  const bearer = () => (clock.now() < ends ? bearing : ask())

  /** Asks for the next credential. Until it comes the one that there is may be used. */
  function ask() {
    asking ??= (async () => {
      dueToken = Infinity
      const token = await getToken?.()
      const { exp, iat = 0, sub = '' } = claims(token)
      if (/[^!-~]/.test(`${token}`) || (host.subject ?? sub) !== sub) {
        throw unfit('forbidden', 'getToken gave no token of this user')
      }
      const error = verdict
      verdict = undefined
      if (error && token === bearing) throw error
      bearing = token
      // It lives no longer than from its beginning, whatever our clock says. Where that says that it is over already,
      // nothing is known.
      const left = 1000 * Math.min(exp - clock.now() / 1000, exp - iat)
      ends = left > 0 ? clock.now() + left : Infinity
      return token
    })().finally(() => {
      asking = undefined
      const left = ends - clock.now()
      const pause = left - (1 + clock.random()) * Math.min(60e3, 1000 + left / 10)
      if (pause > SOON) dueToken = clock.now() + pause
    })
    return asking
  }

  /** Whether the network loses the query of a url, so that it goes as part of the path. */
  let bare = ''
  let leading = true
  /** Answers from the past may be taken from a cache once, but not by whoever was further already. */
  let lived = false
  /** Which HTTP it is, once that is known. */
  let protocol = ''

  let state = initial([], false, heartbeat, clock.now())
  /** @type {Status} */
  let status
  let told = ''
  /** @type {(() => void) | false | undefined} */
  let timer
  let scheduled = false
  /** @type {Set<Promise<void>>} */
  const running = new Set()
  /** Facts for others, until all that came together is in place. @type {Fact[]} */
  let facts = []

  const find = (/** @type {string} */ name) => members.get(name)?.rows
  const whole = () => [...followed.values()].every(({ rows }) => rows.cursor)

  /**
   * The machine's driver: events in, effects out, one timer.
   * @param {import('./machine.js').Event} event
   */
  function act(event) {
    const { net } = state
    const { state: next, effects } = step(state, event, whole(), clock.now(), clock.random())
    state = next
    if (state.net !== net) remember()
    for (const effect of effects) {
      const kind = /** @type {'poll' | 'stream'} */ (effect.replace('no ', ''))
      links[kind]?.connection?.close()
      delete links[kind]
      if (kind === 'stream') sent.answer({})
      if (effect === kind) open(kind)
    }
    subscribe()
    const wake = () => act({ type: 'wake' })
    const at = due(state)
    if (timer) timer()
    timer = false
    if (at < Infinity) {
      if (clock.now() >= dueToken) ask().then(wake, wake)
      timer = clock.after(Math.min(at, dueToken) - clock.now(), wake)
    }
    settle()
  }

  /** Tells what has changed: the rows when all of them are in place, then the status, so that live means complete. */
  function settle() {
    for (const tell of [...members.values()].map((member) => member.take())) tell?.()
    if (facts.length) {
      const batch = facts
      facts = []
      tabs?.heard(batch)
      stored((store) => store.heard(batch))
    }
    if (leading || !status) {
      const { phase, since, reason, why, stream, proven, fixed, order } = state
      show({
        state: phase === 'closed' ? 'offline' : phase,
        transport: stream && proven ? stream : (fixed && order[0]) || 'poll',
        cursor,
        since,
        reason,
        why,
      })
    }
    writer.run()
  }

  /** @param {Status} now */
  function show(now) {
    cursor = now.cursor
    const text = now.state + now.transport + now.reason + now.why
    if (text === told) return
    told = text
    status = {
      ...now,
      get cursor() {
        return cursor
      },
    }
    statusListeners.tell(status)
    if (now.state === 'live') adopt()
    tabs?.told()
  }

  /** @param {TidemarkError} error */
  function report(error) {
    if (errorListeners.size) errorListeners.tell(error)
    else console.error(error)
  }

  /** @param {Fact} fact */
  function apply(fact) {
    facts.push(fact)
    return fold(fact, find)
  }

  // What worked on this network, kept for the next page.

  const memory = `tidemark ${base}`
  /** @returns {Record<string, import('./machine.js').Network>} */
  const recall = () => JSON.parse(globalThis.localStorage?.getItem(memory) ?? '{}')
  let network = ''

  function remember() {
    try {
      // The one that was used last comes first, also where it is known.
      const all = Object.entries({ [network]: state.net, ...recall(), [network]: state.net })
      globalThis.localStorage?.setItem(memory, JSON.stringify(Object.fromEntries(all.slice(0, 8))))
    } catch {
      // Without a memory each page learns anew.
    }
  }

  /** @param {string} name */
  function arrive(name) {
    if (name === network) return
    network = name
    /** @type {import('./machine.js').Network | undefined} */
    let net
    try {
      const found = recall()[name]
      if (clock.now() - /** @type {number} */ (found.at) < 864e5) net = found
    } catch {
      // Nothing is known of it.
    }
    act({ type: 'network', net })
  }

  /** A WebSocket costs no connection of the six that HTTP/1.1 has for a page; HTTP/2 has as many as one likes. */
  function order() {
    const { transport = 'auto' } = options
    // A page may have thousands of entries, so they are looked through until the answer is there, and not after.
    /** @type {any[]} */
    const entries = (!protocol && performance.getEntries?.()) || []
    protocol ||= entries.find((e) => e.name.startsWith(base.origin) && e.nextHopProtocol)?.nextHopProtocol ?? ''
    /** @type {Stream[]} */
    const streams = /^h[23]/.test(protocol) ? ['sse', 'websocket'] : ['websocket', 'sse']
    return streams.filter((s) => (transport === 'auto' ? s === 'sse' || WebSocket : s === transport))
  }

  // Connections.

  /**
   * Fetches with the credential, and with a new one where the server does not take it. Throws a TidemarkError for an
   * answer that is not ok. Retry-After counts in seconds; as a date, which no Tidemark sends, it is left to backoff.
   * @param {string} url
   * @param {RequestInit} init
   * @param {boolean} [again]
   * @returns {Promise<Response>}
   */
  async function request(url, init, again) {
    const token = await bearer()
    const headers = { ...init.headers, ...(token && { authorization: `Bearer ${token}` }) }
    const response = await fetch(url, { cache: 'no-store', ...init, headers })
    const { ok, status } = response
    if (ok) return response
    if (status === 401) {
      if (token === bearing) ends = 0
      if (getToken && !again) return request(url, init, true)
    }
    const retry = 1000 * /** @type {any} */ (response.headers.get('retry-after')) || 0
    throw problem(await response.json().catch(() => ({})), status, retry)
  }

  /**
   * Connects for all that is followed, and stays until the connection is over.
   * @param {'poll' | 'stream'} kind
   */
  async function open(kind) {
    const poll = kind === 'poll'
    const transport = poll ? kind : /** @type {Stream} */ (state.stream)
    const feed = createFeed(apply)
    const { asked } = feed
    /** @type {Link} */
    const link = { transport, asked }
    links[kind] = link
    const mine = () => links[kind] === link
    /** The last frame that says how far a poll has come. */
    let last = ''
    let ticked = false
    /** Whether it carries all that is followed. While a `subscribe` is under way, live is not said of it. */
    const covers = () => [...followed.keys()].every((name) => asked.get(name) === '')

    /** @param {unknown} cause */
    const fail = (cause) => {
      if (!mine()) return
      const error = known(cause)
      const { code, status, said } = error
      let { retry } = error
      const anew = said && retry === null && getToken && !renewed
      if (anew) {
        // With another credential it is not unchanged.
        renewed = true
        retry = 0
        if (link.bearing === bearing) {
          ends = 0
          verdict = error
        }
      }
      if (poll && !bare && status === 400) {
        // Perhaps the query was lost on the way.
        bare = '/'
        retry = 0
      }
      act({ type: 'over', poll, reason: code, retry, said, anew })
      if (state.phase === 'denied' || code === 'bad-frame') report(error)
    }

    /** @param {string[]} lines that came together */
    const receive = (lines) => {
      const texts = lines.filter((line) => line.trim())
      if (!mine() || !texts.length) return
      let heartbeat = 0
      let live = false
      let news = 0
      /** @type {unknown} */
      let error
      try {
        for (const text of texts) {
          /** @type {Frame} */
          const frame = JSON.parse(text)
          const { type, id } = frame
          if (feed.take(frame)) {
            news++
            renewed = false
          }
          if (type === 'open') {
            heartbeat = frame.heartbeat ?? 0
            link.bearing ??= bearing
            arrive(frame.network ?? '')
          }
          if (type === 'tick') ticked = true
          if (type === 'next') last = type
          if (type === 'live') {
            last = type
            cursor = frame.cursor
            live = covers()
            lived ||= live
            if (live) renewed = false
          }
          if (type === 'reset') {
            news = -Infinity
            live = false
          }
          if (type === 'end') {
            throw unfit(`${frame.reason}`, 'the server ended the feed', frame.retry)
          }
          if (id && id === sent.id) sent.answer(frame)
          else if (type === 'error') {
            // What can't be followed ends the feed, as it would on the other transports.
            const error = problem(frame)
            if ([...asked.values()].includes(`${id}`)) throw error
            if (!id || id !== link.auth) report(error)
            // A server that can't tell now leaves it what it has.
            else if (error.retry === null) throw Object.assign(error, { said: true })
          }
        }
      } catch (cause) {
        error = known(cause, 'bad-frame')
      }
      // Whoever was told something may have changed the transport meanwhile. The test of time may be passed before the
      // subscription is answered, on a long way.
      if (mine()) act({ type: 'heard', poll, heartbeat, live, news, tick: ticked && covers() })
      if (error) fail(error)
    }

    try {
      /** @type {any} */
      const query = { transport, heartbeat: quiet(state, state.deaths ? CAREFUL : heartbeat, 3) }
      if (poll) query.wait = state.wait
      if (poll && state.limit) query.limit = state.limit
      if (lived) query._ = `${token}${++requests}`
      if (transport === 'websocket' && getToken) {
        const abort = new AbortController()
        link.connection = { close: () => abort.abort() }
        const answer = await request(`${base}tickets`, { method: 'POST', signal: abort.signal })
        link.bearing = bearing
        query.ticket = (await answer.json()).ticket
        if (!mine()) return
      }
      const search = new URLSearchParams(query)
      // A WebSocket is told once it is open.
      for (const [name, { rows }] of transport === 'websocket' ? [] : followed) {
        asked.set(name, '')
        const cursor = rows.ask()
        search.append('c', cursor ? `${name}@${cursor}` : name)
      }
      const url = `${base}feed${bare || '?'}${search}`
      const connection =
        transport === 'websocket'
          ? openSocket(WebSocket, url, () => mine() && subscribe(), receive)
          : openStream(request, url, !poll, receive)
      link.connection = connection
      const { done } = connection
      running.add(done)
      await done.finally(() => running.delete(done))
    } catch (cause) {
      return fail(cause)
    }
    // Pages note a moment later which HTTP it was.
    const page = performance.getEntriesByType?.('navigation').length
    if (poll && !protocol && page) await new Promise((resolve) => clock.after(0, () => resolve(0)))
    if (!mine()) return
    if (poll) state = { ...state, order: order() }
    act({ type: 'answered', poll, last })
  }

  /**
   * @param {Link} link
   * @param {string} type
   * @param {object} fields
   */
  function send({ connection }, type, fields) {
    const id = `${++requests}`
    connection?.send?.(JSON.stringify({ type, id, ...fields }))
    return id
  }

  // What is followed.

  /** Once for all that is followed and left in one go, so that a page that mounts or remounts connects once. */
  function refollow() {
    if (scheduled) return
    scheduled = true
    queueMicrotask(async () => {
      // What was kept comes first, so that the server is asked for no more than what is new.
      for (const [name, { rows }] of followed) await stored((store) => store.load(name, rows))
      scheduled = false
      want()
      tabs?.follow()
    })
  }

  function want() {
    let changed = false
    for (const link of Object.values(links)) {
      const { transport, asked, connection } = link
      const left = minus(asked, followed)
      for (const name of left) asked.delete(name)
      if (left.length) send(link, 'unsubscribe', { collections: left })
      // A WebSocket that is not open yet will be told of everything once it is.
      if (transport !== 'websocket' || connection?.send) changed ||= minus(followed, asked).length > 0
    }
    act({ type: 'want', wanted: leading && followed.size > 0, changed, told: !!links.stream?.connection?.send })
  }

  /** Brings what an open WebSocket carries, and may, in line with what is followed, and with the credential. */
  function subscribe() {
    const link = links.stream
    if (!link?.connection?.send) return
    if (bearing && link.bearing !== bearing) {
      link.bearing = bearing
      link.auth = send(link, 'auth', { token: bearing })
    }
    const added = minus(followed, link.asked)
    if (!added.length) return
    const id = send(link, 'subscribe', { collections: added.map((name) => ({ name, cursor: find(name)?.ask() })) })
    for (const name of added) link.asked.set(name, id)
  }

  // Writes.

  /** @type {Promise<Store | void> | undefined} */
  let store
  /**
   * @template T
   * @param {(store: Store) => T} act
   */
  const stored = (act) => store?.then((store) => (store ? act(store) : undefined))
  /** @type {Tabs | undefined} */
  let tabs

  /** Settles when the writes of those that are gone are in line. @type {Promise<void> | undefined} */
  let past

  /** Whether the last try of a write went over a WebSocket. */
  let oversocket = false
  /** Ends the try that is under way. */
  let abort = new AbortController()

  /** @type {import('./writer.js').Transmit} */
  async function transmit(body, first) {
    if (state.phase === 'closed') throw closed()
    const open = () => (links.stream?.connection?.send && state.proven ? links.stream : undefined)
    // What was lost on a WebSocket goes on by POST: the next one would die of it again.
    const socket = first || !oversocket ? open() : undefined
    oversocket = !!socket
    abort = new AbortController()
    const { signal } = abort
    const timers = [
      clock.after(socket ? DEAF : STUCK, () => {
        act(socket ? { type: 'over', poll: false, reason: 'mute', retry: 0 } : { type: 'stuck' })
        // It may wait for the connection that the WebSocket has.
        if (open()) abort.abort('stuck')
      }),
      clock.after(TRY, () => abort.abort('no answer')),
    ]
    try {
      const answer = socket
        ? await new Promise((answer) => {
            sent = { id: send(socket, 'write', body), answer }
          })
        : await (
            await request(`${base}changes`, {
              method: 'POST',
              headers: { 'content-type': 'application/json' },
              body: JSON.stringify(body),
              signal,
            })
          ).json()
      if (Array.isArray(answer.results)) return answer
      // By POST it gets the next credential.
      if (socket && answer.status === 401) return transmit(body, false)
      throw problem(answer)
    } finally {
      for (const undo of timers) undo()
    }
  }

  const writer = createWriter({
    clock,
    transmit,
    ready: () => !followed.size || /catching-up|live/.test(status.state),
    keep: (entry) => stored((store) => store.keep(entry)),
    drop: (entry) => stored((store) => store.drop(entry)),
  })

  /**
   * @param {import('./writer.js').Entry} entry
   * @param {boolean} optimistic
   */
  async function submit(entry, optimistic) {
    const { changes, atomic } = entry
    const guess = () => {
      if (optimistic) for (const change of changes) member(change.collection).rows.guess(`${change.id}`, change)
    }
    try {
      guess()
      settle()
      if (past) {
        await past
        // On top of what was written before.
        guess()
      }
      const answer = await writer.send(entry)
      if (atomic && refusal(answer)) throw problem(answer, 409)
      confirm(answer.cursor, changes, answer.results, find)
      return answer.results
    } catch (cause) {
      throw state.phase === 'closed' ? closed() : known(cause)
    } finally {
      // In one go with the answer, so that nothing flickers.
      for (const { collection, id } of changes) find(collection)?.unguess(id)
      settle()
    }
  }

  /** @type {Client['write']} */
  async function write(writes, { atomic = true, optimistic = true } = {}) {
    if (state.phase === 'closed') throw closed()
    const changes = writes.map((change) => ({
      ...change,
      id: change.id ?? `${token}-${++requests}`,
      // Made here, so that the row has its key from the first moment.
      key: change.key ?? (change.op === 'insert' ? uuid(clock.now()) : undefined),
    }))
    return submit({ client, atomic, changes: JSON.parse(JSON.stringify(changes)) }, optimistic)
  }

  // The page around it.

  /** @param {boolean} on */
  function page(on) {
    tabs?.page(on)
    act(on ? { type: 'look', anew: true } : { type: 'hide', reason: 'hidden' })
  }

  /** @type {Record<string, (event: any) => void>} */
  const around = {
    online: () => act({ type: 'look', anew: false }),
    offline: () => act({ type: 'hide', reason: 'offline' }),
    pagehide: () => page(false),
    pageshow: ({ persisted }) => persisted && page(true),
    freeze: () => page(false),
    resume: () => page(true),
    visibilitychange: () => document.visibilityState === 'visible' && act({ type: 'look', anew: false }),
  }
  /** Ends all listening. */
  const over = new AbortController()
  // Captured, because the last three are the document's, and need not come up to the window.
  const once = { signal: over.signal, capture: true }
  for (const [type, fn] of Object.entries(around)) globalThis.addEventListener?.(type, fn, once)
  signal?.addEventListener('abort', close, once)

  async function close() {
    over.abort()
    writer.close()
    tabs?.close()
    leading = true
    act({ type: 'close' })
    abort.abort()
    await Promise.allSettled([...running, stored((store) => store.close())])
  }

  /** @type {Host} */
  const host = {
    base,
    options,
    clock,
    token,
    followed,
    member,
    get status() {
      return status
    },
    bearer,
    apply(facts, names) {
      for (const fact of facts) fold(fact, (name) => (names.has(name) ? find(name) : undefined))
      settle()
    },
    lead(on) {
      leading = on
      if (on) refollow()
      else want()
    },
    adopt,
    wake: () => act({ type: 'wake' }),
    show(status) {
      show(status)
      writer.run()
    },
    report: (error) => report(known(error)),
  }
  store = createStore?.(host)
  tabs = createTabs?.(host)
  leading = !tabs
  use()
  if (signal?.aborted) close()
  else past = store && adopt()

  /** Writes of tabs that are gone go on as ours. */
  async function adopt() {
    if (state.phase === 'closed') return
    const entries = (await stored((store) => store.adopt())) ?? []
    past = undefined
    for (const entry of entries) submit(entry, true).catch(report)
  }

  function use(transport = options.transport ?? 'auto') {
    if (transport === 'websocket' && !WebSocket) throw new TypeError('give a WebSocket: there is none here')
    options = { ...options, transport }
    act({ type: 'use', order: order(), fixed: transport !== 'auto' })
  }

  /** @param {string} name */
  function member(name) {
    if (!NAME.test(name)) throw new TidemarkError('bad-name', `${name} does not match ${NAME}`)
    let member = members.get(name)
    if (!member) {
      member = createCollection(
        name,
        (member, on) => {
          if (on && !followed.has(name) && followed.size >= MOST) {
            throw new TidemarkError('too-many', `more than ${MOST} collections`)
          }
          if (on) {
            followed.set(name, member)
            member.rows.watch()
          } else followed.delete(name)
          refollow()
        },
        write,
      )
      members.set(name, member)
    }
    return member
  }

  return {
    collection: (name) => /** @type {any} */ (member(name).collection),
    write,
    get status() {
      return status
    },
    onStatus: statusListeners.add,
    onError: errorListeners.add,
    setTransport: use,
    cursor: (name) => find(name)?.cursor,
    close,
  }
}

/**
 * A UUIDv7: sorted by time.
 * @param {number} now ms
 */
function uuid(now) {
  const random = Array.from(crypto.getRandomValues(new Uint8Array(18)), (byte) => (byte & 15).toString(16))
  const digits = [...Math.floor(now).toString(16).padStart(12, '0'), ...random]
  return 'xxxxxxxx-xxxx-7xxx-8xxx-xxxxxxxxxxxx'.replace(/x/g, () => `${digits.shift()}`)
}
