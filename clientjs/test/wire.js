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

  /** The last request for the feed. */
  get feed() {
    return /** @type {Request} */ (this.feeds.at(-1))
  }

  get feeds() {
    return this.requests.filter(({ url }) => url.pathname.endsWith('/feed'))
  }

  get posts() {
    return this.requests.filter(({ init }) => init.method === 'POST')
  }

  get post() {
    return /** @type {Request} */ (this.posts.at(-1))
  }

  get socket() {
    return /** @type {Socket} */ (this.sockets.at(-1))
  }
}

/** What a feed is asked for: collection -> cursor, undefined for the beginning. @param {URL} url */
const asked = ({ searchParams }) =>
  new Map(searchParams.getAll('c').map((c) => [c.split('@')[0], /** @type {string | undefined} */ (c.split('@')[1])]))

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
      this.aborted = true
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

  get asked() {
    return asked(this.url)
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
  send(...frames) {
    return this.write(this.sse ? frames.map((f) => `data: ${JSON.stringify(f)}\n\n`).join('') : lines(frames))
  }

  async end() {
    if (!this.#body) this.open()
    this.#body?.close()
    await turns()
  }

  /** The connection breaks, before or during the answer. */
  async fail(error = new TypeError('fetch failed')) {
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
    const text = body === undefined ? null : typeof body === 'string' ? body : JSON.stringify(body)
    this.#resolve(new Response(text, { status, headers }))
    await turns()
  }
}

export class Socket {
  /** @type {any} */
  onmessage
  /** @type {any} */
  onclose
  /** @type {any} */
  onerror
  /** @type {any[]} what the client sent */
  sent = []
  closed = false

  /** @param {string} url */
  constructor(url) {
    this.url = new URL(url)
  }

  get asked() {
    return asked(this.url)
  }

  /** @param {string} text */
  send(text) {
    this.sent.push(JSON.parse(text))
  }

  close() {
    this.closed = true
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
    this.onerror?.({})
    this.onclose({ code, reason })
    await turns()
  }
}

export const open = { type: 'open', epoch: 'aaaa', session: 's', heartbeat: 15, server: 'test', transports: [] }

/** @param {number} seq */
export const live = (seq, epoch = 'aaaa') => ({ type: 'live', cursor: `${epoch}-${seq}` })

/** @param {number} seq */
export const next = (seq, epoch = 'aaaa') => ({ type: 'next', cursor: `${epoch}-${seq}` })

/**
 * @param {number} seq
 * @param {string} key
 * @param {object | null} value null: a remove
 * @param {{more?: boolean, collection?: string}} [rest]
 */
export const change = (seq, key, value, { more, collection = 'todos' } = {}) => ({
  type: 'change',
  seq,
  collection,
  key,
  ...(value ? { op: 'modify', value } : { op: 'remove' }),
  ...(more ? { more } : {}),
})
