import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import './seed.js'
import { createClient } from '../src/index.js'
import { chance, Network, Server, Time } from './network.js'

/** @typedef {import('../src/index.js').Client} Client */
/** @typedef {import('../src/index.js').Collection} Collection */
/** @typedef {import('./network.js').Conditions} Conditions */
/** @typedef {import('../src/machine.js').Transport} Transport */

const SECOND = 1000
const MINUTE = 60 * SECOND
const NAMES = ['todos', 'projects/7/todos', 'lists']
const KEYS = ['a', 'b', 'c', '__proto__']

/** What a page around the client has, for as long as the tests last. */
const globals = /** @type {any} */ (globalThis)

/** A page with a client, in a world of its own, and what must be true of it at any time. */
class World {
  time = new Time()
  window = new EventTarget()
  document = Object.assign(new EventTarget(), { visibilityState: 'visible', hidden: false })
  /** What was wrong where it could not be thrown. @type {unknown[]} */
  faults = []
  /** Own writes. @type {Map<string, {collection: string, key: string, n: number, outcome: string}>} */
  writes = new Map()
  /** What the page showed of each row, in order. @type {Map<string, string[]>} */
  shown = new Map()
  /** Rows that were written while nobody looked: that does not show at once. @type {Set<string>} */
  blind = new Set()
  /** Who follows what. @type {Map<string, () => void>} */
  followed = new Map()
  clients = 0
  #values = 0
  /** Until when it can't know better than it says. */
  excused = 0

  /** How whoever gives tokens is: '' gives a new one each time. @type {'' | 'cached' | 'stale' | 'slow' | 'fails'} */
  issuer = ''
  /** When it was asked for one, as the network notes it. @type {Network['made']} */
  asked = []
  #token = ''
  /** How many are on their way. */
  #late = 0

  /**
   * secure: what the server wants tokens for. life: of one, in ms. skew: by how much the page's clock is ahead, in ms.
   * @param {{seed?: number, secure?: boolean, life?: number, skew?: number, transport?: Transport | 'auto'}} [options]
   */
  constructor({ seed = 1, secure = false, life = Infinity, skew = 0, transport = 'auto' } = {}) {
    this.random = chance(seed)
    this.server = new Server(this.time, this.random)
    this.server.secure = secure
    this.server.life = life
    this.skew = skew
    this.net = new Network(this.time, this.server, this.random)
    this.transport = transport
    /** @type {Map<string, string>} */
    const items = new Map()
    globals.addEventListener = this.window.addEventListener.bind(this.window)
    globals.removeEventListener = this.window.removeEventListener.bind(this.window)
    globals.document = this.document
    Object.defineProperty(globals, 'localStorage', {
      configurable: true,
      value: { getItem: (/** @type {string} */ k) => items.get(k) ?? null, setItem: items.set.bind(items) },
    })
    this.time.onStep = () => this.check()
    /** @type {Client} */
    this.client = this.load()
  }

  /** The page is loaded. @returns {Client} */
  load() {
    const { time, net, server } = this
    this.clients++
    this.flicker()
    this.client = createClient({
      url: 'http://tide.test',
      tenant: 'demo',
      tabs: false,
      transport: this.transport,
      fetch: net.fetch,
      WebSocket: net.WebSocket,
      clock: {
        now: () => time.now - time.lag + this.skew,
        wall: () => time.now + this.skew,
        random: this.random,
        after: (ms, fn) => time.after(ms, fn, true),
      },
      ...(server.secure && { getToken: () => this.token() }),
    })
    this.client.onError((error) => {
      if (error.code === 'bad-frame') this.faults.push(error)
    })
    return this.client
  }

  /** @returns {string | Promise<string>} */
  token() {
    const { issuer, net, server, time } = this
    net.note(this.asked)
    if (issuer === 'fails') throw new TypeError('network error')
    const { end, why } = server.judge(this.#token)
    const kept = issuer === 'stale' || (issuer === 'cached' && !why && end - time.now > 5 * SECOND)
    if (kept && this.#token) return this.#token
    const issue = () => {
      this.#token = server.issue()
      return this.#token
    }
    if (issuer !== 'slow') return issue()
    this.#late++
    return new Promise((resolve) => {
      time.after(20 * SECOND * this.random(), () => {
        this.#late--
        resolve(issue())
      })
    })
  }

  /** @param {string} name */
  follow(name) {
    const collection = this.client.collection(name)
    this.followed.get(name)?.()
    const believed = new Map(collection.rows)
    const stop = collection.subscribe(({ changes }) => {
      try {
        for (const { op, key, value } of changes) {
          assert.equal(op !== 'insert', believed.has(key), `${op} of ${name} ${key}`)
          if (value) believed.set(key, value)
          else believed.delete(key)
          const row = `${name} ${key}`
          this.shown.set(row, [...(this.shown.get(row) ?? []), value ? `${value.n}` : ''])
        }
        assert.deepEqual(collection.rows, believed)
      } catch (fault) {
        this.faults.push(fault)
      }
    })
    this.followed.set(name, stop)
  }

  /** @param {string} name */
  unfollow(name) {
    this.followed.get(name)?.()
    this.followed.delete(name)
  }

  /** Others change rows, in one transaction. @param {string} collection @param {string[]} keys @param {boolean} removed */
  others(collection, keys, removed) {
    this.server.write(
      keys.map((key) =>
        removed ? { collection, key, op: 'remove' } : { collection, key, op: 'put', value: { n: ++this.#values } },
      ),
    )
  }

  /**
   * @param {{collection: string, key: string, op: 'insert' | 'modify' | 'put' | 'remove', now: boolean}[]} changes now: only if the row is as it is shown
   * @param {boolean} atomic
   */
  write(changes, atomic) {
    const writes = changes.map((given) => {
      const { now, ...change } = given
      const { collection, key, op } = change
      const n = ++this.#values
      const id = `${this.clients}-${n}`
      if (!this.followed.has(collection)) this.blind.add(`${collection} ${key}`)
      this.writes.set(id, { ...given, n, outcome: '' })
      const seq = now && op !== 'insert' ? { if: this.client.collection(collection).seq(key) ?? 0 } : {}
      const value = op === 'remove' ? {} : { [op === 'modify' ? 'patch' : 'value']: { n } }
      return { ...change, ...value, ...seq, id }
    })
    const outcome = (/** @type {string} */ id, /** @type {string} */ outcome) => {
      const write = this.writes.get(id)
      if (write?.outcome) this.faults.push(new Error(`${id} is settled twice`))
      if (write) write.outcome = outcome
    }
    this.client.write(writes, { atomic }).then(
      (results) => {
        for (const { id, status } of results) outcome(id, status)
      },
      ({ code }) => {
        for (const { id } of writes) outcome(id, code)
      },
    )
  }

  /** @param {number} ms @param {boolean} stopped */
  async sleep(ms, stopped) {
    await this.time.sleep(ms, stopped)
    this.excused = this.time.now + 2 * SECOND
    this.net.wake()
    await this.time.settle()
  }

  /** @param {string} type @param {object} [fields] */
  event(type, fields) {
    this.window.dispatchEvent(Object.assign(new Event(type), fields))
    this.document.dispatchEvent(new Event(type))
  }

  /** The page goes, and comes again. */
  async reload() {
    const names = [...this.followed.keys()]
    const { client } = this
    const closing = client.close()
    for (const name of names) this.unfollow(name)
    await this.time.settle()
    const { net, time } = this
    assert.equal(client.status.reason, 'closed')
    assert.deepEqual([...net.held.values()], [], 'a closed client holds nothing')
    while (this.#late) await time.run(SECOND)
    await closing
    for (const [id, { outcome }] of this.writes) assert.ok(outcome, `${id} was left without an answer`)
    await time.run(20)
    assert.equal(time.pending, 0, 'a closed client waits for nothing')
    this.load()
    for (const name of names) this.follow(name)
  }

  /** What must be true at any time. */
  check() {
    const { net, time, client, faults } = this
    if (faults.length) throw faults[0]
    const held = [...net.held.values()].map(({ kind }) => kind)
    assert.ok(new Set(held).size === held.length, `open at the same time: ${held}`)
    if (!time.asleep && client?.status.state === 'live') {
      assert.ok(time.now - Math.max(net.heard, this.excused) <= SILENCE, 'it says that it is live, and heard nothing')
    }
    if (client?.status.state === 'live') {
      for (const name of this.followed.keys()) assert.ok(client.collection(name).ready, `live without ${name}`)
    }
    assert.ok(net.made.length < 20_000, 'a storm')
    assert.ok(this.asked.length < 20_000, 'a storm of tokens')
  }

  get pending() {
    return [...this.writes.values()].some(({ outcome }) => !outcome)
  }

  get settled() {
    const { client, server } = this
    const same = (/** @type {string} */ name) => {
      const { rows } = client.collection(name)
      const there = server.rows(name)
      return rows.size === there.size && [...there].every(([key, { n }]) => rows.get(key)?.n === n)
    }
    return (
      (client.status.state === 'live' || !this.followed.size) && [...this.followed.keys()].every(same) && !this.pending
    )
  }

  /** What is wrong in the end. */
  describe() {
    const { client, server } = this
    const rows = [...this.followed.keys()].map((name) => [
      name,
      Object.fromEntries(client.collection(name).rows),
      Object.fromEntries(server.rows(name)),
    ])
    const pending = [...this.writes].filter(([, { outcome }]) => !outcome).map(([id]) => id)
    return JSON.stringify({ status: client.status, rows, pending, asked: this.net.asked.slice(-12) }, null, 1)
  }

  /** @param {number} within ms */
  async converges(within) {
    const end = this.time.now + within
    while (!this.settled) {
      assert.ok(this.time.now < end, `it does not converge: ${this.describe()}`)
      await this.time.run(SECOND)
    }
  }

  /** All is well again. */
  heal() {
    this.server.refusal = undefined
    this.server.lost = 0
    this.server.batch = 1000
    this.issuer = ''
    this.net.become({})
  }

  /** Nothing that a page showed went and came again, but where a write was taken back or the server lost something. */
  flicker() {
    const refused = new Set()
    for (const { collection, key, outcome } of this.writes.values()) {
      if (!/^(ok|duplicate)$/.test(outcome)) refused.add(`${collection} ${key}`)
    }
    for (const [row, states] of this.shown) {
      if (refused.has(row) || this.blind.has(row) || this.server.epoch !== 'epoch0') continue
      const values = states.filter((state, i) => state && state !== states[i - 1])
      assert.ok(new Set(values).size === values.length, `${row} flickered: ${states}`)
    }
    this.shown.clear()
  }

  /** What must be true in the end. */
  conclude() {
    this.flicker()
    const { server, writes } = this
    /** @type {Map<string, number>} */
    const last = new Map()
    const ids = new Set()
    for (const { by, collection, key } of server.log) {
      if (!by) continue
      assert.ok(!ids.has(by.id), `${by.id} took effect twice`)
      ids.add(by.id)
      const [client, n] = by.id.split('-')
      const row = `${client} ${collection} ${key}`
      assert.ok(Number(n) > (last.get(row) ?? 0), `${by.id} took effect out of order`)
      last.set(row, Number(n))
    }
    for (const [id, { outcome }] of writes) {
      if (/^(ok|duplicate)$/.test(outcome)) continue
      if (!/^(unknown|closed)$/.test(outcome))
        assert.ok(!ids.has(id), `${id} took effect, and was said to be ${outcome}`)
    }
  }

  /** Within any minute there are no more requests, nor tokens, than what was done and told in it gives reason for. */
  modest() {
    for (const [what, made, base] of /** @type {const} */ ([
      ['requests', this.net.made, BASE],
      ['tokens', this.asked, TOKENS],
    ])) {
      for (let first = 0, last = 0; last < made.length; last++) {
        while (made[first].at <= made[last].at - MINUTE) first++
        const bound = base + made[last].reasons - made[Math.max(0, first - 1)].reasons
        const count = last - first + 1
        assert.ok(count <= bound, `${count} ${what}, not ${bound}`)
      }
    }
  }
}

/**
 * So long, in ms, a page may say that it is live without having heard anything: a poll is held for 25 s and then waited
 * for another 10 s, or 2.5 heartbeats; and it may have been asked anew in between.
 */
const SILENCE = 46 * SECOND

/**
 * So many requests there may be within a minute, beside those that brought a change, lasted for a second, or were made
 * because something happened: a try costs five at most (a poll, both streams, a ticket for one of them, a poll that
 * carries the feed beside them), and full jitter from half a second on makes less than twenty tries in the first minute.
 */
const BASE = 5 * 20
/** A try costs two tokens at most, where the first one is not taken; and each that lives for 10 s costs some more. */
const TOKENS = 2 * 20 + 10
/** And on average: at 30 s full jitter makes four tries a minute, and six with bad luck and the beginning. */
const STEADY = 4 * 6

const RUNS = Number(process.env.RUNS ?? 1)

// Schedules.

const name = fc.constantFrom(...NAMES)
const key = fc.constantFrom(...KEYS)
const wait = fc.oneof(
  { weight: 3, arbitrary: fc.nat(50) },
  { weight: 3, arbitrary: fc.nat(2 * SECOND) },
  { weight: 3, arbitrary: fc.nat(15 * SECOND) },
  { weight: 1, arbitrary: fc.nat(2 * MINUTE) },
)
/** @type {fc.Arbitrary<Conditions>} */
const trouble = fc.oneof(
  fc.record({ upgrade: fc.constantFrom('refused', 'hanging') }),
  fc.record({ mute: fc.constantFrom('up', 'down') }),
  fc.record({ held: fc.constant(true) }),
  fc.record({ kill: fc.constantFrom(100, 1000, 3000, 7000, 12_000, 40_000) }),
  fc.record({ cut: fc.constantFrom(100, 1000, 5000, 20_000) }),
  fc.record({ bytes: fc.integer({ min: 1, max: 1500 }), clean: fc.boolean() }),
  fc.record({ cache: fc.constantFrom(1000, 20_000, 600_000) }),
  fc.record({ query: fc.constant(true) }),
  fc.record({ latency: fc.constantFrom(20, 200, 1500) }),
)
const conditions = fc.oneof(
  { weight: 4, arbitrary: fc.constant({}) },
  { weight: 2, arbitrary: fc.constantFrom({ down: true }, { hole: true }) },
  { weight: 5, arbitrary: fc.tuple(trouble, trouble).map(([one, other]) => ({ ...one, ...other })) },
)

/** What one step of a schedule does, under the words that show it. @type {Record<string, [weight: number, fc.Arbitrary<any>, (world: World, value: any) => unknown]>} */
const STEPS = {
  others: [
    8,
    fc.record({ name, keys: fc.uniqueArray(key, { minLength: 1, maxLength: 3 }), removed: fc.boolean() }),
    (world, { name, keys, removed }) => world.others(name, keys, removed),
  ],
  write: [
    8,
    fc.record({
      changes: fc.uniqueArray(
        fc.record({
          collection: name,
          key,
          op: fc.constantFrom('insert', 'modify', 'put', 'put', 'put', 'remove'),
          now: fc.nat(9).map((n) => !n),
        }),
        { minLength: 1, maxLength: 2, selector: ({ collection, key }) => `${collection} ${key}` },
      ),
      atomic: fc.boolean(),
    }),
    (world, { changes, atomic }) => world.write(changes, atomic),
  ],
  follow: [2, name, (world, name) => world.follow(name)],
  unfollow: [1, name, (world, name) => world.unfollow(name)],
  transport: [
    1,
    fc.constantFrom('auto', 'auto', 'websocket', 'sse', 'poll'),
    (world, transport) => world.client.setTransport(transport),
  ],
  event: [
    2,
    fc.constantFrom('online', 'offline', 'freeze', 'resume', 'pageshow', 'pagehide', 'visibilitychange'),
    (world, type) => world.event(type, { persisted: true }),
  ],
  sleep: [
    1,
    fc.record({ ms: fc.constantFrom(5000, 60_000, 3_600_000), stopped: fc.boolean() }),
    (world, { ms, stopped }) => world.sleep(ms, stopped),
  ],
  reload: [0.5, fc.constant(0), (world) => world.reload()],
  network: [7, conditions, (world, conditions) => world.net.become(conditions)],
  refusal: [
    2,
    fc.constantFrom(undefined, undefined, { status: 503, retry: 7 }, { status: 503 }, { status: 401 }, { status: 403 }),
    (world, refusal) => {
      world.server.refusal = refusal
    },
  ],
  end: [
    2,
    fc.constantFrom(['draining', 2000], ['draining', 0], ['revoked'], ['expired'], ['slow', 1000], ['failed', 1000]),
    (world, [reason, retry]) => {
      if (reason === 'expired') world.server.oldest = world.server.issued + 1
      world.server.end(reason, retry)
    },
  ],
  revoke: [1, fc.constant(0), (world) => world.server.revoke()],
  issuer: [
    2,
    fc.constantFrom('', '', 'cached', 'stale', 'slow', 'fails'),
    (world, issuer) => {
      world.issuer = issuer
    },
  ],
  restore: [1, fc.nat(6), (world, count) => world.server.restore(count)],
  forget: [1, fc.constant(0), (world) => world.server.forget()],
  lose: [2, fc.integer({ min: 1, max: 3 }), (world, lost) => Object.assign(world.server, { lost })],
  batch: [1, fc.constantFrom(1, 2, 1000), (world, batch) => Object.assign(world.server, { batch })],
  place: [0.5, fc.constantFrom('home', 'cafe'), (world, place) => Object.assign(world.server, { place })],
}

const step = fc.oneof(
  ...Object.entries(STEPS).map(([does, [weight, value]]) => ({
    weight: weight * 2,
    arbitrary: fc.record({ do: fc.constant(does), value, wait }),
  })),
)

const schedule = fc.array(step, { maxLength: 60, size: 'max' })

/** What a world is like from its beginning. */
const worlds = {
  seed: fc.integer(),
  secure: fc.boolean(),
  life: fc.constantFrom(Infinity, 10 * SECOND, MINUTE, 10 * MINUTE, 60 * MINUTE),
  skew: fc.constantFrom(0, 0, 0, -30 * SECOND, 30 * SECOND, -2 * 60 * MINUTE, 2 * 60 * MINUTE),
}

/** @param {World} world @param {{do: string, value: any, wait: number}[]} steps */
async function play(world, steps) {
  for (const { do: does, value, wait } of steps) {
    world.net.done++
    await STEPS[does][2](world, value)
    await world.time.run(wait)
  }
}

test('whatever happens, a page is in step again soon after all is well, and was honest and modest all the time', async () => {
  const transport = fc.constantFrom('auto', 'auto', 'auto', 'websocket', 'sse', 'poll')
  const options = fc.record({ ...worlds, transport })
  await fc.assert(
    fc.asyncProperty(options, fc.constantFrom(0, 5, 100), schedule, async (options, jitter, steps) => {
      const world = new World(/** @type {any} */ (options))
      world.net.jitter = jitter
      for (const name of NAMES.slice(1)) world.follow(name)
      await play(world, steps)
      world.heal()
      await world.converges(10 * MINUTE)
      // What went wrong before may show only now.
      await world.time.run(MINUTE)
      await world.converges(10 * MINUTE)
      for (const name of NAMES) world.others(name, ['a'], false)
      await world.converges(MINUTE)
      world.conclude()
      world.modest()
      for (const name of NAMES) world.unfollow(name)
      await world.client.close()
    }),
    { numRuns: 120 * RUNS, includeErrorInReport: true },
  )
})

test('whatever a network stays like, and whatever the server says, a page leaves them in peace', async () => {
  const options = fc.record({ ...worlds, transport: fc.constantFrom('auto', 'auto', 'websocket', 'sse', 'poll') })
  const issuers = fc.constantFrom('', '', 'cached', 'stale', 'slow', 'fails')
  const refusals = fc.constantFrom(undefined, undefined, { status: 503 }, { status: 403 })
  await fc.assert(
    fc.asyncProperty(
      options,
      conditions,
      refusals,
      issuers,
      fc.boolean(),
      async (options, conditions, refusal, issuer, early) => {
        const world = new World(/** @type {any} */ (options))
        for (const name of NAMES) {
          world.others(name, KEYS, false)
          world.follow(name)
        }
        if (!early) await world.time.run(SECOND)
        world.net.become(conditions)
        world.server.refusal = refusal
        world.issuer = /** @type {any} */ (issuer)
        await world.time.run(30 * MINUTE)
        world.modest()
        const { length } = world.net.made
        assert.ok(length < 30 * STEADY + world.net.lasted, `${length} requests, of which ${world.net.lasted} lasted`)
        assert.ok(world.asked.length < 30 * 20, `${world.asked.length} tokens`)
      },
    ),
    { numRuns: 60 * RUNS, includeErrorInReport: true },
  )
})

test('while the server is away for an hour it is asked ever more rarely, and the page is back within a minute', async () => {
  /** @type {[string, Conditions, {status: number} | undefined, number][]} */
  const stories = [
    ['its machine is off', { down: true }, undefined, 600],
    ['nothing comes through', { hole: true }, undefined, 400],
    ['a proxy answers for it', {}, { status: 502 }, 600],
  ]
  for (const [story, conditions, refusal, most] of stories) {
    for (let seed = 0; seed < 10; seed++) {
      const world = new World({ seed })
      world.follow('todos')
      await world.time.run(10 * SECOND)
      const before = world.net.made.length
      world.net.become(conditions)
      world.server.refusal = refusal
      if (refusal) world.server.end('failed', 1000)
      await world.time.run(60 * MINUTE)
      const count = world.net.made.length - before
      assert.ok(count < most, `${story}: ${count} requests`)
      assert.equal(world.client.status.state === 'live', false, story)
      world.heal()
      world.others('todos', ['a'], false)
      await world.converges(MINUTE)
    }
  }
})

test('a cache that keeps every answer for ever is got past', async () => {
  for (const transport of /** @type {const} */ (['auto', 'sse', 'poll'])) {
    const world = new World({ transport })
    world.net.become({ cache: Infinity, upgrade: 'refused' })
    world.others('todos', ['a', 'b'], false)
    // The first page fills it, and the next one starts from what it has.
    for (let page = 0; page < 2; page++) {
      world.follow('todos')
      for (let i = 0; i < 5; i++) {
        // Long enough for an answer that says that nothing is new.
        await world.time.run(MINUTE)
        world.others('todos', ['a'], false)
        await world.converges(5 * SECOND)
      }
      await world.reload()
    }
  }
})

test('behind a cache that gives one answer to all requests a page knows that it is not live, and is patient', async () => {
  for (const transport of /** @type {const} */ (['auto', 'sse', 'poll'])) {
    const world = new World({ transport })
    world.net.become({ cache: Infinity, same: true, upgrade: 'refused' })
    world.follow('todos')
    let live = 0
    for (let i = 0; i < 600; i++) {
      if (i % 10 === 0) world.others('todos', ['a'], false)
      await world.time.run(SECOND)
      if (world.client.status.state === 'live') live++
    }
    assert.ok(live <= 6, `it said so ${live} times`)
    assert.equal(world.client.status.reason, transport === 'sse' ? 'ended' : 'nothing new')
    world.modest()
    assert.ok(world.net.made.length < 10 * STEADY)
    world.heal()
    await world.converges(MINUTE)
  }
})

// What went wrong once.

/** A page that is live with these collections. @param {Transport | 'auto'} transport @param {string[]} names */
async function live(transport, ...names) {
  const world = new World({ transport })
  // The feed is faster than the answers to writes.
  world.server.random = () => 0
  for (const name of names) world.follow(name)
  await world.time.run(SECOND)
  assert.equal(world.client.status.state, 'live')
  return world
}

/** @param {'insert' | 'modify' | 'put' | 'remove'} op @param {string} key */
const change = (op, key, collection = 'todos') => [{ op, key, collection, now: false }]

const only = (/** @type {World} */ world) => [...world.writes.values()].map(({ outcome }) => outcome)

test('a page whose clock stood still in its sleep does not write twice what was sent an hour ago', async () => {
  const world = await live('poll', 'todos')
  world.server.lost = 1
  world.write(change('insert', 'a'), true)
  await world.time.run(2)
  world.others('todos', ['a'], true)
  await world.sleep(60 * MINUTE, true)
  await world.time.run(MINUTE)
  assert.deepEqual(only(world), ['unknown'])
  world.conclude()
})

test('a write that has no answer does not make a page say that it is live for longer', async () => {
  const world = await live('poll', 'todos')
  world.net.become({ hole: true })
  world.write(change('put', 'a'), true)
  await world.time.run(SILENCE + 3 * SECOND)
  assert.notEqual(world.client.status.state, 'live')
})

test('of a write whose answer was lost nothing is said for sure when the second try is not let in', async () => {
  const world = await live('sse', 'todos')
  world.server.lost = 1
  world.write(change('insert', 'a'), true)
  await world.time.run(2)
  world.server.refusal = { status: 403 }
  await world.time.run(MINUTE)
  assert.deepEqual(only(world), ['unknown'])
})

test('a write that is refused at first, and whose answer is lost, does not take effect after those behind it', async () => {
  const world = await live('poll', 'todos')
  world.others('todos', ['a'], false)
  await world.time.run(SECOND)
  world.write(change('put', 'b'), true)
  world.write(change('insert', 'a'), true)
  world.write(change('remove', 'a'), true)
  await world.time.run(1)
  world.server.lost = 1
  await world.time.run(MINUTE)
  assert.equal(world.server.rows('todos').has('a'), false)
})

test('of two writes to one row that went together the first does not show again when the feed brings the second', async () => {
  const world = await live('sse', 'todos')
  world.write(change('put', 'b'), true)
  world.write(change('put', 'a'), true)
  world.write(change('put', 'a'), true)
  await world.time.run(SECOND)
  assert.deepEqual(world.shown.get('todos a'), ['2', '3'])
})

test('an own write that a reset brings before its answer comes shows on until the reset is whole', async () => {
  const world = new World()
  world.others('todos', ['a'], false)
  world.follow('todos')
  await world.time.run(1)
  // It has row a on its way, and will be told to read all anew, in two pieces.
  world.others('todos', ['a'], true)
  world.server.forget()
  world.server.batch = 1
  world.server.lost = 1
  world.write(change('insert', 'a'), true)
  await world.time.run(2)
  world.others('todos', ['b'], false)
  await world.time.run(MINUTE)
  assert.deepEqual(world.shown.get('todos a'), ['2'])
})

test('what is written as soon as its collection is followed does not vanish until the feed brings it', async () => {
  const world = await live('sse', 'todos')
  world.follow('lists')
  world.write(change('put', 'a', 'lists'), true)
  await world.time.run(SECOND)
  assert.deepEqual(world.shown.get('lists a'), ['1'])
})

test('a WebSocket on which no write is heard is not used for the next one', async () => {
  const world = await live('auto', 'todos')
  assert.equal(world.client.status.transport, 'websocket')
  world.net.become({ mute: 'up' })
  world.write(change('put', 'a'), true)
  await world.time.run(40 * SECOND)
  world.write(change('put', 'b'), true)
  await world.time.run(10 * SECOND)
  assert.deepEqual(only(world), ['ok', 'ok'])
})

test('a stream that died young is no reason to hold polls for less', async () => {
  const world = await live('auto', 'todos')
  world.net.become({ mute: 'down' })
  await world.time.run(3 * MINUTE)
  assert.match(`${world.net.asked.at(-1)}`, /transport=poll.*wait=25/)
})

// What was found so.

test('a write that takes its time does not make a poll look dead', async () => {
  const world = await live('poll', 'todos')
  const states = new Set()
  world.client.onStatus(({ state }) => states.add(state))
  const { request } = world.server
  world.server.request = (asked, out) => {
    world.time.after(asked.method === 'POST' ? 25 * SECOND : 0, () => request.call(world.server, asked, out))
  }
  await world.time.run(20 * SECOND)
  world.write(change('put', 'a'), true)
  await world.time.run(MINUTE)
  assert.deepEqual([only(world), [...states]], [['ok'], []])
})

test('a write that the server refuses at the second try says why', async () => {
  const world = await live('sse', 'todos')
  world.others('todos', ['a'], false)
  world.server.refusal = { status: 503 }
  world.write(change('insert', 'a'), true)
  await world.time.run(10)
  world.server.refusal = undefined
  await world.time.run(MINUTE)
  assert.deepEqual(only(world), ['exists'])
})

test('who leaves a collection and comes back while writes are under way sees the newest of them', async () => {
  const world = await live('sse', 'todos')
  world.server.lost = 1
  world.write(change('put', 'a'), true)
  world.write(change('put', 'a'), true)
  await world.time.run(6)
  world.follow('todos')
  await world.time.run(SECOND)
  assert.deepEqual(world.shown.get('todos a'), ['1', '2'])
})
