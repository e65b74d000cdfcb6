import assert from 'node:assert/strict'
import { test } from 'node:test'
import { createClient, TidemarkError } from '../src/index.js'
import { FakeClock, turns } from './clock.js'
import { install } from './install.js'
import { change, live, next, open, tick, Wire } from './wire.js'

/** @typedef {import('../src/client.js').Options} Options */
/** @typedef {import('../src/machine.js').Transport} Transport */

const TRANSPORTS = /** @type {const} */ (['sse', 'poll', 'websocket'])
const reset = { type: 'reset', collections: ['todos'], reason: 'expired' }

/**
 * A client whose network and time are in the test's hands.
 * @param {Transport | 'auto'} [transport]
 * @param {Partial<Options>} [options]
 */
function setup(transport = 'auto', options = {}) {
  const wire = new Wire()
  const clock = new FakeClock()
  const { fetch, WebSocket } = wire
  const client = createClient({
    url: 'http://tide.test/base/',
    tenant: 'demo',
    transport,
    fetch,
    WebSocket,
    clock,
    ...options,
  })
  /** @type {TidemarkError[]} */
  const errors = []
  client.onError((error) => errors.push(error))
  /** @type {string[]} */
  const states = []
  client.onStatus(({ state, reason }) => states.push(reason ? `${state}: ${reason}` : state))
  const todos = client.collection('todos')
  /** @type {string[]} */
  const told = []
  const follow = async () => {
    const undo = todos.subscribe(({ changes }) => told.push(changes.map(({ op, key }) => `${op} ${key}`).join(', ')))
    await turns()
    return undo
  }
  /** Follows, until it is live. @param {number} seq @param {object[]} changes */
  const reach = async (seq, ...changes) => {
    const undo = await follow()
    await wire.reach(transport === 'auto' ? 'websocket' : transport, seq, ...changes)
    return undo
  }
  /** What the user sees of it. */
  const seen = () => `${client.status.state} ${client.status.transport} ${client.status.why}`.trim()
  return { wire, clock, client, errors, states, todos, told, follow, reach, seen }
}

/** A page around the client: its events, as the test has them happen. @param {import('node:test').TestContext} t */
function page(t) {
  /** @type {Set<unknown>} */
  const listeners = new Set()
  class Target extends EventTarget {
    /** @type {EventTarget['addEventListener']} */
    addEventListener(...args) {
      listeners.add(args[1])
      const { signal } = /** @type {any} */ (args[2])
      signal.addEventListener('abort', () => listeners.delete(args[1]))
      super.addEventListener(...args)
    }
  }
  const [window, document] = [new Target(), new Target()]
  const state = Object.assign(document, { visibilityState: 'visible', hidden: false })
  install(t, {
    addEventListener: window.addEventListener.bind(window),
    document,
  })
  return {
    listeners,
    /** @param {string} type @param {object} [fields] */
    async window(type, fields) {
      window.dispatchEvent(Object.assign(new Event(type), fields))
      await turns()
    },
    /** @param {string} type */
    async document(type, visibilityState = 'visible') {
      state.visibilityState = visibilityState
      state.hidden = visibilityState === 'hidden'
      // What happens to a document passes its window first.
      window.dispatchEvent(new Event(type))
      await turns()
    },
  }
}

/** What a browser keeps for a site. @param {import('node:test').TestContext} t */
function storage(t) {
  /** @type {Map<string, string>} */
  const items = new Map()
  install(t, {
    localStorage: {
      getItem: (/** @type {string} */ key) => items.get(key) ?? null,
      setItem: (/** @type {string} */ key, /** @type {string} */ value) => items.set(key, value),
    },
  })
  return items
}

// What is followed, and what is told.

test('nothing is asked of the network before something is followed, and nothing after it is left', async () => {
  const { wire, client, follow } = setup('sse')
  await turns()
  assert.equal(wire.requests.length, 0)
  assert.deepEqual([client.status.state, client.status.reason], ['offline', 'idle'])
  const undo = await follow()
  const { url, init } = wire.feed
  assert.equal(url.href.split('?')[0], 'http://tide.test/base/v1/demo/feed')
  assert.deepEqual([wire.feed.query.get('transport'), wire.feed.query.get('wait')], ['poll', '0'])
  assert.equal(init.cache, 'no-store')
  assert.equal(wire.unbound, true, 'fetch must not be called as a method')
  await wire.reach('sse', 1)
  assert.deepEqual([wire.feed.query.get('transport'), wire.feed.sse, wire.held], ['sse', true, 'sse'])
  undo()
  await turns()
  assert.deepEqual([wire.stream.aborted, wire.held], [true, ''])
  assert.deepEqual([client.status.state, client.status.reason], ['offline', 'idle'])
})

test('a page that mounts, unmounts and mounts again connects once', async () => {
  const { wire, client } = setup('sse')
  const undo = ['a', 'b', 'a', 'projects/7/todos'].map((name) => client.collection(name).subscribe(() => {}))
  undo[0]()
  undo[1]()
  const again = client.collection('b').start()
  await turns()
  assert.equal(wire.feeds.length, 1)
  assert.deepEqual([...wire.feed.asked.keys()].sort(), ['a', 'b', 'projects/7/todos'])
  for (const stop of [undo[1], undo[2], undo[2], undo[3], again]) stop()
  await turns()
  assert.equal(wire.feed.aborted, true)
})

test('to follow what is followed already costs nothing, whatever is under way', async () => {
  const { wire, todos, follow } = setup('auto')
  const again = async () => {
    todos.start()
    await turns()
  }
  await follow()
  await again()
  assert.equal(wire.polls.length, 1)
  await wire.poll.reply(open, live(1))
  await again()
  assert.deepEqual([wire.polls.length, wire.sockets.length], [1, 1])
  await wire.socket.open()
  await again()
  assert.deepEqual([wire.polls.length, wire.sockets.length], [1, 1])
  await wire.socket.frames(open)
  await wire.socket.done(live(1), tick)
  await again()
  assert.deepEqual([wire.polls.length, wire.sockets.length], [1, 1])
})

test('a name with slashes is asked for as it is', async () => {
  const { wire, client } = setup('poll')
  client.collection('projects/7/todos').start()
  await turns()
  assert.match(wire.feed.url.search, /c=projects%2F7%2Ftodos(&|$)/)
})

test('as many collections as a feed may have are asked for in a URL that servers take', async () => {
  const { wire, client } = setup('poll')
  for (let i = 0; i < 255; i++) client.collection(`projects/${1000 + i}/todos`).start()
  await turns()
  await wire.poll.reply(open, live(10))
  client.collection('projects/7/todos').start()
  await turns()
  const { search, searchParams } = wire.feed.url
  assert.ok(search.length < 8000, `${search.length} characters`)
  const names = searchParams.getAll('c')
  assert.deepEqual(
    [searchParams.get('cursor'), names.length, names[0], names[255]],
    ['aaaa-10', 256, 'projects/1000/todos', 'projects/7/todos@aaaa-0'],
  )
})

test('what is no url, tenant or transport is said at once', () => {
  for (const options of /** @type {any[]} */ ([
    { url: undefined },
    { url: 'ws://tide.test' },
    { url: 'localhost:7333' },
    { url: 'http://me:secret@tide.test' },
    { tenant: undefined },
    { tenant: 'a/b' },
    { transport: 'ws' },
  ])) {
    assert.throws(() => setup(options.transport, options), TypeError, JSON.stringify(options))
  }
})

test('who waits for a sequence is told when the client is closed', async () => {
  const { client, todos, reach } = setup('poll')
  await reach(1)
  const waits = todos.awaitSeq(9)
  await Promise.all([assert.rejects(waits, { code: 'closed' }), client.close()])
  await assert.rejects(todos.awaitSeq(9), { code: 'closed' })
  await todos.awaitSeq(1)
})

test('the status tells the way to live, on a stream', async () => {
  const { wire, client, clock, states, follow } = setup('sse')
  await follow()
  await wire.poll.reply({ ...open, heartbeat: 10 }, change(1, 'a', { n: 1 }), live(3))
  assert.equal(client.status.state, 'catching-up', 'a feed that is meant to stream is live once it does')
  await wire.stream.frames({ ...open, heartbeat: 10 })
  clock.time += 1000
  await wire.stream.frames(live(4), tick)
  assert.deepEqual(states, ['connecting', 'catching-up', 'live'])
  const since = clock.time
  assert.deepEqual(
    { ...client.status },
    { state: 'live', transport: 'sse', cursor: 'aaaa-4', since, reason: '', why: 'sse: proven' },
  )
  const { status } = client
  await wire.stream.frames(change(5, 'a', { n: 5 }), live(9))
  assert.equal(client.status, status, 'the same object while nothing but the cursor changes')
  assert.equal(status.cursor, 'aaaa-9')
  assert.equal(client.cursor('todos'), 'aaaa-9')
})

test('subscribers are told once for all that came together, after all rows of all collections are in place', async () => {
  const { wire, client, todos } = setup('poll')
  const lists = client.collection('lists')
  /** @type {string[]} */
  const seen = []
  const look = (/** @type {string} */ who) => () =>
    seen.push(`${who} ${todos.rows.size} ${lists.rows.size} ${client.status.state}`)
  todos.subscribe(look('todos'))
  lists.subscribe(look('lists'))
  client.onStatus(({ state }) => state === 'live' && seen.push(`live ${todos.rows.size} ${lists.rows.size}`))
  await turns()
  await wire.feed.frames(
    open,
    change(1, 'a', { n: 1 }),
    change(2, 'b', { n: 2 }, { more: true }),
    change(3, 'x', { n: 3 }, { collection: 'lists' }),
    live(3),
  )
  assert.deepEqual(seen, ['todos 2 1 connecting', 'lists 2 1 connecting', 'live 2 1'])
  assert.equal(todos.version, 1)
})

test('of a row that changed several times in one go only the outcome is told, and what came to nothing is not', async () => {
  const { wire, todos, told, reach } = setup('sse')
  await reach(3, change(1, 'a', { n: 1 }), change(2, 'b', { n: 2 }))
  const { rows } = todos
  const b = rows.get('b')
  await wire.stream.frames(
    change(4, 'a', { n: 4 }),
    change(5, 'a', null),
    change(6, 'b', { n: 6 }),
    change(7, 'c', { n: 7 }),
    change(8, 'c', null),
    change(9, 'b', { n: 2 }),
  )
  assert.deepEqual(told, ['insert a, insert b', 'remove a'])
  assert.equal(todos.rows, rows, 'always the same Map')
  assert.equal(rows.get('b'), b, 'an equal row keeps its object')
  assert.equal(todos.version, 2)
})

test('a page learns that a collection is whole, also an empty one, and that it has come to a sequence', async () => {
  const { wire, todos, told, follow } = setup('poll')
  await follow()
  /** @type {number[]} */
  const arrived = []
  for (const seq of [1, 2, 5]) todos.awaitSeq(seq).then(() => arrived.push(seq))
  await wire.poll.frames(open, next(1))
  assert.deepEqual([todos.ready, told, arrived], [false, [], [1]])
  await wire.poll.end()
  await wire.poll.frames(open, live(3))
  assert.deepEqual([todos.ready, told, arrived], [true, [''], [1, 2]])
  await wire.poll.end()
  await wire.poll.frames(open, reset, change(6, 'a', { n: 6 }))
  assert.deepEqual([todos.ready, arrived], [true, [1, 2]], 'what is read anew may lack what was there')
  await wire.poll.frames(live(6))
  assert.deepEqual(
    [told, arrived],
    [
      ['', 'insert a'],
      [1, 2, 5],
    ],
  )
  await todos.awaitSeq(6)
})

test('letters that the network cuts in two arrive whole', async () => {
  for (const transport of /** @type {const} */ (['sse', 'poll'])) {
    const { wire, todos, reach, follow } = setup(transport)
    if (transport === 'sse') await reach(0)
    else await follow()
    const frames = [open, change(1, 'ключ🌊', { title: 'молоко 🥛' }), live(1)]
    const text = frames
      .map((f) => (transport === 'sse' ? `data: ${JSON.stringify(f)}\r\n\r\n` : `${JSON.stringify(f)}\n`))
      .join('')
    for (const byte of new TextEncoder().encode(text)) wire.feed.write(Uint8Array.of(byte))
    await wire.feed.end()
    await turns()
    assert.deepEqual([...todos.rows], [['ключ🌊', { title: 'молоко 🥛' }]])
  }
})

// Polls.

test('a poll asks again at once after next, waits only when live, and stays live between two answers', async () => {
  const { wire, clock, client, states, follow } = setup('poll')
  await follow()
  assert.equal(wire.feed.query.get('wait'), '0')
  await wire.feed.reply(open, change(1, 'a', { n: 1 }), next(1))
  assert.equal(wire.feeds.length, 2)
  assert.deepEqual([...wire.feed.asked], [['todos', 'aaaa-1']])
  assert.equal(wire.feed.query.get('wait'), '0')
  await wire.feed.reply(open, change(2, 'b', { n: 2 }), live(2))
  assert.equal(wire.feeds.length, 3)
  assert.equal(wire.feed.query.get('wait'), '25')
  assert.deepEqual([...wire.feed.asked], [['todos', 'aaaa-2']])
  for (let i = 0; i < 3; i++) {
    await clock.advance(25_000)
    await wire.feed.reply(open, live(3 + i))
  }
  assert.equal(wire.feeds.length, 6)
  assert.equal(client.cursor('todos'), 'aaaa-5')
  assert.deepEqual(states, ['connecting', 'catching-up', 'live'])
})

test('the first page comes soon, and the following ones are large', async () => {
  const { wire, follow } = setup('auto')
  await follow()
  const limits = []
  for (let i = 1; i < 4; i++) {
    limits.push(wire.poll.query.get('limit'))
    await wire.poll.reply(open, change(i, 'a', { n: i }), i < 3 ? next(i) : live(i))
  }
  assert.deepEqual(limits, [null, '10000', '10000'])
})

test('answers of the past may come from a cache for who has nothing yet, and never for who was live', async () => {
  const { wire, clock, follow } = setup('poll')
  await follow()
  await wire.poll.reply(open, change(1, 'a', { n: 1 }), next(1))
  assert.deepEqual(
    wire.polls.map(({ query }) => query.get('_')),
    [null, null],
  )
  await wire.poll.reply(open, live(2))
  await wire.poll.fail()
  await clock.advance(250)
  await wire.poll.fail()
  await clock.advance(500)
  const nonces = wire.polls.slice(2).map(({ query }) => query.get('_'))
  assert.equal(new Set(nonces).size, 3)
  assert.ok(nonces.every(Boolean))
})

test('a poll that is cut off keeps its whole lines, and goes on from there', async () => {
  const { wire, client, todos, follow } = setup('poll')
  await follow()
  await wire.feed.frames(open, change(1, 'a', { n: 1 }))
  await wire.feed.write(JSON.stringify(change(2, 'b', { n: 2 })).slice(0, -1))
  await wire.feed.fail()
  assert.deepEqual([...todos.rows], [['a', { n: 1 }]])
  assert.deepEqual([wire.feeds.length, ...wire.feed.asked], [2, ['todos', 'aaaa-1']])
  await wire.feed.reply(open, change(2, 'b', { n: 2 }))
  assert.deepEqual([...todos.rows.keys()], ['a', 'b'])
  assert.deepEqual([...wire.feed.asked], [['todos', 'aaaa-2']], 'what brings something is asked for more at once')
  await wire.feed.reply(open)
  assert.equal(wire.held, '', 'an answer without live or next is a cut-off one')
  assert.equal(client.status.reason, 'cut off')
})

test('on a network that cuts long answers short ones are asked for, and all rows come', async () => {
  const { wire, todos, follow, seen } = setup('poll')
  await follow()
  const limits = []
  for (let seq = 1; seq < 40; seq++) {
    const limit = Number(wire.poll.query.get('limit') ?? 1000)
    limits.push(limit)
    await wire.poll.frames(open, change(seq, `k${seq}`, { seq }))
    // What is longer than 40 changes does not come to its end.
    if (limit > 40) await wire.poll.fail()
    else await wire.poll.reply(seq < 39 ? next(seq) : live(seq))
  }
  assert.deepEqual([todos.rows.size, seen()], [39, 'live poll'])
  const short = limits.filter((limit) => limit <= 40)
  assert.ok(short.length > limits.length / 2, `${limits}`)
})

test('frames that nobody knows yet may follow the last one of a poll', async () => {
  const { wire, client, follow } = setup('poll')
  await follow()
  await wire.feed.reply(open, live(1), { type: 'sparkle' })
  assert.deepEqual([client.status.state, wire.feeds.length], ['live', 2])
  await wire.feed.write('\n')
  await wire.feed.end()
  assert.equal(client.status.reason, 'cut off', 'what the answer before came to does not count for this one')
})

test('a poll that is answered at once with nothing new is not asked again at once', async () => {
  const { wire, clock, states, follow } = setup('poll')
  await follow()
  // The third one brings what the second has brought.
  for (let i = 1; i < 4; i++) await wire.feed.reply(open, change(Math.min(i, 2), 'a', { n: i }), live(Math.min(i, 2)))
  assert.equal(wire.feeds.length, 3)
  assert.equal(states.at(-1), 'offline: nothing new')
  assert.ok(clock.next >= 200)
})

test('a held poll is not taken for a dead one', async () => {
  const { wire, clock, client, follow } = setup('poll', { heartbeat: 3 })
  await follow()
  await wire.feed.reply({ ...open, heartbeat: 3 }, live(1))
  await clock.advance(30_000)
  assert.deepEqual([client.status.state, wire.feed.aborted], ['live', false])
  await clock.advance(5000)
  assert.deepEqual([client.status.state, wire.feeds[1].aborted], ['offline', true])
})

test('a network that loses the query of a url gets it as part of the path, once and for all', async () => {
  const { wire, clock, client, errors, follow, seen } = setup('auto', { WebSocket: undefined })
  await follow()
  await wire.poll.answer(400, { code: 'bad-request', detail: 'no collection' })
  assert.deepEqual([client.status.state, errors], ['offline', []])
  await clock.advance(250)
  const { url } = wire.poll
  assert.match(url.href, /^http:\/\/tide\.test\/base\/v1\/demo\/feed\/[^?]+$/)
  assert.deepEqual([wire.poll.query.get('transport'), wire.poll.query.get('wait')], ['poll', '0'])
  await wire.poll.reply(open, change(1, 'a', { n: 1 }), live(1))
  assert.equal(wire.stream.url.search, '')
  assert.deepEqual([...wire.stream.asked], [['todos', 'aaaa-1']])
  await wire.prove('sse', 1)
  assert.equal(seen(), 'live sse sse: proven')
})

test('a server that does not like the request, however it is put, is not asked again and again', async () => {
  const { wire, clock, client, errors, follow } = setup('poll')
  await follow()
  for (let i = 0; i < 2; i++) {
    await wire.poll.answer(400, { code: 'bad-request', detail: 'heartbeat: 3 to 30' })
    await clock.advance(1000)
  }
  assert.equal(wire.polls.length, 2)
  assert.deepEqual([client.status.state, errors.map(({ code }) => code)], ['denied', ['bad-request']])
})

// The transport is found.

test('the rows come by a poll, and a stream takes over as soon as it has proven itself', async () => {
  const { wire, clock, todos, states, follow, seen } = setup('auto')
  await follow()
  assert.equal(wire.held, 'poll')
  await wire.poll.reply(open, change(1, 'a', { n: 1 }), live(1))
  assert.deepEqual([seen(), wire.held], ['live poll', 'websocket'])
  const { url } = wire.socket
  assert.deepEqual(
    [url.protocol, url.searchParams.get('transport'), url.searchParams.has('c')],
    ['ws:', 'websocket', false],
  )
  await clock.advance(100)
  await wire.socket.open()
  assert.deepEqual([...wire.socket.asked], [['todos', 'aaaa-1']])
  await wire.socket.frames(open)
  await wire.socket.done(live(1))
  await clock.advance(299)
  assert.equal(seen(), 'live poll')
  await wire.socket.frames(tick)
  assert.equal(seen(), 'live websocket websocket: proven')
  await clock.advance(20_000)
  assert.deepEqual([wire.polls.length, wire.held], [1, 'websocket'], 'nothing beside what works')
  await wire.socket.frames(change(2, 'b', { n: 2 }))
  assert.deepEqual([...todos.rows.keys()], ['a', 'b'])
  assert.deepEqual([...new Set(states)], ['connecting', 'live'])
})

test('a poll carries while the stream is on trial, and what comes by both is told once', async () => {
  const { wire, clock, todos, told, states, follow, seen } = setup('auto')
  await follow()
  await wire.poll.reply(open, change(1, 'a', { n: 1 }), live(1))
  await clock.advance(399)
  assert.equal(wire.held, 'websocket')
  await clock.advance(1)
  assert.deepEqual([wire.held, wire.poll.query.get('wait')], ['poll websocket', '25'])
  assert.deepEqual([...wire.poll.asked], [['todos', 'aaaa-1']])
  await wire.socket.open()
  await wire.socket.frames(open)
  await wire.poll.frames(open, change(2, 'b', { n: 2 }))
  await wire.socket.done(change(2, 'b', { n: 2 }), change(3, 'c', { n: 3 }), live(3))
  await wire.poll.frames(change(3, 'c', { n: 3 }))
  await wire.poll.reply(live(3))
  assert.deepEqual([wire.polls.length, wire.held], [3, 'poll websocket'])
  await wire.socket.frames(change(4, 'a', null), tick)
  assert.deepEqual([seen(), wire.held, wire.poll.aborted], ['live websocket websocket: proven', 'websocket', true])
  assert.deepEqual(told, ['insert a', 'insert b', 'insert c', 'remove a'])
  assert.deepEqual([...todos.rows.keys()], ['b', 'c'])
  assert.deepEqual(states, ['connecting', 'live', 'live'])
})

test('a stream that is held back on its way is not believed, however open it is', async () => {
  const { wire, clock, client, todos, states, follow, seen } = setup('auto')
  await follow()
  await wire.poll.reply(open, live(1))
  await wire.socket.open()
  await clock.advance(2999)
  assert.equal(wire.held, 'poll websocket')
  await clock.advance(1)
  assert.deepEqual([seen(), wire.held], ['live poll websocket: not proven', 'poll sse'])
  // A box that passes the first bytes at once, and keeps what follows.
  await wire.stream.frames(open, live(1))
  await wire.poll.reply(open, change(2, 'b', { n: 2 }), live(2))
  await clock.advance(3000)
  assert.deepEqual([seen(), wire.held], ['live poll sse: not proven', 'poll'])
  assert.deepEqual([...todos.rows.keys()], ['b'])
  assert.deepEqual([...new Set(states)], ['connecting', 'live'])
  assert.equal(client.status.reason, '')
})

test('where no stream gets through they are tried again after 1, 5, 15 and 15 minutes, and polls go on meanwhile', async () => {
  const { wire, clock, client, follow } = setup('auto')
  await follow()
  await wire.poll.reply(open, live(1))
  const began = [clock.time]
  // Held polls are answered after 25 s, and streams are held back.
  for (let s = 1; began.length < 6; s++) {
    assert.ok(s < 4000)
    await clock.advance(1000)
    if (wire.sockets.length > began.length) began.push(clock.time)
    if (s % 25 === 0) await wire.poll.reply(open, change(s, 'a', { n: s }), live(s))
  }
  const pauses = began.slice(1).map((time, i) => (time - began[i]) / 1000)
  // Both are tried, for 3 s each.
  assert.deepEqual(pauses, [66, 306, 906, 906, 906])
  assert.equal(wire.streams.length, 5)
  assert.equal(client.status.state, 'live')
})

test('a WebSocket that says all and hears nothing is not believed', async () => {
  const { wire, clock, follow, seen } = setup('auto')
  await follow()
  await wire.poll.reply(open, live(1))
  await wire.socket.open()
  await wire.socket.frames(open, tick, live(1))
  await clock.advance(2000)
  await wire.socket.frames(live(1))
  assert.equal(seen(), 'live poll')
  await clock.advance(1000)
  assert.deepEqual([seen(), wire.held], ['live poll websocket: not proven', 'poll sse'])
})

test('a WebSocket whose tick is faster than the answer to its subscribe is proven all the same', async () => {
  const { wire, follow, seen } = setup('auto')
  await follow()
  await wire.poll.reply(open, live(1))
  await wire.socket.open()
  await wire.socket.frames(open, tick)
  await wire.socket.done(live(1))
  assert.equal(seen(), 'live websocket websocket: proven')
})

test('a WebSocket that can not even be made makes room for the next stream', async () => {
  class Forbidden {
    constructor() {
      throw new DOMException('insecure', 'SecurityError')
    }
  }
  const { wire, follow, seen } = setup('auto', { WebSocket: /** @type {any} */ (Forbidden) })
  await follow()
  await wire.poll.reply(open, live(1))
  await wire.prove('sse', 1)
  assert.equal(seen(), 'live sse sse: proven')
})

test('a stream that fails at once makes room for the next at once', async () => {
  const { wire, follow, seen } = setup('auto')
  await follow()
  await wire.poll.reply(open, live(1))
  await wire.socket.die()
  assert.deepEqual([seen(), wire.held], ['live poll websocket: unavailable', 'poll sse'])
  await wire.prove('sse', 1)
  assert.deepEqual([seen(), wire.held], ['live sse sse: proven', 'sse'])
})

test('without a WebSocket in this place there is still SSE, and who insists is told what to do', async () => {
  if (globalThis.WebSocket) return
  const { wire, client, follow } = setup('auto', { WebSocket: undefined })
  await follow()
  await wire.reach('sse', 1)
  assert.equal(client.status.transport, 'sse')
  assert.throws(() => client.setTransport('websocket'), /give a WebSocket/)
  assert.throws(() => setup('websocket', { WebSocket: undefined }), /give a WebSocket/)
})

test('a proven stream that is lost after good times comes back by cursor, with a poll beside it if it does not', async () => {
  const { wire, clock, reach, seen, states } = setup('auto')
  await reach(5, change(4, 'a', { n: 4 }))
  await clock.advance(10_000)
  await wire.socket.frames(live(7))
  await wire.socket.die()
  assert.deepEqual([wire.held, states.at(-1)], ['', 'offline: unavailable'])
  await clock.advance(250)
  assert.deepEqual([wire.held, wire.polls.length], ['websocket', 1])
  await wire.socket.open()
  assert.deepEqual([...wire.socket.asked], [['todos', 'aaaa-7']])
  await clock.advance(400)
  assert.deepEqual([wire.held, wire.poll.query.get('wait')], ['poll websocket', '0'])
  await wire.poll.reply(open, live(7))
  assert.equal(states.at(-1), 'live')
  assert.equal(wire.held, 'poll websocket')
  await wire.socket.frames(open)
  await wire.socket.done(live(7), tick)
  assert.deepEqual([wire.held, seen()], ['websocket', 'live websocket websocket: proven'])
})

test('a stream that dies young three times in a row is not tried by itself for ten minutes', async () => {
  const { wire, clock, reach, seen } = setup('auto')
  await reach(1)
  for (let i = 0; i < 3; i++) {
    await clock.advance(9000)
    await wire.socket.die()
    // A poll says whether the server is there at all.
    await clock.advance(wire.polls.at(-1)?.over ? clock.next : 0)
    assert.equal(wire.held, 'poll')
    await wire.poll.reply(open, live(1))
    if (i < 2) await wire.prove('websocket', 1)
  }
  assert.equal(wire.held, 'sse')
  await wire.prove('sse', 1)
  assert.deepEqual([seen(), wire.sockets.length], ['live sse sse: proven', 3])
  // Another loss within the ten minutes does not bring it back.
  for (let i = 0; i < 30; i++) {
    await clock.advance(15_000)
    await wire.stream.frames(live(2 + i))
  }
  await wire.stream.end()
  await clock.advance(250)
  assert.equal(wire.held, 'sse')
  assert.equal(wire.sockets.length, 3)
})

test('two young deaths and a good time are no three young deaths', async () => {
  const { wire, clock, reach } = setup('auto')
  await reach(1)
  for (const age of [1000, 1000, 11_000, 1000, 1000]) {
    await clock.advance(age)
    await wire.socket.die()
    await clock.advance(clock.next)
    if (wire.held === 'poll') await wire.poll.reply(open, live(1))
    assert.equal(wire.held, 'websocket')
    await wire.prove('websocket', 1)
  }
  assert.equal(wire.streams.length, 0)
})

test('a server that is restarted again and again demotes no transport', async () => {
  const { wire, clock, reach, seen } = setup('auto')
  await reach(1)
  for (let i = 0; i < 8; i++) {
    await clock.advance(1000)
    await wire.socket.die()
    // It is away for a moment: polls fail as well.
    await clock.advance(clock.next)
    await wire.poll.fail()
    await clock.advance(clock.next)
    if (wire.held === 'poll') await wire.poll.reply(open, live(1))
    assert.equal(wire.held, 'websocket', `${i}`)
    await wire.prove('websocket', 1)
  }
  assert.equal(seen(), 'live websocket websocket: proven')
})

test('a server that goes away while a transport is on trial demotes none', async () => {
  const { wire, clock, follow, seen } = setup('auto')
  await follow()
  for (let i = 0; i < 8; i++) {
    await wire.poll.reply(open, live(1))
    assert.equal(wire.held, 'websocket', `${i}`)
    await wire.socket.die()
    assert.equal(wire.held, 'poll sse')
    await wire.stream.fail()
    await wire.poll.fail()
    await clock.advance(clock.next)
  }
  await wire.reach('websocket', 1)
  assert.equal(seen(), 'live websocket websocket: proven')
})

test('what worked on a network is tried first the next time, and what did not is left alone', async (t) => {
  storage(t)
  const first = setup('auto')
  first.wire.open = { ...open, network: 'office' }
  await first.follow()
  await first.wire.poll.reply(first.wire.open, live(1))
  await first.clock.advance(3000)
  await first.wire.prove('sse', 1)
  assert.equal(first.seen(), 'live sse sse: proven')
  await first.client.close()

  const second = setup('auto')
  second.wire.open = { ...open, network: 'office' }
  await second.follow()
  await second.wire.poll.reply(second.wire.open, live(1))
  assert.equal(second.wire.held, 'sse')
  await second.wire.prove('sse', 1)
  await second.client.close()
  assert.equal(second.wire.sockets.length, 0)

  const elsewhere = setup('auto')
  elsewhere.wire.open = { ...open, network: 'home' }
  await elsewhere.follow()
  await elsewhere.wire.poll.reply(elsewhere.wire.open, live(1))
  assert.equal(elsewhere.wire.held, 'websocket')
  await elsewhere.client.close()
})

test('what is remembered of a network is forgotten after a day, and broken memories do no harm', async (t) => {
  const items = storage(t)
  const first = setup('auto')
  first.wire.open = { ...open, network: 'office' }
  await first.follow()
  await first.wire.poll.reply(first.wire.open, live(1))
  await first.clock.advance(3000)
  await first.wire.prove('sse', 1)
  await first.client.close()
  const [[key, kept]] = items
  assert.match(key, /tide\.test\/base\/v1\/demo/)
  const times = /** @type {const} */ ([
    [kept, 23, 'sse'],
    [kept, 25, 'websocket'],
    ['{"office":', 1, 'websocket'],
    ['null', 1, 'websocket'],
  ])
  for (const [memory, hours, expected] of times) {
    items.set(key, memory)
    const { wire, clock, client, follow } = setup('auto')
    clock.time += hours * 3_600_000
    await follow()
    await wire.poll.reply(first.wire.open, live(1))
    assert.equal(wire.held, expected)
    await client.close()
  }
})

test('the eight networks that were used last are remembered, and no more', async (t) => {
  const items = storage(t)
  // Not in the order of their names, and some of them twice.
  for (const [minute, i] of [7, 3, 12, 5, 9, 1, 8, 2, 7, 3, 6, 4, 0, 4].entries()) {
    const { wire, clock, client, reach } = setup('auto')
    clock.time += 60_000 * minute
    wire.open = { ...open, network: `n${i}` }
    await reach(1)
    await client.close()
  }
  const names = Object.keys(JSON.parse([...items.values()][0]))
  assert.deepEqual(names.sort(), ['n0', 'n1', 'n2', 'n3', 'n4', 'n6', 'n7', 'n8'])
})

test('a page without storage, or with one that throws, works', async (t) => {
  const no = () => {
    throw new DOMException('denied', 'SecurityError')
  }
  install(t, { localStorage: { getItem: no, setItem: no } })
  const { wire, seen, reach } = setup('auto')
  wire.open = { ...open, network: 'office' }
  await reach(1)
  assert.equal(seen(), 'live websocket websocket: proven')
})

test('on another network what was learned on the last one does not count, and what is learned goes under its own name', async (t) => {
  const items = storage(t)
  const { wire, clock, follow } = setup('auto')
  wire.open = { ...open, network: 'office' }
  await follow()
  await wire.poll.reply(wire.open, live(1))
  await clock.advance(6000)
  await wire.poll.reply(wire.open, change(2, 'a', { n: 2 }), live(2))
  assert.equal(wire.held, 'poll', 'no stream gets through in the office')
  const memory = () => JSON.parse([...items.values()][0])
  const { office } = memory()
  assert.deepEqual(Object.keys(office.bad), ['websocket', 'sse'])
  // The laptop is carried home.
  await clock.advance(5000)
  wire.open = { ...open, network: 'home' }
  await wire.poll.fail()
  await clock.advance(250)
  await wire.poll.reply(wire.open, live(2))
  assert.equal(wire.held, 'websocket')
  await wire.prove('websocket', 2)
  assert.deepEqual([memory().office, memory().home.good], [office, 'websocket'])
})

test('back on a network that is known, what is known of it counts at once', async (t) => {
  const items = storage(t)
  const { wire, clock, reach, client } = setup('auto')
  wire.open = { ...open, network: 'office' }
  await reach(1)
  const [[key, memory]] = items
  const home = { good: 'sse', at: clock.time, bad: { websocket: clock.time + 600_000 }, times: 1 }
  items.set(key, JSON.stringify({ ...JSON.parse(memory), home }))
  wire.open = { ...open, network: 'home' }
  await wire.socket.die()
  await clock.advance(250)
  await wire.poll.reply(wire.open, live(1))
  assert.equal(wire.held, 'sse')
  await wire.prove('sse', 1)
  await client.close()
  assert.equal(JSON.parse(String(items.get(key))).office.good, 'websocket')
})

test('a network that cuts what is silent twice at the same time is asked for shorter silences', async () => {
  const { wire, clock, reach } = setup('sse', { heartbeat: 30 })
  wire.open = { ...open, heartbeat: 30 }
  await reach(1)
  assert.equal(wire.stream.query.get('heartbeat'), '30')
  for (let i = 0; i < 2; i++) {
    await clock.advance(20_000)
    await wire.stream.fail()
    await clock.advance(250)
    await wire.stream.frames(wire.open, live(1), tick)
  }
  await clock.advance(20_000)
  await wire.stream.fail()
  await clock.advance(250)
  assert.ok(Number(wire.stream.query.get('heartbeat')) < 0.7 * 20)
})

// A fixed transport.

test('a fixed stream is opened after the poll that catches up, and nothing else is', async () => {
  for (const transport of /** @type {const} */ (['sse', 'websocket'])) {
    const { wire, clock, client, todos, follow, seen } = setup(transport)
    await follow()
    await wire.poll.reply(open, change(1, 'a', { n: 1 }), live(1))
    assert.deepEqual([todos.rows.size, todos.ready, seen()], [1, true, `catching-up ${transport}`])
    await clock.advance(2000)
    assert.deepEqual([wire.held, wire.polls.length], [transport, 1])
    await clock.advance(2000)
    assert.equal(wire.held, transport, 'however long it takes')
    if (transport === 'websocket') {
      await wire.socket.open()
      await wire.socket.frames(open, live(1))
      assert.equal(client.status.state, 'catching-up')
      await wire.socket.done(live(1))
    } else await wire.stream.frames(open, live(1))
    assert.equal(client.status.state, 'live')
  }
})

test('a fixed WebSocket that the network swallows is tried again, and the status says that it is the WebSocket', async () => {
  const { wire, clock, client, errors, states, follow } = setup('websocket')
  await follow()
  await wire.poll.reply(open, change(1, 'a', { n: 1 }), live(1))
  for (const delay of [250, 500, 1000, 2000, 4000]) {
    await wire.socket.die()
    const { state, reason, why, transport } = client.status
    assert.deepEqual(
      [state, reason, why, transport, clock.next],
      ['offline', 'unavailable', 'websocket: unavailable', 'websocket', delay],
    )
    await clock.advance(delay)
    assert.equal(wire.held, 'poll')
    await wire.poll.reply(open, live(1))
    assert.equal(wire.held, 'websocket')
  }
  assert.deepEqual([errors, states.includes('live')], [[], false])
})

test('polls are held polls, and nothing else, where they are what was asked for', async () => {
  const { wire, clock, follow, seen } = setup('poll')
  await follow()
  await wire.poll.reply(open, live(1))
  await clock.advance(10_000)
  assert.deepEqual([wire.held, wire.sockets.length, wire.streams.length, seen()], ['poll', 0, 0, 'live poll'])
})

// Losses.

test('a connection that says nothing for 2.5 heartbeats is given up, whatever it still claims to be', async () => {
  for (const transport of /** @type {const} */ (['websocket', 'auto'])) {
    const { wire, clock, client, states, reach } = setup(transport)
    wire.open = { ...open, heartbeat: 4 }
    await reach(1)
    for (let i = 0; i < 5; i++) {
      await clock.advance(4000)
      await wire.socket.frames(live(2 + i))
    }
    await clock.advance(9_999)
    assert.equal(wire.held, 'websocket')
    await clock.advance(1)
    assert.equal(wire.sockets[0].closed, true)
    assert.deepEqual([states.at(-1), client.status.why], ['offline: silent', 'websocket: silent'])
    await clock.advance(250)
    assert.equal(wire.sockets.length, 2)
    await wire.socket.open()
    assert.deepEqual([...wire.socket.asked], [['todos', 'aaaa-6']])
  }
})

test('an event stream that sends only comments is silent', async () => {
  const { wire, clock, client, reach } = setup('sse', { heartbeat: 3 })
  wire.open = { ...open, heartbeat: 3 }
  await reach(1)
  assert.equal(wire.stream.query.get('heartbeat'), '3')
  await clock.advance(5000)
  await wire.stream.write(': still here\n\n')
  await clock.advance(2500)
  assert.equal(wire.stream.aborted, true)
  assert.equal(client.status.reason, 'silent')
})

test('after a loss the client comes back by cursor, later each time, and at once after good times', async () => {
  const { wire, clock, client, states, reach } = setup('sse')
  await reach(8, change(7, 'a', { n: 7 }))
  await clock.advance(6000)
  await wire.stream.end()
  assert.deepEqual([states.at(-1), clock.next], ['offline: ended', 250])
  for (const delay of [250, 500, 1000, 2000, 4000, 8000, 15_000, 15_000]) {
    assert.equal(clock.next, delay)
    await clock.advance(delay)
    assert.deepEqual([...wire.feed.asked], [['todos', 'aaaa-8']])
    await wire.feed.fail()
  }
  assert.equal(states.at(-1), 'offline: unavailable')
  await clock.advance(15_000)
  if (!wire.feed.sse) await wire.poll.reply(open, live(9))
  await wire.prove('sse', 9)
  assert.equal(client.status.state, 'live')
  await clock.advance(6000)
  await wire.stream.fail()
  assert.equal(clock.next, 250)
})

test('a server that is busy is left alone for as long as it asks', async () => {
  const { wire, clock, errors, states, follow } = setup('sse')
  await follow()
  await wire.feed.answer(503, { code: 'unavailable', detail: 'draining' }, { 'Retry-After': '7' })
  assert.deepEqual([states.at(-1), clock.next], ['offline: unavailable', 7250])
  await clock.advance(7250)
  await wire.feed.answer(429, 'too many', { 'Retry-After': 'Wed, 21 Oct 2026 07:28:00 GMT' })
  assert.equal(clock.next, 500)
  await clock.advance(500)
  await wire.feed.answer(502, '<html>Bad Gateway</html>')
  assert.equal(clock.next, 1000)
  assert.deepEqual(errors, [])
})

test('what is wrong with the request is said once, and asked again minutes later, or at once by start', async () => {
  const { wire, clock, client, errors, todos, follow } = setup('sse')
  await follow()
  const no = { code: 'forbidden', detail: 'todos is not covered: ask for a token that covers it', status: 403 }
  await wire.feed.answer(403, no)
  assert.deepEqual([client.status.state, client.status.reason], ['denied', 'forbidden'])
  assert.equal(clock.next, 225_000)
  const [error] = errors
  assert.ok(error instanceof TidemarkError && error instanceof Error)
  assert.deepEqual(
    [error.code, error.status, error.message],
    ['forbidden', 403, 'todos is not covered: ask for a token that covers it'],
  )
  await clock.advance(224_999)
  assert.equal(wire.feeds.length, 1)
  await clock.advance(1)
  assert.equal(wire.feeds.length, 2)
  clock.chance = 0
  await wire.feed.answer(403, no)
  assert.equal(clock.next, 150_000)
  todos.start()
  await turns()
  assert.equal(wire.feeds.length, 3)
  await wire.feed.answer(404, '<html>not here</html>')
  assert.deepEqual([errors[2].code, errors[2].status], ['refused', 404])
})

test('who was refused and asks for another transport is not kept waiting', async () => {
  const { wire, client, follow } = setup('sse')
  await follow()
  await wire.feed.answer(404, '<html>not here</html>')
  assert.equal(client.status.state, 'denied')
  client.setTransport('poll')
  await turns()
  assert.equal(wire.feeds.length, 2)
})

test('the last word of the server is heard: come back then, or not unchanged', async () => {
  const { wire, clock, client, errors, states, reach } = setup('websocket')
  await reach(1)
  await wire.socket.frames({ type: 'end', reason: 'draining', retry: 3000 }, change(2, 'after the end', { n: 2 }))
  assert.deepEqual([states.at(-1), clock.next, errors.length], ['offline: draining', 3250, 0])
  assert.equal(client.collection('todos').rows.size, 0)
  await clock.advance(3250)
  await wire.socket.open()
  await wire.socket.frames(open, { type: 'end', reason: 'revoked' })
  assert.deepEqual([states.at(-1), clock.next], ['denied: revoked', 225_000])
  assert.equal(errors[0].code, 'revoked')
  assert.equal(wire.socket.closed, true)
  await wire.socket.die()
  assert.deepEqual([wire.polls.length, wire.sockets.length], [1, 2])
})

test('what is not JSON on the wire costs one connection and is reported, and the rows before it count', async () => {
  for (const transport of TRANSPORTS) {
    const { wire, clock, errors, states, todos, reach } = setup(transport)
    await reach(0)
    const good = [JSON.stringify(open), JSON.stringify(change(1, 'a', { n: 1 }))]
    const all = [...good, '{"type":"change","seq":2', JSON.stringify(change(3, 'c', { n: 3 }))]
    const before = wire.by(transport)
    if (transport === 'websocket') await wire.socket.message(all.join('\n'))
    else await wire.feed.write(all.map((l) => (transport === 'sse' ? `data: ${l}\n\n` : `${l}\n`)).join(''))
    assert.deepEqual([...todos.rows.keys()], ['a'])
    assert.deepEqual([errors.length, errors[0].code, before.over], [1, 'bad-frame', true])
    if (!wire.held) await clock.advance(250)
    assert.equal(wire.held, 'poll')
    assert.deepEqual([...wire.feed.asked], [['todos', 'aaaa-1']])
    await wire.feed.write('nonsense\n')
    assert.deepEqual([errors.length, states.at(-1), wire.held], [2, 'offline: bad-frame', ''])
    assert.ok(clock.next >= 200)
  }
})

test('a page of a captive portal is no feed', async () => {
  for (const transport of /** @type {const} */ (['sse', 'poll'])) {
    const { wire, clock, client, follow } = setup(transport)
    await follow()
    if (transport === 'sse') await wire.poll.reply(open, live(1))
    await wire.feed.answer(200, '<!doctype html>\n<title>Welcome to the hotel</title>\n')
    assert.equal(client.status.state, 'offline')
    assert.ok(clock.next > 0)
    await clock.advance(500)
    await wire.feed.answer(204)
    assert.equal(client.status.state, 'offline')
    assert.ok(clock.next > 0)
  }
})

test('frames of a kind that nobody knows yet are ignored on every transport', async () => {
  for (const transport of TRANSPORTS) {
    const { wire, client, errors, reach } = setup(transport)
    await reach(1)
    await wire
      .by(transport)
      .frames({ ...open, sparkle: 1 }, { type: 'sparkle', id: '1' }, change(2, 'a', { n: 2 }), live(2))
    assert.deepEqual([client.status.state, errors, client.cursor('todos')], ['live', [], 'aaaa-2'])
  }
})

test('a stream that the server refuses says why, by the poll that comes after it', async () => {
  for (const transport of /** @type {const} */ (['websocket', 'auto'])) {
    const { wire, clock, client, errors, reach } = setup(transport)
    await reach(1)
    await wire.socket.die()
    assert.deepEqual([client.status.state, errors], ['offline', []])
    await clock.advance(250)
    await wire.poll.answer(401, { code: 'unauthenticated', detail: 'sign in' })
    assert.deepEqual([client.status.state, errors[0].code], ['denied', 'unauthenticated'])
    assert.equal(wire.held, '')
  }
})

test('a WebSocket that is closed for a reason that stays is not opened again', async () => {
  for (const [code, state] of /** @type {const} */ ([
    [4401, 'denied'],
    [4403, 'denied'],
    [4400, 'denied'],
    [1012, 'offline'],
    [1006, 'offline'],
    [4408, 'offline'],
    [4409, 'offline'],
  ])) {
    const { wire, client, errors, reach } = setup('websocket')
    await reach(1)
    await wire.socket.die(code, 'because')
    assert.equal(client.status.state, state, `${code}`)
    assert.equal(errors.length, state === 'denied' ? 1 : 0)
    if (errors[0]) assert.deepEqual([errors[0].status, errors[0].message], [code - 4000, 'because'])
  }
})

test('a laptop that slept connects anew at once, by cursor, and blames nobody', async () => {
  const { wire, clock, reach, seen, states } = setup('auto')
  await reach(1)
  clock.time += 3_600_000
  await clock.advance(0)
  assert.deepEqual([states.at(-1), wire.held, wire.sockets[0].closed], ['connecting', 'websocket', true])
  await wire.prove('websocket', 9)
  assert.equal(seen(), 'live websocket websocket: proven')
})

// More or less is followed.

test('on an open WebSocket a collection more costs no connection, and one less none either', async () => {
  const { wire, client, states, reach } = setup('websocket')
  const undo = await reach(5)
  const lists = client.collection('lists')
  const leave = lists.start()
  await turns()
  const subscribe = wire.socket.sent.at(-1)
  assert.deepEqual({ ...subscribe, id: 0 }, { type: 'subscribe', id: 0, collections: [{ name: 'lists' }] })
  assert.equal(client.status.state, 'catching-up')
  await wire.socket.frames(live(6))
  assert.equal(client.status.state, 'catching-up', 'a live that was sent before says nothing of the new one')
  await wire.socket.done(change(3, 'x', { n: 3 }, { collection: 'lists' }))
  assert.equal(client.status.state, 'catching-up')
  await wire.socket.frames(live(6))
  assert.equal(client.status.state, 'live')
  assert.deepEqual([...lists.rows.keys()], ['x'])
  leave()
  await turns()
  const unsubscribe = wire.socket.sent.at(-1)
  assert.deepEqual({ ...unsubscribe, id: 0 }, { type: 'unsubscribe', id: 0, collections: ['lists'] })
  assert.equal(client.status.state, 'live')
  await wire.socket.frames({ type: 'done', id: unsubscribe.id })
  await wire.socket.frames(change(7, 'y', { n: 7 }, { collection: 'lists' }), live(7))
  assert.deepEqual([...lists.rows.keys()], ['x'], 'what is left is not kept in step')
  lists.start()
  await turns()
  const again = wire.socket.sent.at(-1)
  assert.deepEqual(again.collections, [{ name: 'lists', cursor: 'aaaa-6' }])
  // Still of the first subscription: the second brings it again.
  await wire.socket.frames(change(8, 'z', { n: 8 }, { collection: 'lists' }))
  assert.deepEqual([...lists.rows.keys()], ['x'])
  const late = ['y', 'z'].map((key, i) => change(7 + i, key, { n: 7 + i }, { collection: 'lists' }))
  await wire.socket.done(...late, live(8))
  assert.deepEqual([...lists.rows.keys()], ['x', 'y', 'z'])
  assert.deepEqual([wire.sockets.length, states.filter((s) => s.startsWith('connecting')).length], [1, 1])
  undo()
  await turns()
  await wire.socket.frames(change(9, 'a', { n: 9 }), live(9))
  assert.equal(client.collection('todos').rows.size, 0)
})

test('while a collection is subscribed in-band, what was followed before goes on', async () => {
  const { wire, client, told, reach } = setup('auto')
  await reach(5)
  client.collection('lists').start()
  await turns()
  await wire.socket.frames(change(6, 'a', { n: 6 }), live(6))
  await wire.socket.done(change(7, 'x', { n: 7 }, { collection: 'lists' }), live(7))
  assert.deepEqual([told, client.status.state], [['', 'insert a'], 'live'])
  assert.equal(wire.polls.length, 1)
})

test('a WebSocket that goes deaf is given up, though it goes on speaking', async () => {
  const { wire, clock, client, reach } = setup('auto')
  await reach(1)
  await clock.advance(20_000)
  const lists = client.collection('lists')
  lists.start()
  await turns()
  const { socket } = wire
  for (let s = 0; s < 60 && !socket.closed; s += 10) {
    await socket.frames(live(2 + s))
    await clock.advance(10_000)
  }
  assert.equal(socket.closed, true)
})

test('what is followed while the WebSocket opens is there with the rest', async () => {
  for (const transport of /** @type {const} */ (['websocket', 'auto'])) {
    const { wire, client, follow } = setup(transport)
    await follow()
    await wire.poll.reply(open, live(1))
    client.collection('lists').start()
    await turns()
    if (wire.held === 'poll') await wire.poll.reply(open, change(1, 'x', { n: 1 }, { collection: 'lists' }), live(1))
    assert.equal(wire.held, 'websocket')
    await wire.prove('websocket', 1)
    assert.deepEqual([...wire.socket.asked.keys()], ['todos', 'lists'])
    assert.deepEqual([client.status.state, client.collection('lists').ready], ['live', true])
  }
})

test('a collection that may not be followed ends the feed on a WebSocket too, and a busy server is left alone', async () => {
  for (const [transport, status, state] of /** @type {const} */ ([
    ['websocket', 403, 'denied'],
    ['websocket', 503, 'offline'],
    ['auto', 403, 'denied'],
    ['auto', 503, 'offline'],
  ])) {
    const { wire, clock, client, errors, reach } = setup(transport)
    await reach(1)
    client.collection('secrets').start()
    await turns()
    const { id } = wire.socket.subscribes[1]
    const problem = { status, code: 'some-code', detail: 'leave secrets alone' }
    await wire.socket.frames({ type: 'error', id, ...problem })
    if (client.status.state !== state) {
      // The poll hears the same.
      await clock.advance(250)
      assert.deepEqual([...wire.poll.asked.keys()], ['todos', 'secrets'])
      await wire.poll.answer(status, problem)
    }
    assert.deepEqual([client.status.state, client.status.reason], [state, 'some-code'])
    assert.deepEqual(
      errors.map(({ message }) => message),
      status === 403 ? ['leave secrets alone'] : [],
    )
  }
})

test('an error frame that answers nothing of ours is reported', async () => {
  const { wire, client, errors, reach } = setup('websocket')
  await reach(1)
  await wire.socket.frames({ type: 'error', status: 400, code: 'bad-request', detail: 'what was that' })
  assert.deepEqual([client.status.state, errors[0].code], ['live', 'bad-request'])
})

test('on a stream or a poll the feed is opened anew for a collection more, and nothing in between is missed', async () => {
  for (const transport of /** @type {const} */ (['sse', 'poll'])) {
    const { wire, client, reach } = setup(transport)
    await reach(5, change(4, 'a', { n: 4 }))
    const before = wire.feed
    const lists = client.collection('lists')
    const leave = lists.start()
    await turns()
    assert.equal(before.aborted, true)
    assert.deepEqual(
      [...wire.feed.asked],
      [
        ['todos', 'aaaa-5'],
        ['lists', undefined],
      ],
    )
    await wire.reach(transport, 6, change(2, 'x', { n: 2 }, { collection: 'lists' }))
    const { length } = wire.feeds
    leave()
    await turns()
    await wire.by(transport).frames(open, change(7, 'y', { n: 7 }, { collection: 'lists' }), live(7))
    assert.deepEqual([wire.feeds.length, [...lists.rows.keys()], client.status.state], [length, ['x'], 'live'])
    lists.start()
    await turns()
    assert.deepEqual(
      [...wire.feed.asked],
      [
        ['todos', 'aaaa-7'],
        ['lists', 'aaaa-6'],
      ],
    )
  }
})

test('changing the transport carries the cursor over, also in the middle of a reset', async () => {
  const { wire, client, todos, told, reach } = setup('websocket')
  await reach(2, change(1, 'a', { n: 1 }), change(2, 'b', { n: 2 }))
  client.setTransport('sse')
  await turns()
  assert.equal(wire.socket.closed, true)
  assert.deepEqual([...wire.feed.asked], [['todos', 'aaaa-2']])
  await wire.feed.frames(open, reset, change(8, 'b', { n: 2 }))
  await wire.socket.frames(change(99, 'late', { n: 99 }))
  const before = wire.feed
  client.setTransport('poll')
  await turns()
  assert.equal(before.aborted, true)
  assert.deepEqual([...wire.feed.asked], [['todos', 'aaaa-8']])
  await wire.feed.reply(open, change(9, 'c', { n: 9 }), live(9))
  assert.deepEqual(
    [...todos.rows],
    [
      ['b', { n: 2 }],
      ['c', { n: 9 }],
    ],
  )
  assert.deepEqual(told, ['insert a, insert b', 'insert c, remove a'])
  assert.equal(client.status.transport, 'poll')
})

test('whoever brings a reset brings it alone', async () => {
  const { wire, clock, todos, told, follow } = setup('auto')
  await follow()
  await wire.poll.reply(open, change(1, 'a', { n: 1 }), live(1))
  await wire.socket.open()
  await wire.socket.frames(open)
  await clock.advance(400)
  const { poll } = wire
  await wire.socket.done(reset, change(3, 'b', { n: 3 }))
  assert.deepEqual([poll.aborted, wire.held], [true, 'websocket'])
  await wire.socket.frames(live(3), tick)
  assert.deepEqual(
    [[...todos.rows.keys()], told],
    [['b'], ['insert a', 'remove a, insert b']],
    'the rows from before are shown until then',
  )
})

test('a reset that follows live is not live', async () => {
  const { wire, client, reach } = setup('sse')
  await reach(1)
  await wire.stream.frames(live(1), reset)
  assert.equal(client.status.state, 'catching-up')
})

test('more than 256 collections are refused where they are asked for, and the feed goes on', async () => {
  const { wire, client } = setup('sse')
  for (let i = 0; i < 256; i++) client.collection(`c${i}`).start()
  const tooMany = (/** @type {unknown} */ error) => error instanceof TidemarkError && error.code === 'too-many'
  assert.throws(() => client.collection('c256').start(), tooMany)
  assert.throws(() => client.collection('c256').subscribe(() => {}), tooMany)
  client.collection('c7').start()
  await turns()
  assert.equal(wire.feed.asked.size, 256)
})

test('a name that no server takes is refused where it is written, before it costs the others their feed', () => {
  const { client } = setup('sse')
  for (const name of ['', '/', 'a/', '/a', 'a//b', 'a b', 'ä', 'a/b/c/d/e/f/g/h/i', 'x'.repeat(65), '..']) {
    assert.throws(
      () => client.collection(name),
      (error) => error instanceof TidemarkError && error.code === 'bad-name',
      name,
    )
  }
  assert.equal(client.collection('a/b/c/d/e/f/g/h'), client.collection('a/b/c/d/e/f/g/h'))
})

// Listeners.

test('a subscriber that throws costs neither the other subscribers nor the feed', async () => {
  const { wire, client, todos, told, reach } = setup('sse')
  /** @type {unknown[]} */
  const thrown = []
  const listeners = process.listeners('unhandledRejection')
  process.removeAllListeners('unhandledRejection')
  process.once('unhandledRejection', (error) => thrown.push(error))
  todos.subscribe(() => {
    throw new Error('my bug')
  })
  await reach(1, change(1, 'a', { n: 1 }))
  for (const listener of listeners) process.on('unhandledRejection', listener)
  assert.deepEqual(told, ['insert a'])
  assert.equal(client.status.state, 'live')
  assert.match(String(thrown[0]), /my bug/)
  assert.equal(wire.held, 'sse')
})

test('what a subscriber does in the middle of things is done: leave, follow, change the transport, close', async () => {
  const { wire, client, todos, told, reach } = setup('websocket')
  await reach(0)
  told.length = 0
  const undo = todos.subscribe(() => {
    undo()
    client.setTransport('sse')
    client.collection('lists').start()
  })
  await turns()
  await wire.socket.frames(change(1, 'a', { n: 1 }), live(1))
  assert.equal(wire.socket.closed, true)
  assert.deepEqual(
    [...wire.feed.asked],
    [
      ['todos', 'aaaa-1'],
      ['lists', undefined],
    ],
  )
  client.onStatus(({ state }) => state === 'live' && client.close())
  await wire.reach('sse', 2, change(2, 'b', { n: 2 }))
  assert.deepEqual(told, ['insert a', 'insert b'])
  assert.deepEqual([client.status.reason, wire.held], ['closed', ''])
})

test('what is written in the middle of being told is shown and told, too', async () => {
  const { wire, todos, told, reach } = setup('sse')
  await reach(0)
  told.length = 0
  todos.subscribe(({ changes }) => {
    for (const { op, key } of changes) if (op === 'insert' && key === 'a') todos.put('b', { from: 'a' }).catch(() => {})
  })
  await wire.stream.frames(change(1, 'a', { n: 1 }), live(1))
  assert.deepEqual([told, [...todos.rows.keys()], wire.posts.length], [['insert a', 'insert b'], ['a', 'b'], 1])
})

test('what was wrong with a connection does not cost the one that came after it', async () => {
  const { wire, client, reach } = setup('websocket')
  await reach(1)
  client.onError(() => client.setTransport('sse'))
  const frames = [live(1), { type: 'error', status: 400, code: 'bad-request', detail: 'what was that' }]
  await wire.socket.message(`${frames.map((frame) => JSON.stringify(frame)).join('\n')}\nnonsense`)
  assert.deepEqual([client.status.state, wire.polls.length, wire.held], ['connecting', 2, 'poll'])
})

test('who has left is not told, not even of what is just being told', async () => {
  const { wire, todos, told } = setup('sse')
  todos.subscribe(() => undo())
  const undo = todos.subscribe(() => told.push('late'))
  await turns()
  await wire.feed.frames(open, change(1, 'a', { n: 1 }))
  assert.deepEqual(told, [])
})

test('a stale undo does not end what somebody else follows', async () => {
  const { wire, todos } = setup('sse')
  const first = todos.subscribe(() => {})
  first()
  first()
  todos.subscribe(() => {})
  first()
  await turns()
  assert.equal(wire.feeds.length, 1)
  assert.equal(wire.feed.aborted, false)
})

test('an error that nobody listens for is not lost without a word', async (t) => {
  const wire = new Wire()
  const say = t.mock.method(console, 'error', () => {})
  const client = createClient({
    url: 'http://tide.test',
    tenant: 'demo',
    transport: 'sse',
    fetch: wire.fetch,
    clock: new FakeClock(),
  })
  client.collection('todos').start()
  await turns()
  await wire.feed.answer(403, { code: 'forbidden', detail: 'no' })
  assert.equal(say.mock.calls[0].arguments[0].code, 'forbidden')
})

// The credential.

test('each request bears the credential, which is asked for once, until the server does not take it', async () => {
  const tokens = ['one', 'two', 'three']
  const getToken = async () => tokens.shift()
  const { wire, client, errors, todos, reach } = setup('sse', { getToken })
  await reach(1)
  const write = todos.insert({ n: 1 })
  await turns()
  assert.deepEqual(
    wire.requests.map(({ bearer }) => bearer),
    ['Bearer one', 'Bearer one', 'Bearer one'],
  )
  await wire.post.answer(401, { code: 'unauthenticated', detail: 'expired' })
  assert.deepEqual([wire.posts.length, wire.post.bearer], [2, 'Bearer two'])
  assert.equal(wire.posts[0].init.body, wire.posts[1].init.body)
  await wire.post.answer(200, { cursor: 'aaaa-2', results: [{ status: 'ok', key: 'k', seq: 2, value: { n: 1 } }] })
  await write
  assert.deepEqual([client.status.state, errors, tokens], ['live', [], ['three']])
})

test('a credential that is not taken, nor the next one, is no reason to ask for ever', async () => {
  let asked = 0
  const { wire, clock, client, errors, follow } = setup('auto', { getToken: () => `t${++asked}` })
  await follow()
  await wire.poll.answer(401, { code: 'unauthenticated', detail: 'expired' })
  assert.deepEqual([wire.polls.length, wire.poll.bearer, client.status.state], [2, 'Bearer t2', 'connecting'])
  await wire.poll.answer(401, { code: 'unauthenticated', detail: 'sign in' })
  assert.deepEqual([wire.polls.length, client.status.state, client.status.reason], [2, 'denied', 'unauthenticated'])
  assert.deepEqual(
    errors.map(({ message }) => message),
    ['sign in'],
  )
  await clock.advance(225_000)
  await wire.reach('sse', 1).catch(() => {})
  assert.equal(wire.poll.bearer, 'Bearer t3')
  assert.equal(client.status.state, 'live')
})

test('a feed that ends with its token goes on at once with the next one', async () => {
  for (const transport of TRANSPORTS) {
    let asked = 0
    const { wire, clock, errors, states, follow, client } = setup(transport, { getToken: () => `t${++asked}` })
    await follow()
    await wire.poll.reply(open, live(1))
    if (transport === 'websocket') await wire.tickets[0].answer(200, { ticket: 'abc' })
    if (transport !== 'poll') await wire.prove(transport, 1)
    await clock.advance(20_000)
    const { length } = states
    await wire.by(transport).frames(open, { type: 'end', reason: 'expired' })
    assert.deepEqual([asked, wire.requests.at(-1)?.bearer], [2, 'Bearer t2'])
    assert.deepEqual([errors, client.status.state, states.slice(length).filter((s) => s !== 'live')], [[], 'live', []])
    // The next one is no better: now it is the server's last word.
    if (transport === 'websocket') continue
    await wire.by(transport).frames(open, { type: 'end', reason: 'expired' })
    assert.equal(client.status.state, 'denied')
  }
})

test('who needs no token sends none', async () => {
  const { wire, follow } = setup('poll', { getToken: async () => undefined })
  await follow()
  assert.equal(wire.poll.bearer, null)
})

test('a token that could not be had is asked for again', async () => {
  let asked = 0
  const getToken = async () => {
    if (++asked === 1) throw new TypeError('fetch failed')
    return 'token'
  }
  const { wire, clock, client, reach, follow } = setup('poll', { getToken })
  await follow()
  assert.deepEqual([client.status.state, wire.requests.length], ['offline', 0])
  await clock.advance(250)
  assert.equal(wire.poll?.bearer, 'Bearer token')
  await reach(1)
  assert.equal(client.status.state, 'live')
})

test('a WebSocket, which bears no header, gets a ticket for each time it is opened', async () => {
  const tokens = ['one', 'two']
  const { wire, clock, follow, seen } = setup('auto', { getToken: () => tokens.shift() })
  await follow()
  await wire.poll.reply(open, live(1))
  const [first] = wire.tickets
  assert.deepEqual(
    [first.url.href, first.init.method, first.bearer, wire.sockets.length],
    ['http://tide.test/base/v1/demo/tickets', 'POST', 'Bearer one', 0],
  )
  await first.answer(200, { ticket: 'abc', expires: 'soon' })
  assert.equal(wire.socket.url.searchParams.get('ticket'), 'abc')
  await wire.prove('websocket', 1)
  await clock.advance(12_000)
  await wire.socket.frames({ type: 'end', reason: 'expired' })
  assert.deepEqual([wire.tickets.length, wire.tickets[1].bearer], [2, 'Bearer two'], 'expired: a new token')
  await wire.tickets[1].answer(200, { ticket: 'def' })
  assert.equal(wire.socket.url.searchParams.get('ticket'), 'def')
  await wire.prove('websocket', 1)
  assert.equal(seen(), 'live websocket websocket: proven')
})

test('a server that gives no ticket costs the WebSocket, not the feed', async () => {
  for (const status of [404, 503]) {
    const { wire, follow, seen, errors } = setup('auto', { getToken: () => 'token' })
    await follow()
    await wire.poll.reply(open, live(1))
    await wire.tickets[0].answer(status, { code: 'not-found' })
    assert.equal(wire.held, 'poll sse')
    await wire.prove('sse', 1)
    assert.deepEqual([seen(), errors], ['live sse sse: proven', []])
  }
})

test('a ticket that comes late opens nothing', async () => {
  const { wire, client, follow } = setup('auto', { getToken: () => 'token' })
  await follow()
  await wire.poll.reply(open, live(1))
  await client.close()
  await wire.tickets[0].answer(200, { ticket: 'abc' })
  assert.equal(wire.sockets.length, 0)
})

// The page around it.

test('a page that goes offline lets go of everything, and is back at once when the network is', async (t) => {
  const { window } = page(t)
  const { wire, clock, reach, states, seen } = setup('auto')
  await reach(1)
  await clock.advance(20_000)
  await window('offline')
  assert.deepEqual([states.at(-1), wire.held], ['offline: offline', ''])
  await clock.advance(5000)
  await window('online')
  assert.equal(wire.held, 'websocket')
  await wire.prove('websocket', 2)
  assert.equal(seen(), 'live websocket websocket: proven')
  await window('offline')
  await clock.advance(29_999)
  assert.equal(wire.held, '')
  await clock.advance(1)
  assert.equal(wire.held, 'websocket', 'not every platform says when it is back')
})

test('a network that is back is no reason to come sooner than the server asked for', async (t) => {
  const { window } = page(t)
  const { wire, clock, follow } = setup('auto')
  await follow()
  await wire.poll.answer(503, { code: 'unavailable' }, { 'retry-after': '60' })
  await clock.advance(30_000)
  await window('online')
  assert.equal(wire.held, '')
  await clock.advance(30_250)
  assert.equal(wire.held, 'poll')
})

test('a page in the back-forward cache, or frozen, holds no connection, and connects anew when it is back', async (t) => {
  const { window, document } = page(t)
  const { wire, clock, reach, states, told } = setup('auto')
  await reach(1, change(1, 'a', { n: 1 }))
  await clock.advance(10_000)
  const ways = [
    [() => window('pagehide'), () => window('pageshow', { persisted: true })],
    [() => document('freeze'), () => document('resume')],
  ]
  for (const [leave, back] of ways) {
    await leave()
    assert.deepEqual([states.at(-1), wire.held], ['offline: hidden', ''])
    await back()
    assert.equal(wire.held, 'websocket')
    await wire.socket.open()
    assert.deepEqual([...wire.socket.asked], [['todos', 'aaaa-1']])
    await wire.socket.frames(open)
    await wire.socket.done(live(1), tick)
    assert.equal(states.at(-1), 'live')
  }
  // One that was not told that it was away: what it takes for open may be dead.
  const { socket } = wire
  await document('resume')
  assert.deepEqual([socket.closed, wire.held], [true, 'websocket'])
  assert.deepEqual(told, ['insert a'])
})

test('a page that is shown for the first time, or again in time, changes nothing', async (t) => {
  const { window, document } = page(t)
  const { wire, clock, reach } = setup('auto')
  await reach(1)
  await window('pageshow', { persisted: false })
  await document('visibilitychange', 'hidden')
  await document('visibilitychange')
  await window('online')
  assert.deepEqual([wire.sockets.length, wire.held], [1, 'websocket'])
  await clock.advance(20_000)
  await document('visibilitychange', 'hidden')
  assert.equal(wire.sockets.length, 1)
  await document('visibilitychange')
  assert.equal(wire.sockets.length, 2, 'more than a heartbeat in silence is suspicious')
})

test('a page that is looked at again does not sit out its backoff', async (t) => {
  const { document } = page(t)
  const { wire, clock, follow } = setup('auto')
  await follow()
  for (let i = 0; i < 7; i++) {
    await wire.poll.fail()
    if (i < 6) await clock.advance(clock.next)
  }
  assert.deepEqual([wire.held, clock.next], ['', 15_000])
  await document('visibilitychange', 'hidden')
  assert.equal(wire.held, '')
  await document('visibilitychange')
  assert.equal(wire.held, 'poll')
})

test('a page that is looked at again tries the streams again', async (t) => {
  const { document } = page(t)
  const { wire, clock, follow } = setup('auto')
  await follow()
  await wire.poll.reply(open, live(1))
  await clock.advance(10_000)
  assert.equal(wire.held, 'poll')
  await clock.advance(10_000)
  await document('visibilitychange')
  assert.equal(wire.held, 'poll websocket')
  await wire.prove('websocket', 1)
  assert.equal(wire.held, 'websocket')
})

// The end.

test('a closed client lets go of everything, and stays closed', async (t) => {
  const { window, document, listeners } = page(t)
  for (const transport of TRANSPORTS) {
    const { wire, clock, client, todos, states, reach } = setup(transport)
    await reach(1)
    assert.ok(listeners.size > 0)
    assert.equal(wire.held, transport)
    await client.close()
    assert.equal(wire.held, '')
    assert.deepEqual([clock.timers.size, listeners.size], [0, 0])
    assert.equal(states.at(-1), 'offline: closed')
    const { length } = [...wire.requests, ...wire.sockets]
    todos.start()
    client.setTransport('poll')
    await client.close()
    await window('online')
    await document('resume')
    await clock.advance(100_000)
    assert.equal([...wire.requests, ...wire.sockets].length, length)
    await assert.rejects(todos.insert({ n: 1 }), { code: 'closed' })
  }
})

test('an AbortSignal closes the client, also one that was aborted before', async () => {
  const controller = new AbortController()
  const { wire, client, follow } = setup('sse', { signal: controller.signal })
  await follow()
  controller.abort()
  assert.equal(client.status.reason, 'closed')
  assert.equal(wire.feed.aborted, true)
  const late = setup('sse', { signal: controller.signal })
  await late.follow()
  assert.equal(late.client.status.reason, 'closed')
  assert.equal(late.wire.requests.length, 0)
})
