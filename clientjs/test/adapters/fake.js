import { TidemarkError } from '../../src/errors.js'

/** @typedef {import('../../src/index.js').Batch} Batch */
/** @typedef {import('../../src/index.js').Change} Change */
/** @typedef {import('../../src/index.js').Status} Status */
/** @typedef {import('../../src/index.js').Write} Write */
/** @typedef {{key: string, seq: number, value?: any}} Row */

/** @param {any} target @param {any} patch @returns {any} RFC 7396 */
export function merge(target, patch) {
  if (typeof patch !== 'object' || patch === null || Array.isArray(patch)) return patch
  const members = new Map(typeof target === 'object' && !Array.isArray(target) ? Object.entries(target ?? {}) : [])
  for (const [key, value] of Object.entries(patch)) {
    if (value === null) members.delete(key)
    else members.set(key, merge(members.get(key), value))
  }
  return Object.fromEntries(members)
}

/**
 * A client without a network, for tests of what is built on one: it keeps the promises that the real one makes, and
 * nothing happens to it but what a test does. A write waits until the test answers it.
 */
export class FakeClient {
  /** @type {Map<string, FakeCollection>} */
  collections = new Map()
  /** Writes without an answer, in order. @type {FakeWrite[]} */
  writes = []
  seq = 0
  /** @type {Status} */
  status = { state: 'offline', transport: 'websocket', cursor: undefined, since: 0, reason: 'idle', why: '' }
  /** @type {Set<(status: Status) => void>} */
  #listeners = new Set()

  collection = /** @type {(name: string) => any} */ (
    (name) => {
      const collection = this.collections.get(name) ?? new FakeCollection(this, name)
      this.collections.set(name, collection)
      return collection
    }
  )

  onStatus = (/** @type {(status: Status) => void} */ fn) => {
    this.#listeners.add(fn)
    return () => this.#listeners.delete(fn)
  }

  /** @param {Partial<Status>} status */
  become(status) {
    this.status = { ...this.status, ...status }
    for (const fn of this.#listeners) fn(this.status)
  }

  /**
   * @param {Write[]} changes
   * @param {{atomic?: boolean, optimistic?: boolean}} [options]
   * @returns {Promise<any[]>}
   */
  write = (changes, options = {}) =>
    new Promise((resolve, reject) => {
      const write = new FakeWrite(this, changes, options, resolve, reject)
      this.writes.push(write)
      this.settle()
    })

  /** Changes from the feed, as one transaction. @param {Record<string, Record<string, object | null>>} news */
  feed(news) {
    for (const [name, rows] of Object.entries(news)) {
      for (const [key, value] of Object.entries(rows)) this.store(name, key, value ?? undefined)
    }
    this.settle()
  }

  /** The server's rows are read anew. @param {string} name @param {Record<string, object>} rows */
  reset(name, rows) {
    const collection = this.collection(name)
    const old = collection.base
    collection.base = new Map()
    for (const [key, value] of Object.entries(rows)) {
      // An equal row keeps its object.
      const before = old.get(key)?.value
      this.store(name, key, JSON.stringify(before) === JSON.stringify(value) ? before : value)
    }
    collection.anew = true
    this.settle()
  }

  /** The rows are whole now. @param {string} name */
  live(name) {
    this.collection(name).whole = true
    this.settle()
  }

  /** @param {string} name @param {string} key @param {any} [value] */
  store(name, key, value) {
    const { base } = this.collection(name)
    if (value) base.set(key, { key, seq: ++this.seq, value })
    else if (base.delete(key)) this.seq++
    return this.seq
  }

  /** Tells what has changed, once all rows are in place. */
  settle() {
    for (const tell of [...this.collections.values()].map((collection) => collection.take())) tell()
  }
}

class FakeWrite {
  /**
   * @param {FakeClient} client
   * @param {Write[]} changes
   * @param {{atomic?: boolean, optimistic?: boolean}} options
   * @param {(results: any[]) => void} resolve
   * @param {(error: Error) => void} reject
   */
  constructor(client, changes, options, resolve, reject) {
    this.client = client
    this.changes = changes
    this.options = options
    this.resolve = resolve
    this.reject = reject
  }

  /** The server did it, and the rows show it before the promise resolves. */
  confirm() {
    const { client } = this
    client.writes = client.writes.filter((write) => write !== this)
    const results = this.changes.map((change, i) => {
      const { collection, key = `made-${client.seq}` } = change
      const value = applied(change, client.collection(collection).base.get(key)?.value)
      return { id: `${i}`, status: 'ok', key, seq: client.store(collection, key, value), ...(value && { value }) }
    })
    client.settle()
    this.resolve(results)
    return results
  }

  /** @param {string} code @param {object} [more] */
  refuse(code, more) {
    const { client } = this
    client.writes = client.writes.filter((write) => write !== this)
    client.settle()
    this.reject(new TidemarkError(code, code, { status: 409, ...more }))
  }
}

/**
 * @param {Write} change
 * @param {object} [row] as it stands
 */
const applied = ({ op, value, patch }, row) =>
  op === 'remove' ? undefined : structuredClone(value ?? (row && merge(row, patch)))

class FakeCollection {
  /** What the server has said. @type {Map<string, Row>} */
  base = new Map()
  /** @type {Map<string, any>} */
  rows = new Map()
  version = 0
  whole = false
  ready = false
  anew = false
  /** How often it was followed and left. */
  starts = 0
  ends = 0
  /** @type {Set<{fn: (batch: Batch) => void}>} */
  listeners = new Set()
  /** @type {{seq: number, resolve: () => void}[]} */
  waiting = []
  /** What was shown for which write on which row, so that a row that has not changed keeps its object. */
  #shown = new WeakMap()

  /** @param {FakeClient} client @param {string} name */
  constructor(client, name) {
    this.client = client
    this.name = name
  }

  seq = (/** @type {string} */ key) => this.base.get(key)?.seq

  subscribe = (/** @type {(batch: Batch) => void} */ fn) => {
    const entry = { fn }
    if (!this.listeners.size) this.starts++
    this.listeners.add(entry)
    return () => {
      if (this.listeners.delete(entry) && !this.listeners.size) this.ends++
    }
  }

  start = () => this.subscribe(() => {})

  awaitSeq = (/** @type {number} */ seq) =>
    /** @type {Promise<void>} */ (
      new Promise((resolve) => {
        if (this.client.seq >= seq) resolve()
        else this.waiting.push({ seq, resolve })
      })
    )

  /** @param {Write['op']} op @param {string} [key] @param {object} [more] @param {any} [options] */
  #one = async (op, key, more, { optimistic, ...options } = {}) =>
    (await this.client.write([{ collection: this.name, op, key, ...more, ...options }], { optimistic }))[0]

  /** @param {any} value @param {any} [options] */
  insert = (value, { key, ...options } = {}) => this.#one('insert', key, { value }, options)
  /** @param {string} key @param {any} patch @param {any} [options] */
  modify = (key, patch, options) => this.#one('modify', key, { patch }, options)
  /** @param {string} key @param {any} value @param {any} [options] */
  put = (key, value, options) => this.#one('put', key, { value }, options)
  /** @param {string} key @param {any} [options] */
  remove = (key, options) => this.#one('remove', key, {}, options)

  /** The rows with the optimistic writes on top. */
  #look() {
    const rows = new Map([...this.base].map(([key, { value }]) => [key, value]))
    for (const { changes, options } of this.client.writes) {
      if (options.optimistic === false) continue
      for (const change of changes) {
        const { key } = change
        if (change.collection !== this.name || !key) continue
        const old = rows.get(key)
        const cached = this.#shown.get(change)
        const value = cached && cached.old === old ? cached.value : applied(change, old)
        this.#shown.set(change, { old, value })
        if (value) rows.set(key, value)
        else rows.delete(key)
      }
    }
    return rows
  }

  take() {
    const rows = this.#look()
    /** @type {Change[]} */
    const changes = []
    for (const key of this.rows.keys()) if (!rows.has(key)) changes.push({ op: 'remove', key, seq: this.client.seq })
    for (const [key, value] of rows) {
      const old = this.rows.get(key)
      const seq = this.seq(key) ?? 0
      if (old !== value) changes.push({ op: old ? 'modify' : 'insert', key, value, seq })
    }
    const reset = this.anew
    const news = changes.length > 0 || this.ready !== this.whole
    this.anew = false
    this.ready = this.whole
    if (reset) this.rows = rows
    for (const { op, key, value } of changes) {
      if (op === 'remove') this.rows.delete(key)
      else this.rows.set(key, value)
    }
    if (news) this.version++
    return () => {
      if (news) for (const entry of [...this.listeners]) if (this.listeners.has(entry)) entry.fn({ changes, reset })
      for (const { seq, resolve } of this.waiting) if (this.client.seq >= seq) resolve()
      this.waiting = this.waiting.filter(({ seq }) => this.client.seq < seq)
    }
  }
}
