import assert from 'node:assert/strict'
import { test } from 'node:test'
import { createClient, TidemarkError } from '../src/index.js'
import { FakeClock, turns } from './clock.js'
import { change, live, open, Wire } from './wire.js'

/**
 * A client that is live at 10, over the given transport.
 * @param {import('../src/machine.js').Transport} transport
 * @param {Partial<import('../src/client.js').Options>} [options]
 */
async function setup(transport = 'sse', options = {}) {
  const wire = new Wire()
  const clock = new FakeClock()
  const client = createClient({
    url: 'http://tide.test',
    tenant: 'demo',
    transport,
    fetch: wire.fetch,
    WebSocket: wire.WebSocket,
    clock,
    ...options,
  })
  client.onError((error) => {
    throw error
  })
  const todos = client.collection('todos')
  /** @type {string[]} */
  const told = []
  todos.subscribe(({ changes }) => told.push(changes.map(({ op, key, seq }) => `${op} ${key} ${seq}`).join(', ')))
  await turns()
  const frames = (/** @type {object[]} */ ...list) =>
    transport === 'websocket' ? wire.socket.frames(...list) : wire.feed.send(...list)
  await frames(open, change(1, 'old', { n: 1 }), live(10))
  told.length = 0
  return { wire, clock, client, todos, told, frames }
}

/**
 * What a server answers to a request, if it likes all of it.
 * @param {any} body
 * @param {number} seq of the first change
 */
const answer = (body, seq, status = 'ok', epoch = 'aaaa') => ({
  cursor: `${epoch}-${seq + body.changes.length - 1}`,
  results: body.changes.map((/** @type {any} */ { id, op, key = 'made', value }, /** @type {number} */ i) => ({
    id,
    status,
    key,
    seq: seq + i,
    ...(op === 'remove' ? {} : { value: value ?? { merged: true } }),
  })),
})

/**
 * Looks at a promise from the start, so that its rejection is expected. Its outcome is undefined while it is pending.
 * @param {Promise<any>} promise
 */
async function watch(promise) {
  const watched = /** @type {any} */ ({ outcome: undefined })
  promise.then(
    (value) => {
      watched.outcome = value
    },
    (error) => {
      watched.outcome = error
    },
  )
  await turns()
  return watched
}

test('each kind of write says what it means, with an id of its own', async () => {
  const { wire, todos } = await setup('sse', { client: 'c-81' })
  const writes = [
    todos.insert({ a: 1 }),
    todos.insert({ a: 2 }, { key: 'k' }),
    todos.modify('k', { a: null }, { if: 7 }),
    todos.put('k', { a: 3 }),
    todos.put('k', { a: 4 }, { if: 0 }),
    todos.remove('k'),
    todos.remove('k', { if: 9 }),
    todos.insert({ a: 5 }, { ttl: 60 }),
    todos.modify('k', { a: 6 }, { ttl: 30 }),
  ]
  await turns()
  const bodies = wire.posts.map(({ body }) => body)
  const { url, init } = wire.post
  assert.equal(url.href, 'http://tide.test/v1/demo/changes')
  assert.deepEqual([init.method, new Headers(init.headers).get('content-type')], ['POST', 'application/json'])
  assert.deepEqual(
    bodies.map(({ changes: [{ id, ...rest }], ...body }) => ({ ...body, ...rest })),
    [
      { op: 'insert', value: { a: 1 } },
      { op: 'insert', key: 'k', value: { a: 2 } },
      { op: 'modify', key: 'k', patch: { a: null }, if: 7 },
      { op: 'put', key: 'k', value: { a: 3 } },
      { op: 'put', key: 'k', value: { a: 4 }, if: 0 },
      { op: 'remove', key: 'k' },
      { op: 'remove', key: 'k', if: 9 },
      { op: 'insert', value: { a: 5 }, ttl: 60 },
      { op: 'modify', key: 'k', patch: { a: 6 }, ttl: 30 },
    ].map((write) => ({ client: 'c-81', atomic: true, collection: 'todos', ...write })),
  )
  const ids = bodies.map(({ changes: [{ id }] }) => id)
  assert.equal(new Set(ids).size, 9)
  assert.ok(ids.every((id) => id.length > 16))
  assert.equal(wire.unbound, true)
  for (const [i, post] of wire.posts.entries()) await post.answer(200, answer(post.body, 20 + i))
  const results = await Promise.all(writes)
  assert.deepEqual(results.map(({ key, seq, value }) => [key, seq, value]).slice(0, 2), [
    ['made', 20, { a: 1 }],
    ['k', 21, { a: 2 }],
  ])
})

test('two clients of the same name never use the same id for two writes', async () => {
  const ids = new Set()
  for (let i = 0; i < 20; i++) {
    const { wire, todos } = await setup('sse', { client: 'same' })
    todos.insert({})
    await turns()
    ids.add(wire.post.body.changes[0].id)
  }
  assert.equal(ids.size, 20)
})

test('an own write shows when it is confirmed, and its echo is told to nobody', async () => {
  for (const transport of /** @type {const} */ (['sse', 'poll', 'websocket'])) {
    const { wire, todos, told, frames } = await setup(transport)
    const done = todos.put('a', { n: 1 })
    await turns()
    assert.equal(todos.rows.has('a'), false)
    if (transport === 'websocket') {
      const { type, id, ...body } = wire.socket.sent[0]
      assert.equal(type, 'write')
      assert.equal(wire.posts.length, 0)
      await frames({ type: 'written', id, ...answer(body, 11) })
    } else await wire.post.answer(200, answer(wire.post.body, 11))
    const result = await done
    assert.deepEqual([result.key, result.seq, result.value], ['a', 11, { n: 1 }])
    assert.deepEqual(todos.rows.get('a'), { n: 1 })
    assert.equal(todos.seq('a'), 11)
    if (transport !== 'poll') await frames(change(11, 'a', { n: 1 }), live(11))
    assert.deepEqual(told, ['insert a 11'], transport)
  }
})

test('a transaction over collections shows in all of them before anybody is told', async () => {
  const { wire, client, todos } = await setup('websocket')
  const lists = client.collection('lists')
  /** @type {string[]} */
  const seen = []
  lists.subscribe(() => seen.push(`${todos.rows.has('a')} ${lists.rows.has('x')}`))
  todos.subscribe(() => seen.push(`${todos.rows.has('a')} ${lists.rows.has('x')}`))
  await turns()
  await wire.socket.frames({ type: 'done', id: wire.socket.sent[0].id }, live(10))
  const done = client.write([
    { collection: 'todos', op: 'put', key: 'a', value: { n: 1 } },
    { collection: 'lists', op: 'put', key: 'x', value: { n: 2 } },
    { collection: 'not-followed', op: 'put', key: 'y', value: { n: 3 } },
  ])
  await turns()
  const { id, ...body } = wire.socket.sent[1]
  assert.deepEqual([body.atomic, body.changes.length], [true, 3])
  await wire.socket.frames({ type: 'written', id, ...answer(body, 11) })
  assert.deepEqual(
    (await done).map(({ seq }) => seq),
    [11, 12, 13],
  )
  assert.deepEqual(seen, ['true true', 'true true'])
  assert.equal(client.collection('not-followed').rows.size, 0)
})

test('a refused write rejects with the row as it stands, and shows nothing', async () => {
  const refusals = /** @type {const} */ ([
    [
      409,
      { code: 'conflict', detail: 'row is at 9', results: [{ status: 'conflict', key: 'a', seq: 9, value: { n: 9 } }] },
      'conflict',
      9,
    ],
    [409, { results: [{ status: 'aborted' }, { status: 'exists', key: 'a', seq: 9, value: { n: 9 } }] }, 'exists', 9],
    [409, { code: 'missing', detail: 'no such row' }, 'missing', undefined],
    [409, { code: 'id-reused', detail: 'another body' }, 'id-reused', undefined],
    [413, { code: 'too-large', detail: 'at most 1 MiB' }, 'too-large', undefined],
    [403, '<html>', 'refused', undefined],
  ])
  for (const [status, body, code, seq] of refusals) {
    const { wire, clock, todos, told } = await setup()
    const done = await watch(todos.put('a', { n: 1 }, { if: 3 }))
    await wire.post.answer(status, body)
    const error = done.outcome
    assert.ok(error instanceof TidemarkError)
    assert.deepEqual([error.code, error.status, error.seq, error.value], [code, status, seq, seq && { n: 9 }])
    assert.deepEqual([wire.posts.length, told], [1, []])
    assert.ok(clock.next > 30_000, 'nothing of it is left to be done')
  }
})

test('a refused write over a WebSocket rejects like one by POST', async () => {
  const row = { key: 'a', seq: 9, value: { n: 9 } }
  const frames = [
    { type: 'error', status: 409, code: 'conflict', detail: 'row is at 9', results: [{ status: 'conflict', ...row }] },
    { type: 'error', status: 409, code: 'conflict', detail: 'row is at 9', seq: 9, value: { n: 9 } },
    { type: 'written', cursor: 'aaaa-10', results: [{ status: 'conflict', ...row }] },
  ]
  for (const frame of frames) {
    const { wire, todos, told } = await setup('websocket')
    const done = await watch(todos.put('a', { n: 1 }, { if: 3 }))
    await wire.socket.frames({ ...frame, id: wire.socket.sent[0].id })
    const error = done.outcome
    assert.deepEqual([error.code, error.status, error.seq, error.value], ['conflict', 409, 9, { n: 9 }])
    assert.deepEqual([wire.posts.length, told], [0, []])
  }
})

test('of changes that stand each for itself some may be refused, and the others show', async () => {
  const { wire, client, todos } = await setup()
  const done = client.write(
    [
      { collection: 'todos', op: 'put', key: 'a', value: { n: 1 } },
      { collection: 'todos', op: 'insert', key: 'b', value: { n: 2 } },
    ],
    { atomic: false },
  )
  await turns()
  assert.equal(wire.post.body.atomic, false)
  const results = [
    { status: 'ok', key: 'a', seq: 12, value: { n: 1 } },
    { status: 'exists', key: 'b', seq: 4, value: { n: 4 } },
  ]
  await wire.post.answer(200, { cursor: 'aaaa-12', results })
  assert.deepEqual(await done, results)
  assert.deepEqual([...todos.rows.keys()], ['old', 'a'])
})

test('a write whose answer is lost is asked again with the same id, and takes effect once', async () => {
  for (const lose of [
    (/** @type {Wire} */ wire) => wire.post.fail(),
    (/** @type {Wire} */ wire) => wire.post.answer(503, { code: 'unavailable' }),
    (/** @type {Wire} */ wire) => wire.post.answer(502, '<html>'),
    (/** @type {Wire} */ wire) => wire.post.answer(200, '<html>Welcome to the hotel'),
    (/** @type {Wire} */ wire) => wire.post.answer(200, '{"cut":'),
    (/** @type {Wire} */ wire) => wire.post.answer(200, 'null'),
  ]) {
    const { wire, clock, todos, told, frames } = await setup()
    const done = await watch(todos.insert({ n: 1 }))
    await lose(wire)
    assert.equal(done.outcome, undefined)
    assert.equal(wire.posts.length, 1)
    await clock.advance(250)
    assert.equal(wire.posts.length, 2)
    assert.equal(wire.posts[1].init.body, wire.posts[0].init.body)
    // It had taken effect the first time, and the feed has brought it meanwhile.
    await frames(change(11, 'made', { n: 1 }))
    await wire.post.answer(200, answer(wire.post.body, 11, 'duplicate'))
    assert.equal(done.outcome.seq, 11)
    assert.deepEqual(told, ['insert made 11'])
  }
})

test('a write that is refused for now waits for as long as the server asks', async () => {
  const { wire, clock, todos } = await setup()
  const done = todos.put('a', { n: 1 })
  await turns()
  await wire.post.answer(429, { code: 'too-many' }, { 'retry-after': '20' })
  await clock.advance(20_000)
  assert.equal(wire.posts.length, 1)
  await clock.advance(250)
  assert.equal(wire.posts.length, 2)
  await wire.post.answer(200, answer(wire.post.body, 11))
  assert.equal((await done).seq, 11)
})

test('a write does not wait for ever: within a minute or so it is rejected, with what went wrong', async () => {
  const down = await setup()
  const lost = await watch(down.todos.put('a', { n: 1 }))
  const began = down.clock.time
  for (let i = 0; !lost.outcome; i++) {
    assert.ok(i < 20)
    await down.wire.post.fail()
    await down.clock.advance(Math.min(down.clock.next, 15_000))
  }
  const error = lost.outcome
  assert.ok(error instanceof TidemarkError)
  assert.deepEqual([error.code, error.status], ['unavailable', 0])
  assert.ok(down.clock.time - began <= 60_000 + 15_000)
  assert.ok(down.wire.posts.length > 5)

  const busy = await setup()
  const refused = await watch(busy.todos.put('a', { n: 1 }))
  await busy.wire.post.answer(503, { code: 'unavailable', detail: 'memory is full' }, { 'retry-after': '3600' })
  const why = refused.outcome
  assert.deepEqual([why.code, why.status, why.message], ['unavailable', 503, 'memory is full'])
})

test('a server that swallows a write without a word gets it again after half a minute', async () => {
  const { wire, clock, todos } = await setup()
  const done = todos.put('a', { n: 1 })
  await turns()
  await clock.advance(29_999)
  assert.equal(wire.post.aborted, false)
  await clock.advance(1)
  assert.equal(wire.post.aborted, true)
  await clock.advance(250)
  await wire.post.answer(200, answer(wire.post.body, 11))
  assert.equal((await done).seq, 11)
})

test('a write that was under way on a WebSocket when it broke goes on by POST, with the same id', async () => {
  const { wire, clock, todos } = await setup('websocket')
  const done = await watch(todos.put('a', { n: 1 }))
  await wire.socket.die()
  assert.equal(done.outcome, undefined)
  await clock.advance(250)
  const { type, id, ...body } = wire.sockets[0].sent[0]
  assert.deepEqual(wire.post.body, body)
  await wire.post.answer(200, answer(wire.post.body, 11, 'duplicate'))
  assert.equal(done.outcome.seq, 11)
  assert.deepEqual(todos.rows.get('a'), { n: 1 })
})

test('a write over a WebSocket that is not answered goes on by POST', async () => {
  const { wire, clock, todos, frames } = await setup('websocket')
  const done = todos.put('a', { n: 1 })
  await turns()
  for (let i = 0; i < 3; i++) {
    await clock.advance(10_000)
    await frames(live(11 + i))
  }
  await clock.advance(250)
  await wire.post.answer(200, answer(wire.post.body, 15))
  assert.equal((await done).seq, 15)
  await frames({ type: 'written', id: wire.socket.sent[0].id, ...answer(wire.post.body, 15, 'duplicate') })
})

test('without a live WebSocket a write goes by POST', async () => {
  const { wire, clock, todos } = await setup('websocket')
  await wire.socket.die()
  const done = todos.put('a', { n: 1 })
  await turns()
  await wire.post.answer(200, answer(wire.post.body, 11))
  assert.equal((await done).seq, 11)
  await clock.advance(500)
  todos.put('b', { n: 2 })
  await turns()
  assert.equal(wire.sockets.length, 2)
  assert.equal(wire.posts.length, 2, 'not over one that is still connecting')
})

test('a client writes without following anything', async () => {
  const wire = new Wire()
  const client = createClient({
    url: 'http://tide.test',
    tenant: 'demo',
    transport: 'poll',
    fetch: wire.fetch,
    clock: new FakeClock(),
  })
  const done = client.collection('log').insert({ n: 1 })
  await turns()
  await wire.post.answer(200, answer(wire.post.body, 3))
  assert.equal((await done).seq, 3)
  assert.equal(wire.feeds.length, 0)
  assert.equal(client.collection('log').rows.size, 0, 'what is not followed is not kept')
})

test('closing the client gives up its writes at once, and says so', async () => {
  const { wire, clock, client, todos } = await setup()
  const sending = await watch(todos.put('a', { n: 1 }))
  const { post } = wire
  const waiting = await watch(todos.put('b', { n: 2 }))
  await wire.post.fail()
  await client.close()
  await turns()
  for (const write of [sending, waiting]) assert.equal(write.outcome.code, 'closed')
  assert.equal(post.aborted, true)
  assert.equal(clock.timers.size, 0)
  await clock.advance(100_000)
  assert.equal(wire.posts.length, 2)
})

test('the order in which writes are confirmed is the order in which they happened, whatever their answers do', async () => {
  const { wire, todos, told } = await setup()
  const first = todos.put('a', { n: 1 })
  const second = todos.put('a', { n: 2 })
  await turns()
  await wire.posts[1].answer(200, answer(wire.posts[1].body, 12))
  await wire.posts[0].answer(200, answer(wire.posts[0].body, 11))
  assert.deepEqual([(await first).seq, (await second).seq], [11, 12])
  assert.deepEqual(todos.rows.get('a'), { n: 2 })
  assert.deepEqual(told, ['insert a 12'])
})

test('a value that can not be sent is refused before it is sent', async () => {
  const { wire, todos } = await setup()
  /** @type {any} */
  const ring = {}
  ring.ring = ring
  await assert.rejects(todos.put('a', ring), TypeError)
  assert.equal(wire.posts.length, 0)
})
