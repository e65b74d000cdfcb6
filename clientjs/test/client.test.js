import assert from 'node:assert/strict'
import { createServer } from 'node:http'
import { test } from 'node:test'
import fc from 'fast-check'
import './seed.js'
import { WebSocket } from 'ws'
import { createClient } from '../src/index.js'
import { turns } from './clock.js'
import { Server } from './server.js'

/** @typedef {import('../src/index.js').Client} Client */
/** @typedef {import('../src/index.js').Transport} Transport */

const TRANSPORTS = /** @type {const} */ (['websocket', 'sse', 'poll', 'auto'])

/**
 * Time as it is, or faster, but nobody waits for chance: what would be tried again later is tried again now.
 * @param {number} speed
 */
const hasty = (speed) => {
  const { timeOrigin } = performance
  return {
    now: () => timeOrigin + speed * performance.now(),
    random: () => 0,
    /** @param {number} ms @param {() => void} fn */
    after(ms, fn) {
      const timer = setTimeout(fn, ms / speed)
      return () => clearTimeout(timer)
    },
  }
}

/** @param {import('node:test').TestContext} t */
async function serve(t, speed = 1) {
  const server = await new Server().listen()
  t.after(() => server.close())
  /** @param {Transport | 'auto'} transport */
  const connect = (transport) => {
    const client = createClient({
      url: server.url,
      tenant: 'demo',
      transport,
      WebSocket: /** @type {any} */ (WebSocket),
      clock: hasty(speed),
    })
    t.after(() => client.close())
    client.onError((error) => assert.fail(error))
    return client
  }
  return { server, connect }
}

/**
 * Waits until ok says so: asked after each thing that a client tells.
 * @param {Client} client
 * @param {() => unknown} ok
 * @param {import('../src/index.js').Collection[]} collections
 */
function until(client, ok, ...collections) {
  return new Promise((resolve) => {
    const look = () => {
      if (!ok()) return
      for (const undo of undos) undo()
      resolve(undefined)
    }
    const undos = [client.onStatus(look), ...collections.map((collection) => collection.subscribe(look))]
    look()
  })
}

/** @param {Client} client */
const isLive = (client) => until(client, () => client.status.state === 'live')

const put = (/** @type {string} */ key, /** @type {object} */ value, collection = 'todos') => ({
  collection,
  op: 'put',
  key,
  value,
})
const remove = (/** @type {string} */ key, collection = 'todos') => ({ collection, op: 'remove', key })

for (const transport of TRANSPORTS) {
  test(`by ${transport} a page gets the rows that are there, and stays in step with what others write`, async (t) => {
    const { server, connect } = await serve(t)
    for (let i = 0; i < 8; i++) server.write([put(`k${i}`, { n: i, text: 'молоко 🥛' })])
    server.write([remove('k3')])
    const client = connect(transport)
    const todos = client.collection('todos')
    todos.start()
    await isLive(client)
    assert.deepEqual(todos.rows, server.rows('todos'))
    server.write([put('k1', { n: 100 }), remove('k2'), put('new', {})])
    await until(client, () => todos.rows.has('new'), todos)
    assert.deepEqual(todos.rows, server.rows('todos'))
  })

  test(`by ${transport} what one writes shows at once and is told once, to oneself and to others`, async (t) => {
    const { server, connect } = await serve(t)
    const [mine, theirs] = [connect(transport), connect(transport)]
    const [my, their] = [mine.collection('todos'), theirs.collection('todos')]
    /** @type {string[][]} */
    const told = [[], []]
    for (const [i, todos] of [my, their].entries()) {
      todos.subscribe(({ changes }) => told[i].push(...changes.map(({ op, key, seq }) => `${op} ${key} ${seq}`)))
    }
    await Promise.all([isLive(mine), isLive(theirs)])
    const { key, seq, value } = await my.insert({ title: 'milk' })
    assert.deepEqual([value, my.rows.get(key)], [{ title: 'milk' }, { title: 'milk' }])
    await my.modify(key, { done: true }, { if: seq })
    await my.put('b', { n: 1 }, { optimistic: false })
    await my.remove('b')
    await until(theirs, () => theirs.cursor('todos') === 'aaaa-4', their)
    await my.put('c', { n: 2 })
    await until(theirs, () => their.rows.has('c'), their)
    // The feed has passed the echoes of all of it.
    server.write([put('last', {})])
    await until(mine, () => my.rows.has('last'), my)
    await until(theirs, () => their.rows.has('last'), their)
    assert.deepEqual(told[0], [
      `insert ${key} 0`,
      `modify ${key} 1`,
      'insert b 3',
      'remove b 3',
      'insert c 0',
      'insert last 6',
    ])
    assert.deepEqual(my.rows, server.rows('todos'))
    assert.deepEqual(their.rows, server.rows('todos'))
    await my.awaitSeq(6)
    assert.equal(my.seq(key), 2)
    await assert.rejects(my.insert({}, { key }), {
      code: 'exists',
      status: 409,
      seq: 2,
      value: { title: 'milk', done: true },
    })
    await assert.rejects(my.put(key, {}, { if: seq }), { code: 'conflict' })
    assert.deepEqual(my.rows, server.rows('todos'), 'what was refused is taken back')
  })

  test(`by ${transport} a page that was away comes back by cursor, and gets what it missed`, async (t) => {
    const { server, connect } = await serve(t)
    server.write([put('a', { n: 1 }), put('b', { n: 2 })])
    const client = connect(transport)
    const todos = client.collection('todos')
    /** @type {string[]} */
    const told = []
    todos.subscribe(({ changes }) => told.push(...changes.map(({ op, key }) => `${op} ${key}`)))
    await isLive(client)
    const before = server.feeds.length
    server.drop()
    server.write([remove('a'), put('c', { n: 4 })])
    await until(client, () => todos.rows.has('c'), todos)
    assert.deepEqual(told, ['insert a', 'insert b', 'remove a', 'insert c'])
    const later = server.feeds.slice(before)
    assert.ok(later.length)
    assert.ok(later.flat().every((c) => c.startsWith('todos@aaaa-')))
  })

  test(`by ${transport} a page never flashes empty when all rows are sent anew`, async (t) => {
    const { server, connect } = await serve(t)
    server.write([put('a', { n: 1 }), put('b', { n: 2 }), put('c', { n: 3 }), put('d', { n: 4 })])
    const client = connect(transport)
    const todos = client.collection('todos')
    let least = Infinity
    /** @type {string[]} */
    const told = []
    todos.subscribe(({ changes, reset }) => {
      least = Math.min(least, todos.rows.size)
      if (reset) told.push(...changes.map(({ op, key }) => `${op} ${key}`))
    })
    await until(client, () => client.status.state === 'live' && todos.rows.size === 4, todos)
    least = 4
    server.renew((key) => key !== 'b')
    await until(client, () => client.cursor('todos') === 'aaaaa-3' && !todos.rows.has('b'), todos)
    assert.deepEqual([told, least], [['remove b'], 3])
    await isLive(client)
    server.write([remove('c')])
    await until(client, () => !todos.rows.has('c'), todos)
    server.drop()
    server.write([remove('d'), put('e', { n: 5 })])
    server.forget()
    await until(client, () => todos.rows.has('e') && client.status.state === 'live', todos)
    assert.deepEqual(todos.rows, server.rows('todos'))
  })

  test(`by ${transport} a write whose answer is lost on the way takes effect once`, async (t) => {
    const { server, connect } = await serve(t)
    const client = connect(transport)
    const todos = client.collection('todos')
    todos.start()
    await isLive(client)
    server.loseAnswers = 2
    const { key, seq } = await todos.insert({ n: 1 })
    assert.deepEqual([server.seq, seq, server.loseAnswers], [1, 1, 0])
    assert.deepEqual([...todos.rows], [[key, { n: 1 }]])
  })

  test(`by ${transport} many writes at once arrive in order, each once, and are seen at once`, async (t) => {
    const { server, connect } = await serve(t)
    const client = connect(transport)
    const todos = client.collection('todos')
    let told = 0
    todos.subscribe(({ changes }) => {
      told += changes.length
    })
    await isLive(client)
    const writes = []
    for (let i = 0; i < 300; i++) writes.push(todos.put(`k${i % 150}`, { i }))
    assert.deepEqual([todos.rows.size, todos.rows.get('k149')], [150, { i: 299 }])
    server.loseAnswers = 1
    const seqs = (await Promise.all(writes)).map(({ seq }) => seq)
    assert.deepEqual(
      seqs,
      seqs.map((_, i) => i + 1),
    )
    await todos.awaitSeq(300)
    assert.deepEqual(todos.rows, server.rows('todos'))
    assert.deepEqual([server.seq, told], [300, 300])
    assert.ok(server.writes < 20)
  })

  test(`by ${transport} a transaction over two collections is never seen in part`, async (t) => {
    const { server, connect } = await serve(t)
    const client = connect(transport)
    const [from, to] = [client.collection('accounts/from'), client.collection('accounts/to')]
    /** @type {Set<number>} */
    const sums = new Set()
    const look = () => sums.add((from.rows.get('x')?.n ?? 50) + (to.rows.get('x')?.n ?? 50))
    for (const account of [from, to]) account.subscribe(look)
    await isLive(client)
    for (let i = 0; i < 20; i++) {
      server.write([
        put('x', { n: 50 - i }, 'accounts/from'),
        put('other', { i }, 'accounts/from'),
        put('x', { n: 50 + i }, 'accounts/to'),
      ])
    }
    await until(client, () => to.rows.get('x')?.n === 69 && from.rows.get('x')?.n === 31, from, to)
    assert.deepEqual([...sums], [100])
  })

  test(`by ${transport} a closed client leaves no connection behind`, async (t) => {
    const { server, connect } = await serve(t)
    const client = connect(transport)
    client.collection('todos').start()
    await isLive(client)
    await client.close()
    const gone = () => server.sessions.size === 0
    for (let i = 0; !gone() && i < 1000; i++) await new Promise((resolve) => setImmediate(resolve))
    assert.ok(gone())
  })
}

test('where both streams are held back the page is in step all the same, and finds out why', async (t) => {
  const { server, connect } = await serve(t, 20)
  server.blocked.add('websocket').add('sse')
  server.write([put('a', { n: 1 })])
  const client = connect('auto')
  const todos = client.collection('todos')
  todos.start()
  await isLive(client)
  /** @type {Set<string>} */
  const states = new Set()
  client.onStatus(({ state }) => states.add(state))
  for (let n = 2; client.status.why !== 'sse: not proven'; n++) {
    assert.ok(n < 1000)
    server.write([put('a', { n })])
    await new Promise((resolve) => setTimeout(resolve, 5))
  }
  assert.deepEqual([client.status.transport, [...states]], ['poll', ['live']])
  server.write([put('b', {})])
  await until(client, () => todos.rows.has('b'), todos)
  assert.deepEqual(todos.rows, server.rows('todos'))
})

test('where only the WebSocket is held back the page ends up with an event stream', async (t) => {
  const { server, connect } = await serve(t, 20)
  server.blocked.add('websocket')
  const client = connect('auto')
  client.collection('todos').start()
  await until(client, () => client.status.transport === 'sse')
  assert.deepEqual([client.status.state, client.status.why], ['live', 'sse: proven'])
})

test('a page on a good network ends up with a WebSocket, writes over it, and holds nothing else', async (t) => {
  const { server, connect } = await serve(t)
  const client = connect('auto')
  const todos = client.collection('todos')
  todos.start()
  await until(client, () => client.status.transport === 'websocket')
  const lists = client.collection('lists')
  lists.start()
  server.write([put('x', { n: 1 }, 'lists')])
  await until(client, () => lists.rows.has('x') && client.status.state === 'live', lists)
  await todos.put('a', { n: 2 })
  assert.deepEqual([client.status.state, client.status.transport], ['live', 'websocket'])
  for (let i = 0; server.sessions.size > 1 && i < 1000; i++) await new Promise((resolve) => setImmediate(resolve))
  assert.equal(server.sessions.size, 1)
  assert.deepEqual(server.posts, 0)
})

for (const transport of /** @type {const} */ (['sse', 'poll', 'auto'])) {
  test(`by ${transport} a page gets its rows through a network that loses the query of a url`, async (t) => {
    const { server, connect } = await serve(t)
    server.blocked.add('query')
    for (let i = 0; i < 8; i++) server.write([put(`k${i}`, { n: i })])
    const client = connect(transport)
    const todos = client.collection('todos')
    todos.start()
    await isLive(client)
    assert.deepEqual(todos.rows, server.rows('todos'))
    server.write([put('new', {})])
    await until(client, () => todos.rows.has('new'), todos)
  })
}

test('whatever happens to the connection, and on whatever transports, a page ends up with the rows of the server', async (t) => {
  const name = fc.constantFrom('todos', 'projects/7/todos')
  const key = fc.constantFrom('a', 'b', 'c', '__proto__')
  const step = fc.oneof(
    { weight: 5, arbitrary: fc.record({ do: fc.constant('others'), name, key, removed: fc.boolean() }) },
    { weight: 4, arbitrary: fc.record({ do: fc.constant('own'), name, key, removed: fc.boolean() }) },
    { weight: 2, arbitrary: fc.record({ do: fc.constant('drop') }) },
    { weight: 2, arbitrary: fc.record({ do: fc.constant('transport'), to: fc.constantFrom(...TRANSPORTS) }) },
    { weight: 1, arbitrary: fc.record({ do: fc.constant('refollow'), name }) },
    { weight: 1, arbitrary: fc.record({ do: fc.constant('leave'), name }) },
    { weight: 1, arbitrary: fc.record({ do: fc.constant('block'), what: fc.constantFrom('websocket', 'sse') }) },
    { weight: 1, arbitrary: fc.record({ do: fc.constant('lose an answer') }) },
    { weight: 1, arbitrary: fc.record({ do: fc.constant('renew') }) },
    { weight: 1, arbitrary: fc.record({ do: fc.constant('forget') }) },
    { weight: 4, arbitrary: fc.record({ do: fc.constant('turn') }) },
    { weight: 2, arbitrary: fc.record({ do: fc.constant('wait') }) },
  )
  await fc.assert(
    fc.asyncProperty(
      fc.constantFrom(...TRANSPORTS),
      fc.array(step, { maxLength: 30, size: 'max' }),
      async (transport, steps) => {
        const { server, connect } = await serve(t, 10)
        const client = connect(transport)
        /** @type {Map<string, {collection: import('../src/index.js').Collection, stop: () => void}>} */
        const pages = new Map()
        const follow = (/** @type {string} */ name) => {
          const collection = client.collection(name)
          pages.get(name)?.stop()
          /** @type {Map<string, any>} */
          const believed = new Map(collection.rows)
          const stop = collection.subscribe(({ changes }) => {
            for (const { op, key, value } of changes) {
              assert.equal(op === 'insert', !believed.has(key))
              if (op === 'remove') believed.delete(key)
              else believed.set(key, value)
            }
            assert.deepEqual(collection.rows, believed)
          })
          pages.set(name, { collection, stop })
        }
        for (const name of ['todos', 'projects/7/todos']) follow(name)
        /** The network lets everything through again. */
        const clear = () => {
          if (!server.blocked.size) return
          server.blocked.clear()
          server.drop()
        }
        const writes = []
        for (const s of steps) {
          const { name, key, removed, to, what } = /** @type {any} */ (s)
          const change = removed ? remove(key, name) : put(key, { n: server.seq }, name)
          if (s.do === 'others') server.write([change])
          else if (s.do === 'own') writes.push(client.write([/** @type {any} */ (change)]))
          else if (s.do === 'drop') server.drop()
          else if (s.do === 'transport') client.setTransport(to)
          else if (s.do === 'refollow') follow(name)
          else if (s.do === 'leave') pages.get(name)?.stop()
          else if (s.do === 'block') server.blocked.add(what)
          else if (s.do === 'lose an answer') server.loseAnswers++
          else if (s.do === 'renew') server.renew((key) => key !== 'b')
          else if (s.do === 'forget') server.forget()
          else if (s.do === 'turn') await new Promise((resolve) => setImmediate(resolve))
          else {
            clear()
            for (const name of pages.keys()) follow(name)
            await turns()
            await isLive(client)
          }
        }
        clear()
        for (const name of pages.keys()) follow(name)
        server.loseAnswers = 0
        await Promise.all(writes)
        const all = [...pages.values()].map(({ collection }) => collection)
        const same = () =>
          client.status.state === 'live' &&
          all.every((c) => JSON.stringify([...c.rows].sort()) === JSON.stringify([...server.rows(c.name)].sort()))
        await until(client, same, ...all)
        await client.close()
        await server.close()
      },
    ),
    { numRuns: 60 },
  )
})

test('closing comes to its end where a server has ended an event stream with its last word', async (t) => {
  const frames = ['{"type":"open","epoch":"aaaa","heartbeat":15}', '{"type":"live","cursor":"aaaa-1"}']
  const server = createServer(({ url }, response) => {
    if (!url?.includes('sse')) {
      response.end(`${frames.join('\n')}\n`)
      return
    }
    response.writeHead(200, { 'content-type': 'text/event-stream' })
    for (const frame of frames) response.write(`data: ${frame}\n\n`)
    setTimeout(() => response.end('data: {"type":"end","reason":"draining","retry":60000}\n\n'), 50)
  })
  await new Promise((resolve) => server.listen(0, '127.0.0.1', () => resolve(undefined)))
  t.after(() => {
    server.closeAllConnections()
    server.close()
  })
  const { port } = /** @type {import('node:net').AddressInfo} */ (server.address())
  const client = createClient({ url: `http://127.0.0.1:${port}`, tenant: 'demo', transport: 'sse' })
  client.collection('todos').start()
  await new Promise((resolve) => client.onStatus(({ reason }) => reason === 'draining' && resolve(undefined)))
  const late = new Promise((_, reject) => setTimeout(reject, 5000, 'closing hangs').unref())
  await Promise.race([client.close(), late])
})
