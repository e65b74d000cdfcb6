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
 *   the server does not take it any more, and some time before the end of a JWT. What it throws is told to onError, the
 *   first time, and it is asked again with pauses
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
 * What the core offers to what goes beyond one page and one moment.
 * @typedef {object} Host
 * @property {URL} base
 * @property {Options} options
 * @property {import('./clock.js').Clock} clock
 * @property {Client} client
 * @property {Map<string, Member>} followed
 * @property {(name: string) => Member} member
 * @property {() => string | undefined | Promise<string | undefined>} bearer the credential
 * @property {string} [subject] whose rows are shared or kept: nobody else's credential is used then
 * @property {(lead: boolean) => void} lead whether this client connects itself
 * @property {(event: import('./machine.js').Event) => void} act
 * @property {(status: Status) => void} show the status of whoever leads
 * @property {import('./writer.js').Transmit} transmit
 * @property {(entry: import('./writer.js').Entry, optimistic: boolean) => Promise<Result[]>} submit
 * @property {(error: unknown) => void} report
 */
/**
 * What sends the writes, and all that may go beyond one page.
 * @typedef {object} Beyond
 * @property {(entry: import('./writer.js').Entry, guess: () => void) => Promise<import('./writer.js').Answer>} send
 *   calls guess again where other writes came before
 * @property {boolean} [leads] whether this client connects itself, from the start; true by default
 * @property {(name: string, rows: import('./rows.js').Rows) => unknown} [load] resolves when what was kept is in place
 * @property {() => void} [follow] what is followed has changed
 * @property {(facts: Fact[]) => void} [heard]
 * @property {() => boolean} [http2] whether SSE costs no more than a WebSocket
 * @property {() => unknown} [noted] resolves when that may be known, after an answer
 * @property {(network: string) => import('./machine.js').Network | undefined} [recall] what is known of a network
 * @property {(network: string, net: import('./machine.js').Network) => void} [remember]
 * @property {() => void} [told] the status has changed
 * @property {(on: boolean) => void} [page] whether the page is there, not frozen or in the back-forward cache
 * @property {() => unknown} [close] resolves when nothing is left running
 */

const NAME = /^[\w-]{1,64}(\/[\w-]{1,64}){0,7}$/

/**
 * A client of one tenant. It connects when the first collection is followed, and has one feed for all of them.
 * Throws a TypeError for a url, tenant or transport that is none.
 * @param {Options} options
 * @param {(host: Host) => Beyond} createBeyond
 * @returns {Client}
 */
export function createCore(options, createBeyond) {
  /** As many collections fit in one feed. */
  const MOST = 256
  /** A write without an answer for so long, in ms, may be waiting for the connection that the feed holds. */
  const STUCK = 3000
  /** One try, in ms. Then the answer counts as lost. */
  const TRY = 30e3
  /** A credential is not renewed before its end if that is nearer than so, in ms: the server says when it is over, too. */
  const SOON = 3000
  /** A URL of more characters is written shorter: servers and proxies take some 8,000. */
  const BRIEF = 4000
  /** A message of fewer characters has less than the 1 MiB that a server takes. */
  const LONG = 3e5
  /** And a WebSocket that does not answer one for so long, in ms, does not hear us. */
  const DEAF = 10e3

  // 128 random bits: an id that came twice would be taken for the write that it once was.
  const token = random(32)
  const { url, tenant, heartbeat = 15, client: writer = token, signal, getToken } = options
  const { fetch = globalThis.fetch, WebSocket = globalThis.WebSocket, clock = systemClock } = options
  const base = new URL(`${url}`.replace(/\/*$/, `/v1/${tenant}/`), globalThis.location?.href)
  if (url == null || !/^https?:$/.test(base.protocol) || base.username) throw new TypeError('url: http(s)://host or /')
  if (tenant == null || !/^[\w-]{1,64}$/.test(tenant)) throw new TypeError(`not a tenant: ${tenant}`)

  /** @type {Map<string, Member>} */
  const members = new Map()
  /** @type {typeof members} */
  const followed = new Map()
  /** @type {import('./listeners.js').Listeners<Status>} */
  const [onStatus, tellStatus] = createListeners()
  /** @type {import('./listeners.js').Listeners<TidemarkError>} */
  const [onError, tellError, errorListeners] = createListeners()

  /**
   * What is connected: what it was asked for, as its feed says, what ends it, how to speak to it once that can be, and
   * the credential that it lives on, with the id of the frame that gave it. One that was dropped is here no more; it may
   * still speak, but is not heard.
   * @typedef {{transport: Transport, asked: Map<string, string>, abort: AbortController, send?: (text: string) => void,
   *   bearing?: string, auth?: string}} Link
   * @type {{poll?: Link, stream?: Link}}
   */
  const links = {}
  /** @type {string | undefined} */
  let cursor
  /** The write that was sent over the WebSocket, and waits for its answer. */
  let sent = /** @type {{id?: string, answer?: (frame: object) => void}} */ ({})
  let requests = 0
  /** The credential; when it is over, and when the next one is due: as far as it says so itself, and it is taken. */
  let bearing = /** @type {string | undefined} */ (undefined)
  let ends = 0
  let dueToken = Infinity
  /** @type {Promise<string | undefined> | undefined} */
  let asking
  /** What the server said of the credential that there is: it is not tried again by itself. @type {TidemarkError | undefined} */
  let verdict
  /** Whether there was none the last time that one was asked for. */
  let lacking = false
  /** Whether the credential was renewed since the feed brought anything: once is enough. */
  let renewed = false

  const bearer = () => (clock.now() < ends ? bearing : ask())

  /** Asks for the next credential. Until it comes the one that there is may be used. */
  const ask = () =>
    (asking ??= renew().finally(() => {
      asking = undefined
      const left = ends - clock.now()
      const pause = left - (1 + clock.random()) * Math.min(60e3, 1000 + left / 10)
      if (pause > SOON) dueToken = clock.now() + pause
    }))

  async function renew() {
    dueToken = Infinity
    /** @type {string | undefined} */
    let token
    try {
      token = await getToken?.()
      lacking = false
    } catch (cause) {
      // Once, and then it is asked again in silence.
      if (!lacking) report(cause)
      lacking = true
      throw cause
    }
    const { exp, iat = 0, sub = '' } = claims(token)
    if (/[^!-~]/.test(`${token}`) || (host.subject ?? sub) !== sub) {
      throw unfit('forbidden', 'not a token of this user')
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
  }

  /** Whether the network loses the query of a url, so that it goes as part of the path. */
  let bare = ''
  let leading = true
  /** Answers from the past may be taken from a cache once, but not by whoever was further already. */
  let lived = false
  let choice = options.transport ?? 'auto'
  /** Which network it is, as the server tells them apart. */
  let network = ''

  let state = initial([], false, heartbeat, clock.now())
  /** @type {Status} */
  let status
  let told = ''
  /** Of the timer. @type {(() => void) | undefined} */
  let undo
  let scheduled = false
  /** @type {Set<Promise<void>>} */
  const running = new Set()
  /** Facts for others, until all that came together is in place. @type {Fact[]} */
  const facts = []

  const find = (/** @type {string} */ name) => members.get(name)?.rows

  /** Whether a connection that begins now can say all that is new of what is followed. */
  const whole = () => [...followed.values()].every(({ rows }) => rows.cursor)

  /**
   * The machine's driver: events in, effects out, one timer.
   * @param {import('./machine.js').Event} event
   */
  function act(event) {
    const { net } = state
    const { state: next, effects } = step(state, event, whole(), clock.now(), clock.random())
    state = next
    if (state.net !== net) beyond.remember?.(network, state.net)
    for (const effect of effects) {
      const kind = /** @type {'poll' | 'stream'} */ (effect.replace('no ', ''))
      links[kind]?.abort.abort()
      delete links[kind]
      if (kind === 'stream') sent.answer?.({})
      if (effect === kind) open(kind)
    }
    subscribe()
    const wake = () => act({ type: 'wake' })
    const at = due(state)
    undo?.()
    if (at < Infinity) {
      if (clock.now() >= dueToken) ask().then(wake, wake)
      undo = clock.after(Math.min(at, dueToken) - clock.now(), wake)
    }
    settle()
  }

  /** Tells what has changed: the rows when all of them are in place, then the status, so that live means complete. */
  function settle() {
    for (const tell of [...members.values()].map((member) => member.take())) tell?.()
    beyond.heard?.(facts.splice(0))
    if (leading) {
      const { phase, since, reason, why, stream, proven, fixed, order } = state
      show({
        state: phase === 'closed' ? 'offline' : phase,
        transport: (proven && stream) || (fixed && order[0]) || 'poll',
        cursor,
        since,
        reason,
        why,
      })
    }
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
    tellStatus(status)
    beyond.told?.()
  }

  /** @param {unknown} cause */
  function report(cause) {
    const error = known(cause)
    if (errorListeners.size) tellError(error)
    else console.error(error)
  }

  /** The streams to try, best first. */
  function order() {
    /** @type {Stream[]} */
    const streams = ['websocket', 'sse']
    if (beyond.http2?.()) streams.reverse()
    return streams.filter((s) => (choice === 'auto' ? s === 'sse' || WebSocket : s === choice))
  }

  // Connections.

  /**
   * Fetches with the credential, and with a new one where the server does not take it. Throws a TidemarkError for an
   * answer that is not ok. Retry-After counts in seconds; as a date, which no Tidemark sends, it is left to backoff.
   * @param {string} path
   * @param {RequestInit} init
   * @param {boolean} [again]
   * @returns {Promise<Response>}
   */
  async function request(path, init, again) {
    const token = await bearer()
    const headers = { ...init.headers, ...(token && { authorization: `Bearer ${token}` }) }
    const response = await fetch(base + path, { cache: 'no-store', ...init, headers })
    const { ok, status } = response
    if (ok) return response
    if (status === 401) {
      if (token === bearing) ends = 0
      if (getToken && !again) return request(path, init, true)
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
    const websocket = transport === 'websocket'
    const feed = createFeed((fact) => {
      facts.push(fact)
      return fold(fact, find)
    })
    const { asked } = feed
    const abort = new AbortController()
    const { signal } = abort
    /** @type {Link} */
    const link = { transport, asked, abort }
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
      let { code, status, said, retry } = error
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
            const before = network
            network = frame.network ?? ''
            if (network !== before) {
              act({ type: 'network', net: beyond.recall?.(network) })
            }
          }
          if (type === 'tick') ticked = true
          if (frame.cursor) last = type
          if (type === 'live') {
            cursor = frame.cursor
            live = covers()
            lived ||= live
            if (live) renewed = false
          }
          if (type === 'reset') {
            news = -Infinity
            live = false
          }
          if (type === 'end') throw unfit(`${frame.reason}`, frame.detail ?? 'the feed was ended', frame.retry)
          if (id && id === sent.id) sent.answer?.(frame)
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

    /** A WebSocket is told of what is followed once it is open. @param {(text: string) => void} send */
    const opened = (send) => {
      link.send = send
      if (mine()) subscribe()
    }

    try {
      /** @type {any} */
      const query = { transport, heartbeat: quiet(state, state.deaths ? CAREFUL : heartbeat, 3) }
      if (poll) query.wait = state.wait
      if (poll && state.limit) query.limit = state.limit
      if (lived) query._ = random(9)
      if (websocket && getToken) {
        const answer = await request('tickets', { method: 'POST', signal })
        link.bearing = bearing
        query.ticket = (await answer.json()).ticket
        if (!mine()) return
      }
      /** @type {[name: string, cursor: string | undefined][]} */
      const starts = websocket ? [] : [...followed].map(([name, { rows }]) => [name, rows.ask()])
      for (const [name] of starts) asked.set(name, '')
      /** @param {string} [common] the cursor of those for which none is named */
      const search = (common) => {
        const params = new URLSearchParams(query)
        if (common) params.append('cursor', common)
        for (const [name, cursor = common?.replace(/-.*/, '-0')] of starts) {
          params.append('c', cursor && cursor !== common ? `${name}@${cursor}` : name)
        }
        return `${params}`
      }
      let path = `feed${bare || '?'}${search()}`
      if (path.length > BRIEF) {
        const common = starts.find(([, cursor]) => cursor)?.[1]
        path = `feed${bare || '?'}${search(common)
          .replace(/%40/g, '@')
          .replace(/%2F/g, bare ? '$&' : '/')}`
      }
      const done = websocket
        ? openSocket(WebSocket, base + path, signal, opened, receive)
        : openStream(request, path, !poll, abort, receive)
      running.add(done)
      await done.finally(() => running.delete(done))
    } catch (cause) {
      return fail(cause)
    }
    if (poll) await beyond.noted?.()
    if (!mine()) return
    if (poll) state = { ...state, order: order() }
    act({ type: 'answered', poll, last })
  }

  /**
   * @param {Link} link
   * @param {string} type
   * @param {object} fields
   */
  function send(link, type, fields) {
    const id = `${++requests}`
    link.send?.(JSON.stringify({ type, id, ...fields }))
    return id
  }

  // What is followed.

  /** Once for all that is followed and left in one go, so that a page that mounts or remounts connects once. */
  function refollow() {
    if (scheduled) return
    scheduled = true
    queueMicrotask(async () => {
      // What was kept comes first, so that the server is asked for no more than what is new.
      for (const [name, { rows }] of followed) await beyond.load?.(name, rows)
      scheduled = false
      want()
      beyond.follow?.()
    })
  }

  function want() {
    let changed = false
    for (const link of Object.values(links)) {
      const { transport, asked } = link
      const collections = minus(asked, followed)
      for (const name of collections) asked.delete(name)
      if (collections[0]) send(link, 'unsubscribe', { collections })
      // A WebSocket that is not open yet will be told of everything once it is.
      if (transport !== 'websocket' || link.send) changed ||= !!minus(followed, asked)[0]
    }
    act({ type: 'want', wanted: leading && followed.size > 0, changed, told: !!links.stream?.send })
  }

  /** Brings what an open WebSocket carries, and may, in line with what is followed, and with the credential. */
  function subscribe() {
    const link = links.stream
    if (!link?.send) return
    if (bearing && link.bearing !== bearing) {
      link.bearing = bearing
      link.auth = send(link, 'auth', { token: bearing })
    }
    const added = minus(followed, link.asked)
    if (!added[0]) return
    const id = send(link, 'subscribe', { collections: added.map((name) => ({ name, cursor: find(name)?.ask() })) })
    for (const name of added) link.asked.set(name, id)
  }

  // Writes.

  /** Whether the last try of a write went over a WebSocket. */
  let oversocket = false
  /** Ends the try that is under way. */
  let abort = new AbortController()

  /** Nothing is written any more once the client is closed. */
  function alive() {
    if (state.phase === 'closed') throw closed()
  }

  /** @type {import('./writer.js').Transmit} */
  async function transmit(body, first) {
    alive()
    const open = () => (state.proven && links.stream?.send ? links.stream : undefined)
    const text = JSON.stringify(body)
    // What was lost on a WebSocket goes on by POST: the next one would die of it again. So would one of too long a message.
    const socket = (first || !oversocket) && text.length < LONG ? open() : undefined
    oversocket = !!socket
    abort = new AbortController()
    const { signal } = abort
    const undo = [
      clock.after(socket ? DEAF : STUCK, () => {
        act(socket ? { type: 'over', reason: 'mute', retry: 0 } : { type: 'stuck' })
        // It may wait for the connection that the WebSocket has.
        if (open()) abort.abort('no answer')
      }),
      clock.after(TRY, () => abort.abort('no answer')),
    ]
    try {
      const answer = await (socket
        ? new Promise((answer) => {
            sent = { id: send(socket, 'write', body), answer }
          })
        : request('changes', {
            method: 'POST',
            headers: { 'content-type': 'application/json' },
            body: text,
            signal,
          }).then((answer) => answer.json()))
      if (Array.isArray(answer.results)) return answer
      // By POST it gets the next credential.
      if (socket && answer.status === 401) return transmit(body, false)
      throw problem(answer)
    } finally {
      for (const fn of undo) fn()
    }
  }

  /**
   * @param {import('./writer.js').Entry} entry
   * @param {boolean} optimistic
   */
  async function submit(entry, optimistic) {
    const { changes, atomic } = entry
    const guess = () => {
      if (optimistic) for (const change of changes) member(change.collection).rows.guess(change.id, change)
      settle()
    }
    try {
      guess()
      const answer = await beyond.send(entry, guess)
      if (atomic && refusal(answer)) throw problem(answer, 409)
      confirm(answer.cursor, changes, answer.results, find)
      return answer.results
    } catch (cause) {
      alive()
      throw known(cause)
    } finally {
      // In one go with the answer, so that nothing flickers.
      for (const { collection, id } of changes) find(collection)?.unguess(id)
      settle()
    }
  }

  /** @type {Client['write']} */
  async function write(writes, { atomic = true, optimistic = true } = {}) {
    alive()
    if (!writes[0]) return []
    const changes = writes.map((change) => ({
      ...change,
      id: change.id ?? `${token}-${++requests}`,
      // Made here, so that the row has its key from the first moment.
      key: change.key ?? (change.op === 'insert' ? uuid(clock.now()) : undefined),
    }))
    return submit({ client: writer, atomic, changes: JSON.parse(JSON.stringify(changes)) }, optimistic)
  }

  // The page around it.

  const look = () => act({ type: 'look' })

  /** @param {boolean} on */
  function page(on) {
    beyond.page?.(on)
    act(on ? { type: 'look', anew: true } : { type: 'hide', reason: 'hidden' })
  }

  /** @type {Record<string, (event: any) => void>} */
  const around = {
    online: look,
    offline: () => act({ type: 'hide', reason: 'offline' }),
    pagehide: () => page(false),
    pageshow: ({ persisted }) => persisted && page(true),
    freeze: () => page(false),
    resume: () => page(true),
    visibilitychange: () => document.hidden || look(),
  }
  /** Ends all listening. */
  const over = new AbortController()
  // Captured, because the last three are the document's, and need not come up to the window.
  const once = { signal: over.signal, capture: true }
  for (const type in around) globalThis.addEventListener?.(type, around[type], once)
  signal?.addEventListener('abort', close, once)

  async function close() {
    over.abort()
    const rest = beyond.close?.()
    leading = true
    act({ type: 'close' })
    for (const member of members.values()) member.close()
    abort.abort()
    await Promise.allSettled([...running, rest])
  }

  function use(transport = choice) {
    if (!/^(auto|websocket|sse|poll)$/.test(transport)) throw new TypeError(`not a transport: ${transport}`)
    if (transport === 'websocket' && !WebSocket) throw new TypeError('give a WebSocket')
    choice = transport
    act({ type: 'use', order: order(), fixed: transport !== 'auto' })
  }

  /** @param {string} name */
  function member(name) {
    if (!NAME.test(name)) throw new TidemarkError('bad-name', `not a name: ${name}`)
    let member = members.get(name)
    if (!member) {
      member = createCollection(
        name,
        (member, on) => {
          if (!on) followed.delete(name)
          else if (followed.has(name) || followed.size < MOST) {
            followed.set(name, member)
            member.rows.watch()
          } else throw new TidemarkError('too-many', `more than ${MOST} collections`)
          refollow()
        },
        write,
      )
      members.set(name, member)
    }
    return member
  }

  /** @type {Client} */
  const client = {
    collection: (name) => /** @type {any} */ (member(name).collection),
    write,
    get status() {
      return status
    },
    onStatus,
    onError,
    setTransport: use,
    cursor: (name) => find(name)?.cursor,
    close,
  }

  /** @type {Host} */
  const host = {
    base,
    options,
    clock,
    client,
    followed,
    member,
    bearer,
    lead(on) {
      leading = on
      if (on) refollow()
      else want()
    },
    act,
    show,
    transmit,
    submit,
    report,
  }
  const beyond = createBeyond(host)
  use()
  leading = beyond.leads ?? true
  if (signal?.aborted) close()
  return client
}

/** So many random hexadecimal digits. No crypto.randomUUID, which pages over plain http do not have. @param {number} n */
export const random = (n) =>
  crypto.getRandomValues(new Uint8Array(n)).reduce((digits, byte) => digits + (byte & 15).toString(16), '')

/** A UUIDv7: sorted by time. @param {number} now ms */
const uuid = (now) =>
  (Math.floor(now).toString(16).padStart(12, '0') + random(18)).replace(/(.{8})(.{4})(...)(...)/, '$1-$2-7$3-8$4-')
