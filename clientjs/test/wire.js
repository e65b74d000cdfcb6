import { turns } from './clock.js'

/**
 * A network that a test plays by hand: every fetch and every WebSocket of a client ends up here, and is answered as
 * the test sees fit.
 */
export class Wire {
  /** @type {Request[]} */
  requests = []
  /** @type {Socket[]} */
  sockets = []
  /** Whether the platform's rule is kept that fetch is called as a plain function. */
  unbound = true

  constructor() {
    const wire = this
    /**
     * @this {unknown}
     * @param {any} url
     * @param {any} init
     * @returns {Promise<Response>}
     */
    this.fetch = function (url, init = {}) {
      if (this !== undefined && this !== globalThis) wire.unbound = false
      const request = new Request(new URL(url), init)
      wire.requests.push(request)
      return request.response
    }
    this.WebSocket = class extends Socket {
      /** @param {string} url */
      constructor(url) {
        super(url)
        wire.sockets.push(this)
      }
    }
  }

  /** Requests for the feed, by whatever transport. */
  get feeds() {
    return this.requests.filter(({ url }) => /\/feed(\/|$)/.test(url.pathname))
  }

  get feed() {
    return /** @type {Request} */ (this.feeds.at(-1))
  }

  get polls() {
    return this.feeds.filter(({ sse }) => !sse)
  }

  get poll() {
    return /** @type {Request} */ (this.polls.at(-1))
  }

  /** Event streams. */
  get streams() {
    return this.feeds.filter(({ sse }) => sse)
  }

  get stream() {
    return /** @type {Request} */ (this.streams.at(-1))
  }

  /** Writes. */
  get posts() {
    return this.requests.filter(({ url }) => url.pathname.endsWith('/changes'))
  }

  get post() {
    return /** @type {Request} */ (this.posts.at(-1))
  }

  get tickets() {
    return this.requests.filter(({ url }) => url.pathname.endsWith('/tickets'))
  }

  get socket() {
    return /** @type {Socket} */ (this.sockets.at(-1))
  }

  /** What every answer begins with. @type {object} */
  open = open

  /**
   * Plays the server until the client is live by its transport: the poll that catches up, then the stream.
   * @param {Transport} transport
   * @param {number} seq how far the log is
   * @param {object[]} changes
   */
  async reach(transport, seq, ...changes) {
    await this.poll.reply(this.open, ...changes, live(seq))
    if (transport !== 'poll') await this.prove(transport, seq)
  }

  /**
   * The stream that was opened last proves itself, with nothing new.
   * @param {Transport} transport
   * @param {number} seq
   */
  async prove(transport, seq) {
    if (transport === 'sse') await this.stream.frames(this.open, live(seq), tick)
    else {
      await this.socket.open()
      await this.socket.frames(this.open)
      await this.socket.done(live(seq), tick)
    }
  }

  /** Which connections are open, as the client sees it. */
  get held() {
    const polls = this.polls.filter(({ over }) => !over).map(() => 'poll')
    const streams = this.streams.filter(({ over }) => !over).map(() => 'sse')
    const sockets = this.sockets.filter(({ closed }) => !closed).map(() => 'websocket')
    return [...polls, ...streams, ...sockets].join(' ')
  }

  /**
   * What brings the feed by this transport.
   * @param {Transport} transport
   */
  by(transport) {
    return transport === 'websocket' ? this.socket : transport === 'sse' ? this.stream : this.poll
  }
}

/** @typedef {import('../src/machine.js').Transport} Transport */

/** @param {object[]} frames */
const lines = (frames) => frames.map((frame) => `${JSON.stringify(frame)}\n`).join('')

export class Request {
  /** @type {(response: any) => void} */
  #resolve = () => {}
  /** @type {(error: unknown) => void} */
  #reject = () => {}
  /** @type {ReadableStreamDefaultController<Uint8Array> | undefined} */
  #body
  aborted = false
  /** Whether it was answered to the end, or left, or lost. */
  over = false

  /**
   * @param {URL} url
   * @param {RequestInit} init
   */
  constructor(url, init) {
    this.url = url
    this.init = init
    /** @type {Promise<Response>} */
    this.response = new Promise((resolve, reject) => {
      this.#resolve = resolve
      this.#reject = reject
    })
    this.response.catch(() => {})
    init.signal?.addEventListener('abort', () => {
      this.aborted = !this.over
      this.over = true
      const error = new DOMException('aborted', 'AbortError')
      this.#reject(error)
      try {
        this.#body?.error(error)
      } catch {
        // It is over already.
      }
    })
  }

  get sse() {
    return new Headers(this.init.headers).get('accept') === 'text/event-stream'
  }

  /** What was asked for, also where it is part of the path. */
  get query() {
    return new URLSearchParams(this.url.search || this.url.pathname.split('/feed/')[1])
  }

  /** What a feed is asked for: collection -> cursor, undefined for the beginning. */
  get asked() {
    return new Map(
      this.query.getAll('c').map((c) => [c.split('@')[0], /** @type {string | undefined} */ (c.split('@')[1])]),
    )
  }

  /** The credential. */
  get bearer() {
    return new Headers(this.init.headers).get('authorization')
  }

  get body() {
    return JSON.parse(String(this.init.body))
  }

  /** Begins an answer that goes on. */
  open() {
    const stream = new ReadableStream({
      start: (controller) => {
        this.#body = controller
      },
    })
    this.#resolve(new Response(stream))
    return this
  }

  /** @param {string | Uint8Array} text */
  async write(text) {
    if (!this.#body) this.open()
    this.#body?.enqueue(typeof text === 'string' ? new TextEncoder().encode(text) : text)
    await turns()
  }

  /** Sends frames in the form of the transport that was asked for, all in one piece. @param {object[]} frames */
  frames(...frames) {
    return this.write(this.sse ? frames.map((f) => `data: ${JSON.stringify(f)}\n\n`).join('') : lines(frames))
  }

  async end() {
    if (!this.#body) this.open()
    this.over = true
    this.#body?.close()
    await turns()
  }

  /** A whole answer: frames, and nothing after them. @param {object[]} frames */
  async reply(...frames) {
    await this.frames(...frames)
    await this.end()
  }

  /** The connection breaks, before or during the answer. */
  async fail(error = new TypeError('fetch failed')) {
    this.over = true
    if (this.#body) this.#body.error(error)
    else this.#reject(error)
    await turns()
  }

  /**
   * A whole answer that is not a feed.
   * @param {number} status
   * @param {unknown} [body] text as it is, anything else as JSON
   * @param {Record<string, string>} [headers]
   */
  async answer(status, body, headers) {
    this.over = true
    const text = body === undefined ? null : typeof body === 'string' ? body : JSON.stringify(body)
    this.#resolve(new Response(text, { status, headers }))
    await turns()
  }
}

export class Socket {
  /** @type {any} */
  onopen
  /** @type {any} */
  onmessage
  /** @type {any} */
  onclose
  /** @type {any} */
  onerror
  /** @type {any[]} what the client sent */
  sent = []
  readyState = 0
  /** Whether it is over, whoever ended it. */
  closed = false

  get over() {
    return this.closed
  }

  /** @param {string} url */
  constructor(url) {
    this.url = new URL(url)
  }

  /** @param {string} type */
  #sent(type) {
    return this.sent.filter((frame) => frame.type === type)
  }

  get subscribes() {
    return this.#sent('subscribe')
  }

  get writes() {
    return this.#sent('write')
  }

  /** What it was asked for: collection -> cursor, undefined for the beginning. */
  get asked() {
    const all = this.subscribes.flatMap(({ collections }) => collections)
    return new Map(all.map(({ name, cursor }) => [name, /** @type {string | undefined} */ (cursor)]))
  }

  /** @param {string} text */
  send(text) {
    if (this.readyState !== 1) throw new DOMException('not open', 'InvalidStateError')
    this.sent.push(JSON.parse(text))
  }

  close() {
    this.closed = true
    this.readyState = 3
  }

  /** The network lets it through. */
  async open() {
    this.readyState = 1
    this.onopen({})
    await turns()
  }

  /** The last subscribe is answered, and frames come with the answer. @param {object[]} frames */
  done(...frames) {
    return this.frames({ type: 'done', id: this.subscribes.at(-1).id }, ...frames)
  }

  /** All in one message. @param {object[]} frames */
  async frames(...frames) {
    this.onmessage({ data: lines(frames) })
    await turns()
  }

  /** @param {unknown} data */
  async message(data) {
    this.onmessage({ data })
    await turns()
  }

  /** @param {number} [code] */
  async die(code = 1006, reason = '') {
    this.closed = true
    this.readyState = 3
    this.onerror?.({})
    this.onclose({ code, reason })
    await turns()
  }
}

export const open = { type: 'open', epoch: 'aaaa', session: 's', heartbeat: 15, server: 'test', transports: [] }

export const tick = { type: 'tick' }

/** @param {number} seq */
export const live = (seq, epoch = 'aaaa') => ({ type: 'live', cursor: `${epoch}-${seq}` })

/** @param {number} seq */
export const next = (seq, epoch = 'aaaa') => ({ type: 'next', cursor: `${epoch}-${seq}` })

/**
 * @param {number} seq
 * @param {string} key
 * @param {object | null} value null: a remove
 * @param {{more?: boolean, collection?: string, id?: string}} [rest] id: of the write that it comes from
 */
export const change = (seq, key, value, { more, collection = 'todos', id } = {}) => ({
  type: 'change',
  seq,
  collection,
  key,
  ...(value ? { op: 'modify', value } : { op: 'remove' }),
  ...(more ? { more } : {}),
  ...(id ? { by: { client: 'c', id } } : {}),
})
