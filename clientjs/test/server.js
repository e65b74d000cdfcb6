import { createServer } from 'node:http'
import { WebSocketServer } from 'ws'

/**
 * A small server that speaks the protocol from memory, for tests: all three transports over a real network, writes with
 * ids, resets. Time plays no part in it: heartbeats come when a test says so, and a held poll waits for them.
 */
export class Server {
  epoch = 'aaaa'
  seq = 0
  /** Cursors below have missed removes that nobody remembers. */
  floor = 0
  /** collection -> key -> entry. @type {Map<string, Map<string, Entry>>} */
  state = new Map()
  /** @type {Map<string, {status: string, key: string, seq: number, value?: object}>} */
  ids = new Map()
  /** @type {Set<Session>} */
  sessions = new Set()
  /** What was asked of the feed, in order: each collection with its cursor. @type {string[][]} */
  feeds = []
  /** Where the clients are, as the server tells them. */
  network = 'home'
  /** What the network keeps back: it opens, but nothing comes through. @type {Set<string>} */
  blocked = new Set()
  /** How many write requests took effect, and how many answers to them are to be lost. */
  writes = 0
  loseAnswers = 0
  /** How many requests came by POST. */
  posts = 0

  #http = createServer((request, response) => this.#handle(request, response))
  #ws = new WebSocketServer({ noServer: true })

  async listen() {
    this.#http.on('upgrade', (request, socket, head) => {
      const url = this.#url(request)
      this.#ws.handleUpgrade(request, socket, head, (ws) => {
        const session = this.#open(this.#query(url), 'websocket', {
          send: (frames) => {
            if (!this.blocked.has('websocket')) ws.send(frames.map((frame) => JSON.stringify(frame)).join('\n'))
          },
          drop: () => ws.terminate(),
        })
        ws.on('message', (data) => {
          if (!this.blocked.has('websocket')) this.#request(session, JSON.parse(String(data)))
        })
        ws.on('close', () => this.sessions.delete(session))
      })
    })
    await new Promise((resolve) => this.#http.listen(0, '127.0.0.1', () => resolve(undefined)))
    return this
  }

  get url() {
    const { port } = /** @type {import('node:net').AddressInfo} */ (this.#http.address())
    return `http://127.0.0.1:${port}`
  }

  async close() {
    this.drop()
    this.#ws.close()
    this.#http.closeAllConnections()
    await new Promise((resolve) => this.#http.close(resolve))
  }

  /** Every feed loses its connection. */
  drop() {
    for (const session of this.sessions) session.out.drop()
    this.sessions.clear()
  }

  /** Every feed that has all there is hears so again. */
  heartbeat() {
    for (const session of [...this.sessions]) this.#live(session)
  }

  /** @param {string} collection */
  rows(collection) {
    const entries = [...(this.state.get(collection)?.values() ?? [])]
    return new Map(entries.flatMap(({ key, value }) => (value ? [[key, value]] : [])))
  }

  /** The log is made anew, and has lost what remember refuses. @param {(key: string) => boolean} remember */
  renew(remember) {
    this.epoch = `${this.epoch}a`
    const old = this.state
    this.state = new Map()
    this.ids.clear()
    this.seq = this.floor = 0
    for (const [collection, entries] of old) {
      for (const { key, value } of entries.values()) {
        if (value && remember(key)) this.#put(collection, key, value, ++this.#txn)
      }
    }
    this.drop()
  }

  /** Removes up to now are forgotten. */
  forget() {
    this.floor = this.seq
    for (const entries of this.state.values()) {
      for (const [key, { value }] of entries) if (!value) entries.delete(key)
    }
    this.drop()
  }

  #txn = 0

  /**
   * @param {any[]} changes as in a request
   * @returns {any} the answer's body; a status of its own stands for a refusal
   */
  write(changes, { client = 'somebody', atomic = true } = {}) {
    const txn = ++this.#txn
    /** @returns {string | undefined} */
    const refused = (/** @type {any} */ change) => {
      const entry = this.state.get(change.collection)?.get(change.key)
      const row = entry?.value ? entry : undefined
      if (this.ids.has(`${client} ${change.id}`)) return undefined
      if (change.if !== undefined && change.if !== (row?.seq ?? 0)) return 'conflict'
      if (change.op === 'insert' && row) return 'exists'
      return change.op === 'modify' && !row ? 'missing' : undefined
    }
    const stands = (/** @type {any} */ { id, collection, key }, /** @type {string} */ status) => {
      const entry = this.state.get(collection)?.get(key)
      return { id, status, key, ...(entry?.value ? { seq: entry.seq, value: entry.value } : { seq: 0 }) }
    }
    if (atomic && changes.some(refused)) {
      const results = changes.map((change) => stands(change, refused(change) ?? 'aborted'))
      return { status: 409, code: 'conflict', detail: 'nothing was written', results }
    }
    const results = changes.map((change) => {
      const { id, collection, op, key = `made-${this.seq}`, value, patch } = change
      const before = this.ids.get(`${client} ${id}`)
      if (before) return { ...before, id, status: 'duplicate' }
      const status = refused(change)
      if (status) return stands(change, status)
      const old = this.state.get(collection)?.get(key)?.value
      const seq = this.#put(collection, key, op === 'remove' ? null : (value ?? { ...old, ...patch }), txn, {
        client,
        id,
      })
      const result = { ...stands({ id, collection, key }, 'ok'), seq }
      if (id) this.ids.set(`${client} ${id}`, result)
      return result
    })
    this.writes++
    this.#look()
    return { cursor: `${this.epoch}-${this.seq}`, results }
  }

  /** @param {string} collection @param {string} key @param {object | null} value @param {number} txn @param {object} [by] */
  #put(collection, key, value, txn, by) {
    const entries = this.state.get(collection) ?? new Map()
    this.state.set(collection, entries)
    const op = !value ? 'remove' : entries.get(key)?.value ? 'modify' : 'insert'
    entries.set(key, { collection, key, value, op, seq: ++this.seq, txn, by })
    return this.seq
  }

  /** @param {import('node:http').IncomingMessage} request */
  #url({ url }) {
    return new URL(String(url), 'http://test')
  }

  /** May be part of the path, for networks that lose it. @param {URL} url */
  #query({ pathname, search }) {
    return new URLSearchParams(search || pathname.split('/feed/')[1])
  }

  /**
   * @param {import('node:http').IncomingMessage} request
   * @param {import('node:http').ServerResponse} response
   */
  async #handle(request, response) {
    const url = this.#url(request)
    if (request.method === 'POST') {
      this.posts++
      let text = ''
      for await (const chunk of request) text += chunk
      const { changes, ...options } = JSON.parse(text)
      const answer = this.write(changes, options)
      if (this.loseAnswers > 0) {
        this.loseAnswers--
        response.destroy()
        return
      }
      response.writeHead(answer.status ?? 200, { 'content-type': 'application/json' }).end(JSON.stringify(answer))
      return
    }
    const query = this.#query(url)
    if (this.blocked.has('query') && url.search) {
      response.writeHead(400, { 'content-type': 'application/problem+json' })
      response.end(JSON.stringify({ code: 'bad-request', detail: 'c: which collections', status: 400 }))
      return
    }
    const sse = request.headers.accept === 'text/event-stream'
    response.writeHead(200, { 'content-type': sse ? 'text/event-stream' : 'application/x-ndjson' })
    if (sse) response.write('retry: 1000\n\n')
    const session = this.#open(query, sse ? 'sse' : 'poll', {
      send: (frames) => {
        if (sse && this.blocked.has('sse')) return
        const text = frames
          .map((frame) =>
            sse ? `event: ${frame.type}\ndata: ${JSON.stringify(frame)}\n\n` : `${JSON.stringify(frame)}\n`,
          )
          .join('')
        // In two pieces, so that letters, lines and frames are cut somewhere.
        const bytes = Buffer.from(text)
        response.write(bytes.subarray(0, bytes.length / 2))
        response.write(bytes.subarray(bytes.length / 2))
        const last = frames.at(-1)?.type
        if (!sse && (last === 'live' || last === 'next')) {
          response.end()
        }
      },
      drop: () => response.destroy(),
    })
    response.on('close', () => this.sessions.delete(session))
  }

  /** @param {URLSearchParams} query @param {string} transport @param {Out} out */
  #open(query, transport, out) {
    const asked = query.getAll('c')
    this.feeds.push(asked)
    const poll = transport === 'poll'
    /** @type {Session} */
    const session = {
      at: new Map(),
      out,
      limit: poll ? Number(query.get('limit') ?? 3) : Infinity,
      held: poll && query.get('wait') !== '0',
      ticked: poll,
    }
    this.sessions.add(session)
    const resets = asked.flatMap((c) => {
      const [name, cursor] = c.split('@')
      return this.#follow(session, name, cursor)
    })
    const { epoch, network } = this
    session.frames = [{ type: 'open', epoch, session: 's', heartbeat: 15, server: 'test', network }, ...resets]
    if (resets.length) session.held = false
    // A WebSocket that does not say yet what it wants has all of it.
    if (asked.length) this.#look(session, true)
    else this.#live(session)
    return session
  }

  /** @param {Session} session @param {string} name @param {string} [cursor] */
  #follow(session, name, cursor) {
    const [epoch, seq] = cursor?.split('-') ?? []
    const reason = !cursor
      ? ''
      : epoch !== this.epoch
        ? 'epoch'
        : +seq < this.floor
          ? 'expired'
          : +seq > this.seq
            ? 'ahead'
            : ''
    session.at.set(name, cursor && !reason ? +seq : 0)
    return reason ? [{ type: 'reset', collections: [name], reason }] : []
  }

  /** Looks for changes that sessions do not have yet. @param {Session} [only] */
  #look(only, fresh = false) {
    for (const session of only ? [only] : [...this.sessions]) {
      const { at, out, limit, held } = session
      const entries = [...at].flatMap(([name, seq]) =>
        [...(this.state.get(name)?.values() ?? [])].filter((entry) => entry.seq > seq && (seq || entry.value)),
      )
      entries.sort((a, b) => a.seq - b.seq)
      let count = Math.min(entries.length, limit)
      while (entries[count] && entries[count].txn === entries[count - 1].txn) count++
      const changes = entries.slice(0, count).map(({ txn, value, ...entry }, i, all) => ({
        type: 'change',
        ...entry,
        ...(value && { value }),
        at: '2026-01-01T00:00:00.000Z',
        ...(all[i + 1] && entries[i + 1].txn === txn && { more: true }),
      }))
      const frames = [...(session.frames ?? []), ...changes]
      if (!changes.length && (held || !fresh)) continue
      session.frames = []
      const last = changes.at(-1)?.seq ?? 0
      for (const [name, seq] of at) at.set(name, Math.max(seq, last))
      if (count < entries.length) this.#last(session, [...frames, { type: 'next', cursor: `${this.epoch}-${last}` }])
      else if (fresh || limit < Infinity) this.#live(session, frames)
      else out.send(frames)
    }
  }

  /** @param {Session} session @param {object[]} [frames] */
  #live(session, frames = session.frames ?? []) {
    session.frames = []
    for (const name of session.at.keys()) session.at.set(name, this.seq)
    this.#last(session, [...frames, { type: 'live', cursor: `${this.epoch}-${this.seq}` }])
    // A real server takes 300 ms over it.
    if (!session.ticked) session.out.send([{ type: 'tick' }])
    session.ticked = true
  }

  /** To a poll this is the end of its answer. @param {Session} session @param {object[]} frames */
  #last(session, frames) {
    if (session.limit < Infinity) this.sessions.delete(session)
    session.out.send(frames)
  }

  /** @param {Session} session @param {any} frame */
  #request(session, { type, id, ...body }) {
    const { send } = session.out
    if (type === 'write') {
      const { changes, ...options } = body
      const answer = this.write(changes, options)
      if (this.loseAnswers > 0) {
        this.loseAnswers--
        session.out.drop()
      } else send([{ ...answer, type: answer.status ? 'error' : 'written', id }])
    } else if (type === 'subscribe') {
      this.feeds.push(
        body.collections.map((/** @type {any} */ { name, cursor }) => (cursor ? `${name}@${cursor}` : name)),
      )
      const resets = body.collections.flatMap((/** @type {any} */ { name, cursor }) =>
        this.#follow(session, name, cursor),
      )
      session.frames = [{ type: 'done', id }, ...resets]
      this.#look(session, true)
    }
  }
}

/** @typedef {{collection: string, key: string, value: object | null, op: string, seq: number, txn: number, by?: object}} Entry */
/** @typedef {{send: (frames: any[]) => void, drop: () => void}} Out */
/** @typedef {{at: Map<string, number>, out: Out, limit: number, held: boolean, ticked: boolean, frames?: object[]}} Session */
