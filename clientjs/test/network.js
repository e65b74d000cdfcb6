/**
 * A world in memory for one page: a server that speaks the protocol, a network that is as bad as a test wants it, and
 * time that only moves when a test says so. Nothing in it waits for anything real, so hours pass in milliseconds.
 *
 *     page  --fetch, WebSocket-->  Network (Links)  -->  Server (Sessions)
 *       \_______________________ Time _________________________/
 */

/** Time for all: the world's goes on while the page sleeps. */
export class Time {
  now = 1_700_000_000_000
  /** By how much the page's clock is behind, because it stood still while the page slept. */
  lag = 0
  asleep = false
  /** Called after each thing that happened. */
  onStep = () => {}
  /** The next one last. @type {Timer[]} */
  #timers = []

  /**
   * @param {number} ms
   * @param {() => void} fn
   * @param {boolean} [page] whether it does not fire while the page sleeps
   */
  after(ms, fn, page = false) {
    const timer = { at: this.now + Math.max(0, ms), fn, page }
    this.#add(timer)
    return () => {
      const at = this.#timers.indexOf(timer)
      if (at >= 0) this.#timers.splice(at, 1)
    }
  }

  /** @param {Timer} timer */
  #add(timer) {
    let i = this.#timers.length
    while (i && this.#timers[i - 1].at <= timer.at) i--
    this.#timers.splice(i, 0, timer)
  }

  /** How many timers the page has. */
  get pending() {
    return this.#timers.filter(({ page }) => page).length
  }

  /** @param {number} ms */
  async run(ms) {
    const end = this.now + ms
    await this.settle()
    for (;;) {
      const timer = this.#timers.at(-1)
      if (!timer || timer.at > end) break
      this.#timers.pop()
      this.now = Math.max(this.now, timer.at)
      timer.fn()
      await this.settle()
    }
    this.now = end
  }

  /** All promises get their turn: nothing here waits for anything else, so one round is enough. */
  async settle() {
    await new Promise((resolve) => setImmediate(resolve))
    this.onStep()
  }

  /**
   * The page sleeps. What it would have done meanwhile it does late.
   * @param {number} ms
   * @param {boolean} stopped whether its clock stands still, as some do
   */
  async sleep(ms, stopped) {
    await this.settle()
    const held = this.#timers.filter(({ page }) => page)
    this.#timers = this.#timers.filter(({ page }) => !page)
    this.asleep = true
    await this.run(ms)
    this.asleep = false
    if (stopped) this.lag += ms
    for (const timer of held) {
      if (stopped) timer.at += ms
      this.#add(timer)
    }
  }
}

/** @typedef {{at: number, fn: () => void, page: boolean}} Timer */

/** Chance that comes again. @param {number} seed */
export const chance = (seed) => () => {
  seed = (seed + 0x6d2b79f5) | 0
  let t = Math.imul(seed ^ (seed >>> 15), 1 | seed)
  t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
  return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32
}

const HOUR = 3_600_000

/**
 * A row's newest change. Those of one transaction have neighbouring sequences.
 * @typedef {{collection: string, key: string, seq: number, txn: number, value?: any, by?: {client: string, id: string}, at: number, result?: any, noop?: boolean}} Entry
 */
/** @typedef {{collection: string, op: string, key: string, value?: any, patch?: any, if?: number, id?: string}} Change */

export class Server {
  /** Each change that took effect and was not lost since. @type {Entry[]} */
  log = []
  #epochs = 0
  #txns = 0
  seq = 0
  /** @type {Map<string, Map<string, Entry>>} */
  #entries = new Map()
  /** Of each collection: the newest tombstone that was forgotten. @type {Map<string, number>} */
  floors = new Map()
  /** What was answered to which write, for an hour. @type {Map<string, {result: any, at: number}>} */
  #ids = new Map()
  /** @type {Set<Session>} */
  sessions = new Set()
  /** What is said to all who come. @type {{status: number, retry?: number} | undefined} */
  refusal
  /** How many changes go in one batch. */
  batch = 1000
  /** How many answers to writes get lost. */
  lost = 0
  /** Whether it wants tokens, and from which one on. */
  secure = false
  oldest = 0
  issued = 0
  /** How long those live that it issues, in ms; none says so if they live for ever. */
  life = Infinity
  /** Which token a ticket stands for. @type {Map<string, string>} */
  #tickets = new Map()
  /** What it calls the place where the page is. */
  place = 'home'

  /** @param {Time} time @param {() => number} random */
  constructor(time, random) {
    this.time = time
    this.random = random
  }

  get epoch() {
    return `epoch${this.#epochs}`
  }

  get cursor() {
    return `${this.epoch}-${this.seq}`
  }

  /** @param {string} name */
  entries(name) {
    return [...(this.#entries.get(name)?.values() ?? [])]
  }

  /** @param {string} name */
  rows(name) {
    return new Map(this.entries(name).flatMap(({ key, value }) => (value ? [[key, value]] : [])))
  }

  /** @param {Entry} entry */
  #commit(entry) {
    this.log.push(entry)
    this.seq = entry.seq
    const { collection, key, by, result, at, noop } = entry
    if (!this.#entries.has(collection)) this.#entries.set(collection, new Map())
    if (!noop) this.#entries.get(collection)?.set(key, entry)
    if (by) this.#ids.set(by.id, { result, at })
  }

  /**
   * A backup comes into its place: the newest changes are lost, and other ones will get their sequences.
   * @param {number} count how many changes are lost, at least
   */
  restore(count) {
    let kept = this.log.length - count
    while (kept > 0 && this.log[kept]?.txn === this.log[kept - 1].txn) kept--
    const log = this.log.slice(0, Math.max(0, kept))
    this.#epochs++
    this.log = []
    this.seq = 0
    this.#entries.clear()
    this.#ids.clear()
    this.floors.clear()
    for (const entry of log) this.#commit(entry)
    this.end('draining', 100)
  }

  /** Rows that are gone are forgotten. */
  forget() {
    for (const [name, entries] of this.#entries) {
      for (const { key, seq, value } of [...entries.values()]) {
        if (value) continue
        entries.delete(key)
        this.floors.set(name, Math.max(seq, this.floors.get(name) ?? 0))
      }
    }
  }

  /** The last word to all. @param {string} reason @param {number} [retry] */
  end(reason, retry) {
    for (const session of [...this.sessions]) session.end(reason, retry)
  }

  /**
   * @param {Change[]} changes
   * @returns {any} the answer's body; a status of its own stands for a refusal
   */
  write(changes, client = 'others', atomic = true) {
    const at = this.time.now
    let txn = ++this.#txns
    const known = (/** @type {string | undefined} */ id) => {
      const answer = this.#ids.get(`${id}`)
      return answer && at - answer.at < HOUR ? answer.result : undefined
    }
    const row = (/** @type {Change} */ { collection, key }) => {
      const entry = this.#entries.get(collection)?.get(key)
      return entry?.value && entry
    }
    const refused = (/** @type {Change} */ change) => {
      if (known(change.id)) return ''
      if (change.if !== undefined && change.if !== (row(change)?.seq ?? 0)) return 'conflict'
      if (change.op === 'insert' && row(change)) return 'exists'
      return change.op === 'modify' && !row(change) ? 'missing' : ''
    }
    const stands = (/** @type {Change} */ change, /** @type {string} */ status) => {
      const { seq = 0, value } = row(change) || {}
      return { id: change.id, key: change.key, status, seq, value }
    }
    if (atomic && changes.some(refused)) {
      const results = changes.map((change) => stands(change, refused(change) || 'aborted'))
      return { status: 409, code: 'conflict', results }
    }
    const results = changes.map((change) => {
      const { id, collection, key, op, patch } = change
      const before = known(id)
      if (before) return { ...before, status: 'duplicate' }
      const status = refused(change)
      if (status) return stands(change, status)
      const old = row(change)
      const value = op === 'remove' ? undefined : (change.value ?? { ...old?.value, ...patch })
      const noop = op === 'remove' && !old
      const seq = this.seq + 1
      const result = { id, key, status: 'ok', seq, value }
      this.#commit({ collection, key, seq, txn, value, at, result, noop, by: id ? { client, id } : undefined })
      if (!atomic) txn = ++this.#txns
      return result
    })
    // The feed may bring it before the answer does, or after it.
    const look = () => {
      for (const session of [...this.sessions]) session.look()
    }
    if (this.random() < 0.5) look()
    else this.time.after(20, look)
    return { cursor: this.cursor, results }
  }

  /** A new token. */
  issue() {
    const n = ++this.issued
    if (this.life === Infinity) return `t.${n}`
    const claims = { n, sub: 'ann', iat: this.time.now / 1000, exp: (this.time.now + this.life) / 1000 }
    return `t.${Buffer.from(JSON.stringify(claims)).toString('base64url')}.signature`
  }

  /** What it makes of a credential: when it ends, and why it does not count, if so. @param {string} token */
  judge(token) {
    const [, rest, signature] = token.split('.')
    const { n, exp = Infinity } = signature
      ? JSON.parse(`${Buffer.from(rest, 'base64url')}`)
      : { n: Number(rest ?? 'none') }
    const end = 1000 * exp
    if (!this.secure) return { end: Infinity, why: '' }
    return { end, why: !(n >= this.oldest) ? 'revoked' : end <= this.time.now ? 'expired' : '' }
  }

  /** All tokens that there are are taken back. Feeds learn of it at their next heartbeat. */
  revoke() {
    this.oldest = this.issued + 1
    for (const session of [...this.sessions]) this.time.after(5000 * this.random(), () => session.check())
  }

  /**
   * @param {{method: string, url: URL, headers: Headers, body: string}} request
   * @param {Out} out
   */
  request({ method, url, headers, body }, out) {
    const answer = (/** @type {number} */ status, /** @type {any} */ body, retry = 0) => {
      out.head(status, retry ? { 'retry-after': `${retry}` } : {})
      out.text(JSON.stringify({ status, ...body }))
      out.end()
    }
    if (this.refusal) return answer(this.refusal.status, {}, this.refusal.retry)
    const token = headers.get('authorization')?.replace('Bearer ', '') ?? ''
    if (this.judge(token).why) return answer(401, { code: 'unauthenticated' })
    if (url.pathname.endsWith('/tickets')) {
      const ticket = `ticket${this.#tickets.size}-${this.time.now}`
      this.#tickets.set(ticket, token)
      return answer(200, { ticket })
    }
    if (method === 'POST') {
      const { changes, client, atomic } = JSON.parse(body)
      const { status = 200, ...rest } = this.write(changes, client, atomic)
      if (this.lost-- > 0) return out.cut()
      this.lost = Math.max(0, this.lost)
      return answer(status, rest)
    }
    const query = new URLSearchParams(url.search || url.pathname.split('/feed/')[1])
    if (!query.has('c')) return answer(400, { code: 'bad-request' })
    if (query.get('transport') === 'websocket') return answer(426, { code: 'upgrade-required' })
    const sse = headers.get('accept') === 'text/event-stream'
    out.head(200, {})
    const [before, after] = sse ? ['data: ', '\n\n'] : ['', '\n']
    const send = (/** @type {any[]} */ frames) =>
      out.text(frames.map((frame) => `${before}${JSON.stringify(frame)}${after}`).join(''))
    out.onGone = new Session(this, query, sse ? 'sse' : 'poll', token, send, () => out.end()).gone
  }

  /**
   * @param {URL} url
   * @param {SocketOut} out
   */
  socket({ search, pathname }, out) {
    const query = new URLSearchParams(search || pathname.split('/feed/')[1])
    const ticket = `${query.get('ticket')}`
    const token = this.#tickets.get(ticket) ?? ''
    this.#tickets.delete(ticket)
    if (this.refusal || this.judge(token).why) return out.close(1006)
    out.open()
    const session = new Session(this, query, 'websocket', token, out.frames, (code) => out.close(code))
    out.onGone = session.gone
    out.onMessage = (text) => {
      const { type, id, ...body } = JSON.parse(text)
      if (type === 'auth') {
        if (this.judge(body.token).why) out.frames([{ type: 'error', id, status: 401, code: 'unauthenticated' }])
        else {
          session.bear(body.token)
          out.frames([{ type: 'done', id }])
        }
      } else if (this.judge(session.token).why) {
        out.frames([{ type: 'error', id, status: 401, code: 'unauthenticated' }])
      } else if (type === 'subscribe') {
        session.follow(body.collections.map((/** @type {any} */ { name, cursor }) => [name, cursor]))
        session.look([{ type: 'done', id }])
      } else if (type === 'write') {
        const answer = this.write(body.changes, body.client, body.atomic)
        if (this.lost-- > 0) return out.close(1006)
        this.lost = Math.max(0, this.lost)
        session.look([{ ...answer, type: answer.status ? 'error' : 'written', id }])
      }
    }
  }
}

/**
 * @typedef {object} Out an answer over HTTP
 * @property {(status: number, headers: Record<string, string>) => void} head
 * @property {(text: string) => void} text
 * @property {() => void} end
 * @property {() => void} cut
 * @property {() => void} [onGone]
 */
/**
 * @typedef {object} SocketOut
 * @property {() => void} open
 * @property {(frames: any[]) => void} frames
 * @property {(code: number) => void} close
 * @property {() => void} [onGone]
 * @property {(text: string) => void} [onMessage]
 */

/** One client's place in the feed. */
class Session {
  /** What it has of each collection; gone: up to there it needs not hear of what is gone. @type {Map<string, {pos: number, base: number, gone: number, reason: string}>} */
  #at = new Map()
  #live = false
  #pacing = false
  #held
  /** @type {(() => void) | undefined} */
  #beat

  /**
   * @param {Server} server
   * @param {URLSearchParams} query
   * @param {'websocket' | 'sse' | 'poll'} transport
   * @param {string} token that it lives on
   * @param {(frames: any[]) => void} send
   * @param {(code: number) => void} close
   */
  constructor(server, query, transport, token, send, close) {
    this.server = server
    this.poll = transport === 'poll'
    this.limit = Math.min(server.batch, this.poll ? Number(query.get('limit') ?? 1000) : 1000)
    this.heartbeat = Number(query.get('heartbeat') ?? 15)
    this.send = send
    this.close = close
    server.sessions.add(this)
    this.token = token
    this.bear(token)
    this.follow(query.getAll('c').map((c) => /** @type {[string, string]} */ (c.split('@'))))
    const { epoch, time, place } = server
    /** @type {any[]} */
    const frames = [{ type: 'open', epoch, session: `${time.now}`, heartbeat: this.heartbeat, network: place }]
    const wait = 1000 * Number(query.get('wait') ?? 0)
    this.#held = this.poll && wait > 0
    if (this.#held) {
      this.opening = frames
      time.after(wait, () => {
        this.#held = false
        this.look()
      })
    } else if (!this.poll) {
      send(frames.splice(0))
      time.after(300, () => this.send([{ type: 'tick' }]))
    }
    this.look(this.opening ? [] : frames)
  }

  /** @param {[name: string, cursor: string | undefined][]} collections */
  follow(collections) {
    const { epoch, seq, floors } = this.server
    for (const [name, cursor] of collections) {
      const [of, at] = cursor?.split('-') ?? []
      const floor = floors.get(name) ?? 0
      const pos = of === epoch ? Number(at) : 0
      const reason = !cursor ? '' : of !== epoch ? 'epoch' : pos > seq ? 'ahead' : pos && pos < floor ? 'expired' : ''
      const anew = !cursor || reason
      this.#at.set(name, { pos: anew ? 0 : pos, base: anew || !pos ? floor : 0, gone: anew ? seq : 0, reason })
    }
    this.#live = false
  }

  /** Sends what there is. @param {any[]} [frames] before it */
  look(frames = []) {
    const { server } = this
    if (!server.sessions.has(this)) return
    if (this.#pacing) {
      if (frames.length) this.send(frames)
      return
    }
    for (const [name, at] of this.#at) {
      const floor = server.floors.get(name) ?? 0
      if (at.pos < floor && at.base < floor) {
        Object.assign(at, { pos: 0, base: floor, gone: server.seq, reason: 'expired' })
        this.#live = false
      }
      if (at.reason) frames.push({ type: 'reset', collections: [name], reason: at.reason })
      at.reason = ''
    }
    const news = [...this.#at]
      .flatMap(([name, { pos, gone }]) =>
        server.entries(name).filter(({ seq, value }) => seq > pos && (value || seq > gone)),
      )
      .sort((a, b) => a.seq - b.seq)
    let count = Math.min(this.limit, news.length)
    // A transaction is not split, and a cursor is one that can be resumed by.
    const floor = Math.max(...[...this.#at.keys()].map((name) => server.floors.get(name) ?? 0))
    while (count < news.length && (news[count].txn === news[count - 1].txn || news[count - 1].seq < floor)) count++
    const all = count === news.length
    if (this.#held && !count && !frames.length) return
    this.#held = false
    for (const [i, { seq, collection, key, value, by, txn }] of news.slice(0, count).entries()) {
      const more = (i + 1 < count && news[i + 1].txn === txn) || undefined
      frames.push({ type: 'change', seq, collection, key, op: value ? 'modify' : 'remove', value, by, more })
    }
    const head = all ? server.seq : news[count - 1].seq
    for (const at of this.#at.values()) at.pos = Math.max(at.pos, head)
    const cursor = `${server.epoch}-${head}`
    if (this.poll) frames.push({ type: all ? 'live' : 'next', cursor })
    else if (all && !this.#live) frames.push({ type: 'live', cursor })
    this.#live = all
    if (!frames.length) return
    this.send([...(this.opening ?? []), ...frames])
    this.opening = undefined
    if (this.poll) {
      this.gone()
      this.close(1000)
      return
    }
    this.#beat?.()
    this.#beat = server.time.after(1000 * this.heartbeat, () => {
      this.#live = false
      this.look()
    })
    if (all) return
    this.#pacing = true
    server.time.after(50, () => {
      this.#pacing = false
      this.look()
    })
  }

  /** @param {string} reason @param {number} [retry] */
  end(reason, retry) {
    this.send([...(this.opening ?? []), { type: 'end', reason, retry }])
    this.gone()
    this.close(/expired|revoked/.test(reason) ? 4401 : 1012)
  }

  /** It lives as long as this one. @param {string} token */
  bear(token) {
    const { time } = this.server
    this.token = token
    const { end } = this.server.judge(token)
    if (end < Infinity) time.after(end - time.now + 5000 * this.server.random(), () => this.check())
  }

  /** Looks whether its credential counts. */
  check() {
    const { why } = this.server.judge(this.token)
    if (why && this.server.sessions.has(this)) this.end(why)
  }

  /** Nobody listens any more. */
  gone = () => {
    this.#beat?.()
    this.server.sessions.delete(this)
  }
}

/**
 * What the way between is like.
 * @typedef {object} Conditions
 * @property {boolean} [down] nothing can be reached, and whoever tries learns it at once
 * @property {boolean} [hole] nothing comes through, and nobody learns it
 * @property {'refused' | 'hanging'} [upgrade] what becomes of WebSockets
 * @property {'up' | 'down'} [mute] the way on which nothing goes over a stream that is open
 * @property {boolean} [held] event streams are held back until they are over
 * @property {number} [kill] ms: no connection lives longer
 * @property {number} [cut] ms: no event stream lives longer
 * @property {number} [bytes] no answer is longer
 * @property {boolean} [clean] and it looks as if it had come to its end
 * @property {number} [cache] ms: for so long the same answer is given to the same GET
 * @property {boolean} [same] and the cache takes all queries for the same
 * @property {boolean} [query] it is lost
 * @property {number} [latency] ms, one way
 */

/** What goes to and fro over one connection, in order. */
class Link {
  /** @type {Record<'up' | 'down', {fn: () => void, first: boolean}[]>} */
  #stalled = { up: [], down: [] }
  #last = { up: 0, down: 0 }
  #mute = { up: false, down: false }
  /** Whether the page left it. */
  left = false
  cut = false
  /** Whether what went wrong once stays so. */
  dead = false
  onGone = () => {}
  onCut = () => {}

  /** @param {Network} net @param {'socket' | 'sse' | 'request'} kind */
  constructor(net, kind) {
    this.net = net
    this.kind = kind
    net.links.add(this)
    this.lag = net.jitter * net.random()
    const { kill, cut } = net.is
    const life = Math.min(kill ?? Infinity, kind === 'sse' ? (cut ?? Infinity) : Infinity)
    if (life < Infinity) net.time.after(life, () => this.lose())
  }

  /** @param {'up' | 'down'} way @param {boolean} first */
  #blocked(way, first) {
    const { is, time } = this.net
    // What was swallowed once does not come any more, nor what is behind it.
    if (is.mute === way && this.kind !== 'request' && !first) this.#mute[way] = true
    return is.hole || this.dead || (way === 'down' && time.asleep) || this.#mute[way]
  }

  /** What opens the connection goes both ways. @param {() => void} fn @param {'up' | 'down'} [way] */
  open(fn, way = 'down') {
    this.pass(way, fn, true)
  }

  /** @param {'up' | 'down'} way @param {() => void} fn */
  pass(way, fn, first = false) {
    const { time, is } = this.net
    this.#last[way] = Math.max(this.#last[way], time.now + (is.latency ?? 1) + this.lag)
    time.after(this.#last[way] - time.now, () => {
      this.#stalled[way].push({ fn, first })
      this.flush()
    })
  }

  flush() {
    for (const way of /** @type {const} */ (['up', 'down'])) {
      const stalled = this.#stalled[way]
      while (stalled.length && !this.cut && !this.#blocked(way, stalled[0].first)) {
        const one = stalled.shift()
        if (way === 'up' || !this.left) one?.fn()
      }
    }
  }

  /** The page does not want it any more. */
  leave() {
    if (this.left) return
    this.left = true
    // What is on its way may arrive, or not.
    this.pass('up', () => this.close())
  }

  close() {
    this.cut = true
    this.net.links.delete(this)
    this.onGone()
  }

  /** The connection breaks, and both ends learn it, but who sleeps. */
  lose() {
    if (this.cut) return
    this.close()
    this.net.tell(() => {
      if (!this.left) this.onCut()
    })
  }
}

export class Network {
  /** @type {Conditions} */
  is = {}
  /** @type {Set<Link>} */
  links = new Set()
  /**
   * Requests and sockets: when each was made, and how many reasons there had been for one until then.
   * @type {{at: number, reasons: number}[]}
   */
  made = []
  /** How many connections lasted for a second. */
  lasted = 0
  /** What was done to the page, or by it. */
  done = 0
  /** When anything last came to the page. */
  heard = 0
  /** How many changes the page was told of. */
  told = 0
  /** By how much, in ms, the ways of two connections may differ. */
  jitter = 0
  /** Since when nothing comes through. */
  #since = 0
  /** What waits for the page to wake. @type {(() => void)[]} */
  #late = []
  /** @type {Map<string, {until: number, status: number, chunks: string[]}>} */
  #cache = new Map()
  /** What the page asked for. @type {string[]} */
  asked = []

  /** @param {Time} time @param {Server} server @param {() => number} random */
  constructor(time, server, random) {
    this.time = time
    this.server = server
    this.random = random
    this.heard = time.now
    const net = this
    this.WebSocket = class extends Socket {
      /** @param {string} url */
      constructor(url) {
        super(net, url)
      }
    }
  }

  /** What connections the page holds open. @type {Map<object, {kind: string, since: number}>} */
  held = new Map()

  /** @param {object} what */
  release(what) {
    const { since = Infinity } = this.held.get(what) ?? {}
    if (this.time.now - since >= 1000) this.lasted++
    this.held.delete(what)
  }

  /** @param {Network['made']} list */
  note(list) {
    list.push({ at: this.time.now, reasons: this.told + 5 * this.done + this.lasted })
  }

  /** @param {object} what @param {string} kind */
  hold(what, kind) {
    this.note(this.made)
    if (kind) this.held.set(what, { kind, since: this.time.now })
  }

  /** @param {Conditions} conditions */
  become(conditions) {
    const { is: was, time } = this
    this.is = conditions
    if (!was.hole) this.#since = time.now
    const long = time.now - this.#since > 60_000
    for (const link of [...this.links]) {
      if (conditions.down) link.lose()
      // A connection may outlive a short black hole, or not.
      else if (was.hole && !conditions.hole) link.dead ||= long || this.random() < 0.5
      link.flush()
    }
  }

  /** The page learns of something, late if it sleeps. @param {() => void} fn */
  tell(fn) {
    if (this.time.asleep) this.#late.push(fn)
    else fn()
  }

  /** The page is awake. */
  wake() {
    for (const fn of this.#late.splice(0)) fn()
    for (const link of [...this.links]) link.flush()
  }

  /**
   * @param {any} input
   * @param {any} [init]
   * @returns {Promise<any>}
   */
  fetch = (input, init = {}) =>
    new Promise((resolve, reject) => {
      const { is, time } = this
      const url = new URL(input)
      const { method = 'GET', signal, body = '' } = init
      const headers = new Headers(init.headers)
      const sse = headers.get('accept') === 'text/event-stream'
      const get = method === 'GET'
      const kind = get ? (sse ? 'stream' : 'poll') : ''
      this.asked.push(`${method} ${url.pathname.split('/').at(-1)}${url.search}`)
      const answer = new Answer()
      this.hold(answer, kind)
      const over = () => this.release(answer)
      const fail = (/** @type {unknown} */ error) => {
        over()
        answer.fail(error)
        reject(error)
      }
      const broke = () => fail(new TypeError('network error'))
      const link = new Link(this, sse ? 'sse' : 'request')
      link.onCut = broke
      const abort = () => {
        link.leave()
        fail(new DOMException('aborted', 'AbortError'))
      }
      if (signal?.aborted) return abort()
      signal?.addEventListener('abort', abort)

      const begin = (/** @type {number} */ status, /** @type {Record<string, string>} */ headers) => {
        answer.status = status
        // The few words of a refusal hold nothing.
        if (status !== 200) over()
        answer.headers = new Headers(headers)
        resolve(answer)
      }
      const chunk = (/** @type {string} */ text) => {
        this.heard = time.now
        this.told += text.match(/"type":"change"/g)?.length ?? 0
        answer.push(text)
      }
      const end = () => {
        over()
        answer.end()
      }

      const key = is.same ? url.pathname : `${sse} ${url}`
      const kept = get && is.cache && this.#cache.get(key)
      if (kept && kept.until > time.now) {
        link.net.links.delete(link)
        time.after(1, () =>
          this.tell(() => {
            if (link.left) return
            begin(kept.status, {})
            for (const text of kept.chunks) chunk(text)
            end()
          }),
        )
        return
      }
      if (is.down) {
        time.after(1, () => link.lose())
        return
      }
      if (is.query) url.search = ''

      const held = sse && is.held
      let status = 0
      let room = is.bytes ?? Infinity
      /** @type {string[]} */
      const chunks = []
      /** @type {string[]} what a box holds back */
      const back = []
      /** @type {Out} */
      const out = {
        head: (...args) => {
          status = args[0]
          if (!held) link.open(() => begin(...args))
          else back.push('')
        },
        text: (text) => {
          chunks.push(text)
          if (held) {
            back.push(text)
            return
          }
          const part = text.slice(0, room)
          room -= part.length
          if (part) link.pass('down', () => chunk(part))
          if (room > 0 || !part) return
          if (is.clean) out.end()
          else out.cut()
        },
        end: () => {
          if (back.length) link.pass('down', () => begin(status, {}))
          for (const text of back.splice(0)) if (text) link.pass('down', () => chunk(text))
          link.pass('down', () => {
            end()
            link.close()
          })
          if (get && is.cache && status === 200) {
            this.#cache.set(key, { until: time.now + is.cache, status, chunks })
          }
        },
        cut: () => link.pass('down', () => link.lose()),
      }
      link.onGone = () => out.onGone?.()
      link.open(() => this.server.request({ method, url, headers, body }, out), 'up')
    })
}

/** An answer, as far as the client looks at it. */
class Answer {
  status = 0
  headers = new Headers()
  /** @type {{text?: string, error?: unknown, end?: boolean}[]} */
  #parts = []
  #wake = () => {}

  get ok() {
    return this.status >= 200 && this.status < 300
  }

  get body() {
    return { getReader: () => this }
  }

  /** @param {{text?: string, error?: unknown, end?: boolean}} part */
  #add(part) {
    this.#parts.push(part)
    this.#wake()
  }

  /** @param {string} text */
  push(text) {
    this.#add({ text })
  }

  end() {
    this.#add({ end: true })
  }

  /** @param {unknown} error */
  fail(error) {
    this.#parts = []
    this.#add({ error })
  }

  async cancel() {}

  /** @returns {Promise<{value?: Uint8Array}>} */
  async read() {
    while (!this.#parts.length) {
      await new Promise((resolve) => {
        this.#wake = () => resolve(undefined)
      })
    }
    const { text, error } = this.#parts[0]
    if (error) throw error
    if (text === undefined) return {}
    this.#parts.shift()
    return { value: new TextEncoder().encode(text) }
  }

  async json() {
    let text = ''
    for (;;) {
      const { value } = await this.read()
      if (!value) return JSON.parse(text)
      text += new TextDecoder().decode(value)
    }
  }
}

class Socket {
  /** @type {any} */
  onopen
  /** @type {any} */
  onmessage
  /** @type {any} */
  onclose
  /** @type {any} */
  onerror
  readyState = 0
  #link
  #net

  /** @param {Network} net @param {string} url */
  constructor(net, url) {
    this.#net = net
    net.asked.push(`WebSocket ${new URL(url).search}`)
    net.hold(this, 'stream')
    const { is, time, server } = net
    const link = new Link(net, 'socket')
    this.#link = link
    const close = (/** @type {number} */ code) => {
      if (this.readyState === 3) return
      this.readyState = 3
      net.release(this)
      this.onerror?.({})
      this.onclose?.({ code, reason: '' })
    }
    link.onCut = () => close(1006)
    if (is.down) {
      time.after(1, () => link.lose())
      return
    }
    if (is.upgrade) {
      if (is.upgrade === 'refused') link.pass('down', () => link.lose())
      return
    }
    /** @type {SocketOut} */
    const out = {
      open: () =>
        link.open(() => {
          this.readyState = 1
          this.onopen?.({})
        }),
      frames: (frames) => {
        const data = frames.map((frame) => JSON.stringify(frame)).join('\n')
        link.pass('down', () => {
          net.heard = time.now
          net.told += frames.filter(({ type }) => type === 'change').length
          if (this.readyState === 1) this.onmessage?.({ data })
        })
      },
      close: (code) =>
        link.pass('down', () => {
          close(code)
          link.close()
        }),
    }
    this.out = out
    link.onGone = () => out.onGone?.()
    link.open(() => server.socket(new URL(url), out), 'up')
  }

  /** @param {string} text */
  send(text) {
    if (this.readyState !== 1) throw new DOMException('not open', 'InvalidStateError')
    this.#link.pass('up', () => this.out?.onMessage?.(text))
  }

  close() {
    if (this.readyState >= 2) return
    this.readyState = 2
    this.#net.release(this)
    this.#link.leave()
    // The event comes later, when nobody thinks of it any more.
    const closed = () => {
      this.readyState = 3
      this.onclose?.({ code: 1005, reason: '' })
    }
    this.#net.time.after(5, closed, true)
  }
}
