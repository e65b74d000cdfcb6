import { systemClock } from './clock.js'
import { createCollection } from './collection.js'
import { known, problem, refusal, TidemarkError } from './errors.js'
import { createFeed } from './feed.js'
import { createListeners } from './listeners.js'
import { initial, step } from './machine.js'
import { request } from './request.js'
import { minus } from './rows.js'
import { openStream } from './stream.js'
import { openSocket } from './websocket.js'
import { createWriter } from './writer.js'

/** @typedef {import('./machine.js').Transport} Transport */
/** @typedef {import('./machine.js').Phase} Phase */
/** @typedef {import('./feed.js').Frame} Frame */
/** @typedef {import('./stream.js').Connection} Connection */
/** @typedef {import('./writer.js').Write} Write */
/** @typedef {import('./writer.js').Result} Result */
/**
 * @template {object} [T=Record<string, any>]
 * @typedef {import('./collection.js').Collection<T>} Collection
 */

/**
 * @typedef {object} Options
 * @property {string} url where the server is: `http://127.0.0.1:7333`, `/` for where the page came from
 * @property {string} tenant
 * @property {Transport} [transport] `websocket` by default
 * @property {number} [heartbeat] seconds, 3 to 30, 15 by default: how often a quiet feed says that it is there. After
 *   2.5 of them in silence the client connects anew
 * @property {string} [client] who writes, as others see it in `by`; random by default
 * @property {typeof globalThis.fetch} [fetch] instead of the platform's
 * @property {new (url: string) => import('./websocket.js').Socket} [WebSocket] instead of the platform's; Node 20 has
 *   none
 * @property {AbortSignal} [signal] closes the client
 * @property {import('./clock.js').Clock} [clock] time and chance, for tests
 */

/**
 * How the feed is. The same object until something but the cursor changes.
 * @typedef {object} Status
 * @property {Phase} state `offline`: it will come back by itself, or nothing is followed (`reason` is `idle`);
 *   `closed`: it will not, unless setTransport, start or subscribe is called, or never after close
 * @property {Transport} transport
 * @property {string | undefined} cursor how far the feed has come, as its last `live` said
 * @property {number} since ms since 1970
 * @property {string} reason why it is offline or closed, else empty: an error's code (`unavailable` when there is no
 *   answer), an `end` frame's reason, or `idle`, `silent` (no frame for too long), `ended`, `cut off`, `nothing new` (a
 *   poll was answered at once without need), `no websocket` (the server answers, but not with one), `closed`
 */

/**
 * No method needs its `this`.
 * @typedef {object} Client
 * @property {<T extends object = Record<string, any>>(name: string) => Collection<T>} collection the same object for
 *   the same name. Throws `bad-name`
 * @property {(writes: Write[], options?: {atomic?: boolean}) => Promise<Result[]>} write up to 500 changes, as one
 *   transaction (atomic, the default: all or nothing, and rejects if it is refused), or each for itself (then each
 *   result has a status of its own)
 * @property {Status} status
 * @property {(fn: (status: Status) => void) => () => void} onStatus returns its undo
 * @property {(fn: (error: TidemarkError) => void) => () => void} onError what the client can't mend by itself, or what
 *   the server should not have sent; returns its undo. Without a listener errors go to the console
 * @property {(transport: Transport) => void} setTransport at any moment; the cursors carry over
 * @property {(name: string) => string | undefined} cursor how far a collection has come
 * @property {() => Promise<void>} close ends the feed and gives up writes that are under way; resolves when nothing
 *   is left running. For good
 */

/** As many collections fit in one feed. */
const MOST = 256
const NAME = /^[\w-]{1,64}(\/[\w-]{1,64}){0,7}$/

/**
 * A client of one tenant. It connects when the first collection is followed, and has one feed for all of them.
 * Throws a TypeError for a url that is none.
 * @param {Options} options
 * @returns {Client}
 */
export function createClient(options) {
  // 128 random bits: an id that came twice would be taken for the write that it once was. No crypto.randomUUID, which
  // pages over plain http do not have.
  const token = crypto.getRandomValues(new Uint32Array(4)).join('')
  const { url, tenant, transport = 'websocket', heartbeat = 15, client = token, signal } = options
  const { fetch = globalThis.fetch, WebSocket = globalThis.WebSocket, clock = systemClock } = options
  const base = new URL(url.replace(/\/*$/, `/v1/${tenant}/`), globalThis.location?.href)

  /** @type {Map<string, import('./collection.js').Member>} */
  const members = new Map()
  /** @type {typeof members} */
  const followed = new Map()
  /** @type {ReturnType<typeof createListeners<Status>>} */
  const statusListeners = createListeners()
  /** @type {ReturnType<typeof createListeners<TidemarkError>>} */
  const errorListeners = createListeners()
  const feed = createFeed((name) => followed.get(name)?.rows)

  /** @type {Connection | undefined} */
  let connection
  /** Which opening it is of. One that was dropped may still speak; it is not heard. */
  let current = 0
  /** The frame that it has come to, `live` or `next`. */
  let last = ''
  /** @type {string | undefined} */
  let cursor
  /** Who waits for its answer to which write. @type {Map<string, (frame: Frame) => void>} */
  const replies = new Map()
  let requests = 0

  let state = initial(transport, heartbeat, clock.now())
  /** @type {Status} */
  let status
  let told = ''
  /** @type {(() => void) | false | undefined} */
  let timer
  let scheduled = false
  /** @type {Promise<void> | undefined} */
  let reading

  /**
   * The machine's driver: events in, effects out, one timer.
   * @param {import('./machine.js').Event} event
   */
  function act(event) {
    const { state: next, effects } = step(state, event, clock.now(), clock.random())
    state = next
    for (const effect of effects) effect === 'open' ? open() : drop()
    if (timer) timer()
    timer = state.due < Infinity && clock.after(state.due - clock.now(), () => act({ type: 'wake' }))
    subscribe()
    settle()
  }

  /** Tells what has changed: the rows when all of them are in place, then the status, so that live means complete. */
  function settle() {
    for (const tell of [...followed.values()].map((member) => member.take())) tell?.()
    const { phase, transport, since, reason } = state
    const now = phase + transport + reason
    if (now === told) return
    told = now
    status = {
      state: phase,
      transport,
      get cursor() {
        return cursor
      },
      since,
      reason,
    }
    statusListeners.tell(status)
  }

  /** @param {TidemarkError} error */
  function report(error) {
    if (errorListeners.size) errorListeners.tell(error)
    else console.error(error)
  }

  // Connections.

  function open() {
    const { transport, wait } = state
    const mine = ++current
    last = ''
    feed.begin(followed.keys())

    /**
     * @template T
     * @param {(arg: T) => void} fn
     */
    const heard = (fn) => (/** @type {T} */ arg) => {
      if (mine === current) fn(arg)
    }

    /** @param {any} query */
    const url = (query) => {
      const search = new URLSearchParams({ heartbeat, ...query })
      for (const [name, { rows }] of followed) search.append('c', rows.cursor ? `${name}@${rows.cursor}` : name)
      return `${base}feed?${search}`
    }

    /**
     * @param {any} query
     * @param {(lines: string[]) => void} onLines
     * @param {() => void} onEnd
     */
    const read = (query, onLines, onEnd) => {
      const stream = openStream(fetch, url(query), query.transport === 'sse', heard(onLines))
      reading = stream.done.then(heard(onEnd), heard(failed))
      connection = stream
    }

    if (transport !== 'websocket') return read({ transport, wait }, receive, () => act({ type: 'answered', last }))
    try {
      const lost = heard((/** @type {TidemarkError} */ error) => {
        if (state.phase !== 'connecting' || error.retry === null) failed(error)
        else {
          // A WebSocket that fails before it opens can't say why. The same request as a poll can.
          const none = () => act({ type: 'over', reason: 'no websocket', retry: 0 })
          read({ transport: 'poll', wait: 0, limit: 1 }, () => {}, none)
        }
      })
      connection = openSocket(WebSocket, url({ transport }), heard(receive), heard(report), lost)
    } catch (error) {
      failed(new TidemarkError('bad-request', `give a WebSocket: ${error}`))
    }
  }

  function drop() {
    current++
    connection?.close()
    connection = undefined
    for (const reply of replies.values()) reply({ type: '' })
    replies.clear()
  }

  /** @param {unknown} cause */
  function failed(cause) {
    const error = known(cause)
    const { code, retry } = error
    act({ type: 'over', reason: code, retry })
    if (retry === null || code === 'bad-frame') report(error)
  }

  /** @param {string[]} lines that came together */
  function receive(lines) {
    const mine = current
    const texts = lines.filter((line) => line.trim())
    let heartbeat = 0
    let live = false
    let news = 0
    /** @type {unknown} */
    let error
    try {
      for (const text of texts) {
        /** @type {Frame} */
        const frame = JSON.parse(text)
        const { type, id = '0' } = frame
        if (feed.take(frame)) news++
        if (type === 'open') heartbeat = frame.heartbeat ?? 0
        if (type === 'next') last = type
        if (type === 'live') {
          last = type
          cursor = frame.cursor
          live = complete()
        }
        if (type === 'reset') {
          news = -Infinity
          live = false
        }
        if (type === 'end') throw new TidemarkError(`${frame.reason}`, 'the server ended the feed', frame)
        const reply = replies.get(id)
        replies.delete(id)
        if (reply) reply(frame)
        else if (type === 'error') {
          // What can't be followed ends the feed, as it would on the other transports.
          const error = problem(frame)
          if ([...feed.asked.values()].includes(id)) throw error
          report(error)
        }
      }
    } catch (cause) {
      error = known(cause, 'bad-frame')
    }
    // Whoever was told something may have changed the transport meanwhile.
    if (mine === current && texts.length) act({ type: 'heard', heartbeat, live, news })
    if (mine === current && error) failed(error)
  }

  /**
   * @param {string} type
   * @param {string} fields JSON
   */
  function send(type, fields) {
    const id = `${++requests}`
    connection?.send?.(`{"type":"${type}","id":"${id}",${fields.slice(1)}`)
    return id
  }

  // What is followed.

  /** Once for all that is followed and left in one go, so that a page that mounts or remounts connects once. */
  function refollow() {
    if (scheduled) return
    scheduled = true
    queueMicrotask(() => {
      scheduled = false
      // What a WebSocket brings too much of is told to it, without a word to the machine.
      const changed = !complete() || (!connection?.send && minus(feed.asked, followed).length > 0)
      act({ type: 'want', wanted: followed.size > 0, changed })
    })
  }

  /** Whether the connection carries all that is followed. While a `subscribe` is under way, live is not said of it. */
  function complete() {
    return [...followed.keys()].every((name) => feed.asked.get(name) === '')
  }

  /** Brings what an open WebSocket carries in line with what is followed. */
  function subscribe() {
    if (state.phase === 'connecting' || !connection?.send) return
    const gone = minus(feed.asked, followed)
    const added = minus(followed, feed.asked)
    if (gone.length) {
      send('unsubscribe', JSON.stringify({ collections: gone }))
      for (const name of gone) feed.asked.delete(name)
    }
    if (added.length) {
      const collections = added.map((name) => ({ name, cursor: followed.get(name)?.rows.cursor }))
      const id = send('subscribe', JSON.stringify({ collections }))
      for (const name of added) feed.asked.set(name, id)
    }
  }

  // Writes.

  const writer = createWriter(clock, (body, first, signal) =>
    // A second try goes by POST: a connection that died of the first would die of it again.
    first && connection?.send && state.phase === 'live'
      ? new Promise((resolve) => {
          replies.set(send('write', body), resolve)
        })
      : request(fetch, `${base}changes`, {
          method: 'POST',
          headers: { 'content-type': 'application/json' },
          body,
          signal,
        }).then((response) => response.json()),
  )

  /** @type {Client['write']} */
  async function write(writes, { atomic = true } = {}) {
    const changes = writes.map((change) => ({ id: `${token}-${++requests}`, ...change }))
    const answer = await writer.send(JSON.stringify({ client, atomic, changes }))
    if (atomic && refusal(answer)) throw problem(answer, 409)
    feed.wrote(answer.cursor, changes, answer.results)
    settle()
    return answer.results
  }

  async function close() {
    signal?.removeEventListener('abort', close)
    writer.close()
    act({ type: 'close' })
    await reading
  }

  settle()
  signal?.addEventListener('abort', close)
  if (signal?.aborted) close()

  return {
    collection(name) {
      if (!NAME.test(name)) throw new TidemarkError('bad-name', `${name} does not match ${NAME}`)
      const member =
        members.get(name) ??
        createCollection(
          name,
          (member, on) => {
            if (on && !followed.has(name) && followed.size >= MOST) {
              throw new TidemarkError('too-many', `more than ${MOST} collections`)
            }
            if (on) followed.set(name, member)
            else followed.delete(name)
            refollow()
          },
          write,
        )
      members.set(name, member)
      return /** @type {any} */ (member.collection)
    },
    write,
    get status() {
      return status
    },
    onStatus: statusListeners.add,
    onError: errorListeners.add,
    setTransport: (transport) => act({ type: 'transport', transport }),
    cursor: (name) => members.get(name)?.rows.cursor,
    close,
  }
}
