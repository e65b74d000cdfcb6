import assert from 'node:assert/strict'
import { test } from 'node:test'
import { createClient, TidemarkError } from '../src/index.js'
import { FakeClock, turns } from './clock.js'
import { change, live, open, Wire } from './wire.js'

/** @typedef {import('../src/machine.js').Transport} Transport */

const TRANSPORTS = /** @type {const} */ (['sse', 'poll', 'websocket'])
const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/

/**
 * A client that is live at 10, over the given transport.
 * @param {Transport} transport
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
  await wire.reach(transport, 10, change(1, 'old', { n: 1 }))
  told.length = 0
  const frames = (/** @type {object[]} */ ...list) => wire.by(transport).frames(...list)
  return { wire, clock, client, todos, told, frames }
}

/**
 * What a server answers to a request, if it likes all of it.
 * @param {any} body
 * @param {number} seq of the first change
 */
const answer = (body, seq, status = 'ok', epoch = 'aaaa') => ({
  cursor: `${epoch}-${seq + body.changes.length - 1}`,
  results: body.changes.map((/** @type {any} */ { id, op, key, value }, /** @type {number} */ i) => ({
    id,
    status,
    key,
    seq: seq + i,
    ...(op === 'remove' ? {} : { value: value ?? { merged: true } }),
  })),
})

/** The server takes the last write that was sent. @param {Wire} wire @param {number} seq */
const accept = ({ post }, seq, status = 'ok') => post.answer(200, answer(post.body, seq, status))

/** The server can be reached again. @param {Wire} wire @param {FakeClock} clock */
async function back(wire, clock) {
  while (!wire.held) await clock.advance(clock.next)
  await wire.feed.frames(open)
}

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

// What is sent.

test('each kind of write says what it means, with an id of its own', async () => {
  const { wire, todos } = await setup('sse', { client: 'c-81' })
  const writes = [
    () => todos.insert({ a: 1 }),
    () => todos.insert({ a: 2 }, { key: 'k' }),
    () => todos.modify('k', { a: null }, { if: 7 }),
    () => todos.put('k', { a: 3 }),
    () => todos.put('k', { a: 4 }, { if: 0 }),
    () => todos.remove('k'),
    () => todos.remove('k', { if: 9 }),
    () => todos.insert({ a: 5 }, { ttl: 60, optimistic: false }),
    () => todos.modify('k', { a: 6 }, { ttl: 30 }),
  ]
  const results = []
  for (const [i, write] of writes.entries()) {
    const done = write()
    await turns()
    await accept(wire, 20 + i)
    results.push(await done)
  }
  const bodies = wire.posts.map(({ body }) => body)
  const { url, init } = wire.post
  assert.equal(url.href, 'http://tide.test/v1/demo/changes')
  assert.deepEqual([init.method, new Headers(init.headers).get('content-type')], ['POST', 'application/json'])
  const [made, made2] = [results[0].key, results[7].key]
  assert.match(made, UUID)
  assert.match(made2, UUID)
  assert.notEqual(made, made2)
  assert.deepEqual(
    bodies.map(({ changes: [{ id, ...rest }], ...body }) => ({ ...body, ...rest })),
    [
      { op: 'insert', key: made, value: { a: 1 } },
      { op: 'insert', key: 'k', value: { a: 2 } },
      { op: 'modify', key: 'k', patch: { a: null }, if: 7 },
      { op: 'put', key: 'k', value: { a: 3 } },
      { op: 'put', key: 'k', value: { a: 4 }, if: 0 },
      { op: 'remove', key: 'k' },
      { op: 'remove', key: 'k', if: 9 },
      { op: 'insert', key: made2, value: { a: 5 }, ttl: 60 },
      { op: 'modify', key: 'k', patch: { a: 6 }, ttl: 30 },
    ].map((write) => ({ client: 'c-81', atomic: true, collection: 'todos', ...write })),
  )
  const ids = bodies.map(({ changes: [{ id }] }) => id)
  assert.equal(new Set(ids).size, 9)
  assert.ok(ids.every((id) => id.length > 16))
  assert.equal(wire.unbound, true)
  assert.deepEqual(results.map(({ key, seq, value }) => [key, seq, value]).slice(0, 2), [
    [made, 20, { a: 1 }],
    ['k', 21, { a: 2 }],
  ])
})

test('rows that are inserted without a key sort by the time when they were made', async () => {
  const { clock, todos } = await setup()
  const keys = []
  for (let i = 0; i < 20; i++) {
    await watch(todos.insert({ i }))
    keys.push([...todos.rows.keys()].at(-1))
    await clock.advance(1)
  }
  assert.deepEqual([...keys].sort(), keys)
  assert.equal(new Set(keys).size, 20)
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

test('an id of its own is sent as it is, and one that is left open is made', async () => {
  const { wire, client } = await setup()
  const change = /** @type {const} */ ({ collection: 'todos', op: 'put', key: 'a', value: {} })
  client.write([
    { ...change, id: 'mine' },
    { ...change, id: undefined },
  ])
  await turns()
  const [first, second] = wire.post.body.changes
  assert.equal(first.id, 'mine')
  assert.ok(second.id?.length > 16, 'without an id a lost answer would have it happen twice')
})

test('a value that can not be sent is refused before it is sent, and never shows', async () => {
  const { wire, todos, told } = await setup()
  /** @type {any} */
  const ring = {}
  ring.ring = ring
  await assert.rejects(todos.put('a', ring), TypeError)
  assert.deepEqual([wire.posts.length, told], [0, []])
})

test('what the page does to a value after it was written changes neither what is sent nor what is shown', async () => {
  const { wire, todos } = await setup()
  const value = { list: [1] }
  const done = todos.put('a', value)
  value.list.push(2)
  await turns()
  assert.deepEqual([wire.post.body.changes[0].value, todos.rows.get('a')], [{ list: [1] }, { list: [1] }])
  await accept(wire, 11)
  await done
})

// What is shown.

test('an own write shows at once, and neither its answer nor its echo makes it flicker, whichever is first', async () => {
  for (const transport of TRANSPORTS) {
    for (const order of ['answer, echo', 'echo, answer']) {
      const { wire, todos, told, frames } = await setup(transport)
      const done = todos.put('a', { n: 1 })
      assert.deepEqual([todos.rows.get('a'), told], [{ n: 1 }, ['insert a 0']], 'before anything is sent')
      const row = todos.rows.get('a')
      await turns()
      const request = transport === 'websocket' ? wire.socket.writes[0] : wire.post.body
      const reply = answer(request, 11)
      const echo = async () => {
        if (transport === 'poll') await frames(open)
        await frames(change(11, 'a', { n: 1 }, { id: request.changes[0].id }), live(11))
      }
      if (order === 'echo, answer') await echo()
      if (transport === 'websocket') {
        assert.deepEqual([request.type, wire.posts.length], ['write', 0])
        await frames({ type: 'written', id: request.id, ...reply })
      } else await wire.post.answer(200, reply)
      const result = await done
      assert.deepEqual([result.key, result.seq, result.value], ['a', 11, { n: 1 }])
      assert.equal(todos.seq('a'), 11)
      if (order === 'answer, echo') await echo()
      assert.deepEqual(told, ['insert a 0'], `${transport}: ${order}`)
      assert.equal(todos.rows.get('a'), row)
    }
  }
})

test('a write that is not to show before it is confirmed shows then, and its echo is told to nobody', async () => {
  for (const transport of TRANSPORTS) {
    const { wire, client, todos, told, frames } = await setup(transport)
    const writes = [
      todos.put('a', { n: 1 }, { optimistic: false }),
      client.write([{ collection: 'todos', op: 'put', key: 'b', value: { n: 2 } }], { optimistic: false }),
    ]
    for (const [i, key] of ['a', 'b'].entries()) {
      await turns()
      assert.equal(todos.rows.has(key), false)
      if (transport === 'websocket') {
        const { type, id, ...body } = wire.socket.writes[i]
        await frames({ type: 'written', id, ...answer(body, 11 + i) })
      } else await accept(wire, 11 + i)
      await writes[i]
      assert.deepEqual(todos.rows.get(key), { n: 1 + i })
    }
    if (transport === 'poll') await frames(open)
    await frames(change(11, 'a', { n: 1 }), change(12, 'b', { n: 2 }), live(12))
    assert.deepEqual(told, ['insert a 11', 'insert b 12'], transport)
  }
})

test('each kind of write shows what the server will make of it', async () => {
  const { todos, told } = await setup()
  const writes = [
    todos.modify('old', { n: null, m: { x: 1 } }),
    todos.modify('old', { m: { y: 2 } }),
    todos.modify('not there', { n: 1 }),
    todos.put('new', { n: 2 }),
    todos.remove('not there'),
  ]
  for (const write of writes) await watch(write)
  assert.deepEqual(
    [...todos.rows],
    [
      ['old', { m: { x: 1, y: 2 } }],
      ['new', { n: 2 }],
    ],
  )
  await watch(todos.remove('old'))
  assert.deepEqual([...todos.rows.keys()], ['new'])
  assert.deepEqual(told, ['modify old 1', 'modify old 1', 'insert new 0', 'remove old 1'])
})

test('what others do to a row meanwhile shows below the own write, and together with it', async () => {
  const { wire, todos, frames } = await setup()
  const done = todos.modify('old', { mine: 1 })
  await frames(change(11, 'old', { n: 1, theirs: 1 }), live(11))
  assert.deepEqual(todos.rows.get('old'), { n: 1, theirs: 1, mine: 1 })
  const row = { n: 1, theirs: 1, mine: 1 }
  const { id, key } = wire.post.body.changes[0]
  await wire.post.answer(200, { cursor: 'aaaa-12', results: [{ id, status: 'ok', key, seq: 12, value: row }] })
  await done
  assert.deepEqual(todos.rows.get('old'), row)
})

test('several writes to one row that have no answer show in order, and settle without going back', async () => {
  const { wire, todos, told, frames } = await setup()
  const writes = [1, 2, 3].map((n) => todos.put('old', { n: 10 * n }))
  await turns()
  assert.deepEqual(todos.rows.get('old'), { n: 30 })
  await frames(change(11, 'old', { n: 10 }, { id: wire.post.body.changes[0].id }), live(11))
  assert.deepEqual(todos.rows.get('old'), { n: 30 })
  await accept(wire, 11)
  await writes[0]
  assert.deepEqual(todos.rows.get('old'), { n: 30 })
  await accept(wire, 12)
  await Promise.all(writes)
  assert.deepEqual(todos.rows.get('old'), { n: 30 })
  assert.deepEqual(told, ['modify old 1', 'modify old 1', 'modify old 1'])
  await frames(change(12, 'old', { n: 20 }), change(13, 'old', { n: 30 }), live(13))
  assert.equal(told.length, 3)
})

test('a transaction over collections shows in all of them before anybody is told', async () => {
  const { wire, client, todos } = await setup('websocket')
  const lists = client.collection('lists')
  /** @type {string[]} */
  const seen = []
  const look = () => seen.push(`${todos.rows.get('a')?.n} ${lists.rows.get('x')?.n}`)
  lists.subscribe(look)
  todos.subscribe(look)
  await turns()
  await wire.socket.done(live(10))
  seen.length = 0
  const done = client.write([
    { collection: 'todos', op: 'put', key: 'a', value: { n: 1 } },
    { collection: 'lists', op: 'put', key: 'x', value: { n: 2 } },
    { collection: 'not-followed', op: 'put', key: 'y', value: { n: 3 } },
  ])
  await turns()
  assert.deepEqual(seen, ['1 2', '1 2'])
  const [{ id, ...body }] = wire.socket.writes
  assert.deepEqual([body.atomic, body.changes.length], [true, 3])
  const reply = answer(body, 11)
  // The server knows better what has come of it.
  for (const result of reply.results) result.value = { n: 10 * result.value.n }
  await wire.socket.frames({ type: 'written', id, ...reply })
  assert.deepEqual(
    (await done).map(({ seq }) => seq),
    [11, 12, 13],
  )
  assert.deepEqual(seen, ['1 2', '1 2', '10 20', '10 20'])
  assert.equal(client.collection('not-followed').rows.size, 0)
})

test('of a reset that comes while a write is under way nothing is lost, and nothing flickers', async () => {
  const { wire, todos, told, frames } = await setup()
  const done = todos.put('a', { n: 1 })
  await turns()
  await frames({ type: 'reset', collections: ['todos'], reason: 'expired' }, change(1, 'old', { n: 1 }))
  assert.deepEqual([...todos.rows.keys()], ['old', 'a'])
  await accept(wire, 12)
  await done
  await frames(live(11))
  assert.deepEqual([...todos.rows.keys()], ['old', 'a'])
  await frames(change(12, 'a', { n: 1 }), live(12))
  assert.deepEqual(told.filter(Boolean), ['insert a 0'])
})

// What is refused.

test('a refused write rejects with the row as it stands, and is taken back', async () => {
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
    const done = await watch(todos.put('old', { n: 7 }, { if: 3 }))
    await wire.post.answer(status, body)
    const error = done.outcome
    assert.ok(error instanceof TidemarkError)
    assert.deepEqual([error.code, error.status, error.seq, error.value], [code, status, seq, seq && { n: 9 }])
    assert.deepEqual([wire.posts.length, told], [1, ['modify old 1', 'modify old 1']])
    assert.deepEqual(todos.rows.get('old'), { n: 1 })
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
    await wire.socket.frames({ ...frame, id: wire.socket.writes[0].id })
    const error = done.outcome
    assert.deepEqual([error.code, error.status, error.seq, error.value], ['conflict', 409, 9, { n: 9 }])
    assert.deepEqual([wire.posts.length, told], [0, ['insert a 0', 'remove a 0']])
  }
})

test('a refused transaction is taken back as a whole, before anybody is told', async () => {
  const { wire, client, todos, told } = await setup()
  const done = await watch(
    client.write([
      { collection: 'todos', op: 'put', key: 'a', value: { n: 1 } },
      { collection: 'todos', op: 'modify', key: 'old', patch: { n: 2 }, if: 7 },
    ]),
  )
  assert.deepEqual(told, ['insert a 0, modify old 1'])
  const results = [{ status: 'aborted' }, { status: 'conflict', key: 'old', seq: 1, value: { n: 1 } }]
  await wire.post.answer(409, { code: 'conflict', detail: 'nothing was written', results })
  assert.deepEqual([done.outcome.code, done.outcome.seq], ['conflict', 1])
  assert.deepEqual([...todos.rows], [['old', { n: 1 }]])
  assert.deepEqual(told, ['insert a 0, modify old 1', 'remove a 0, modify old 1'])
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

// In order, and together.

test('writes are sent in order, one request at a time, and what gathers meanwhile goes in one', async () => {
  const { wire, todos } = await setup()
  const writes = ['a', 'b', 'c', 'd'].map((key) => todos.put(key, { n: key }))
  await turns()
  assert.deepEqual(
    wire.posts.map(({ body }) => [body.atomic, body.changes.map((/** @type {any} */ { key }) => key).join('')]),
    [[true, 'a']],
  )
  await accept(wire, 11)
  const { body } = wire.post
  assert.deepEqual([wire.posts.length, body.atomic], [2, false])
  assert.deepEqual(
    body.changes.map((/** @type {any} */ { key }) => key),
    ['b', 'c', 'd'],
  )
  const refused = assert.rejects(writes[2], { code: 'conflict', seq: 5, value: { n: 5 } })
  const late = todos.put('e', { n: 'e' })
  await turns()
  assert.equal(wire.posts.length, 2)
  const reply = answer(body, 12)
  reply.results[1] = { ...reply.results[1], status: 'conflict', seq: 5, value: { n: 5 } }
  await wire.post.answer(200, reply)
  await refused
  await accept(wire, 15)
  assert.deepEqual(
    (await Promise.all([writes[0], writes[1], writes[3], late])).map(({ key, seq }) => [key, seq]),
    [
      ['a', 11],
      ['b', 12],
      ['d', 14],
      ['e', 15],
    ],
  )
  assert.deepEqual([...todos.rows.keys()].sort(), ['a', 'b', 'd', 'e', 'old'])
})

test('what gathers goes in one frame over a WebSocket too', async () => {
  const { wire, todos } = await setup('websocket')
  const writes = ['a', 'b', 'c'].map((key) => todos.put(key, {}))
  await turns()
  assert.equal(wire.socket.writes.length, 1)
  await wire.socket.frames({ type: 'written', id: wire.socket.writes[0].id, ...answer(wire.socket.writes[0], 11) })
  const [, second] = wire.socket.writes
  assert.deepEqual([second.atomic, second.changes.length], [false, 2])
  await wire.socket.frames({ type: 'written', id: second.id, ...answer(second, 12) })
  assert.deepEqual(
    (await Promise.all(writes)).map(({ seq }) => seq),
    [11, 12, 13],
  )
})

test('a transaction is never taken apart, nor put together with others, and keeps its place', async () => {
  const { wire, client, todos } = await setup()
  const two = (/** @type {string} */ key, atomic = true) =>
    client.write(
      [1, 2].map((n) => ({ collection: 'todos', op: 'put', key: `${key}${n}`, value: { n } })),
      { atomic },
    )
  const writes = [
    todos.put('a', {}),
    todos.put('b', {}),
    todos.put('c', {}),
    two('d'),
    two('e', false),
    todos.put('f', {}),
    todos.put('g', {}),
  ]
  const sent = []
  for (let i = 0; i < 5; i++) {
    await turns()
    assert.equal(wire.posts.length, i + 1)
    const { atomic, changes } = wire.post.body
    sent.push(`${atomic} ${changes.map((/** @type {any} */ { key }) => key).join()}`)
    await accept(wire, 11 + 10 * i)
  }
  await Promise.all(writes)
  assert.deepEqual(sent, ['true a', 'false b,c', 'true d1,d2', 'false e1,e2', 'false f,g'])
})

test('at most a hundred changes go together, and no more than a server takes in one request', async () => {
  const { wire, todos } = await setup()
  const text = 'x'.repeat(90_000)
  const writes = [todos.put('first', {})]
  for (let i = 0; i < 150; i++) writes.push(todos.put(`k${i}`, { i }))
  for (let i = 0; i < 4; i++) writes.push(todos.put(`long${i}`, { text }))
  const counts = []
  for (let i = 0; i < 4; i++) {
    await turns()
    counts.push(wire.post.body.changes.length)
    await accept(wire, 11 + 200 * i)
  }
  await Promise.all(writes)
  assert.deepEqual(counts, [1, 100, 52, 2])
  assert.ok(wire.posts.every(({ init }) => String(init.body).length < 300_000))
})

test('of writes that went together and are refused as a whole, each gets an answer of its own', async () => {
  const { wire, todos } = await setup()
  const writes = ['a', 'secret', 'c'].map((key) => todos.put(key, { key }))
  for (const write of writes) write.catch(() => {})
  const first = await watch(todos.put('d', {}))
  await accept(wire, 11)
  await wire.post.answer(403, { code: 'forbidden', detail: 'not the secret' })
  assert.equal(wire.post.body.changes.length, 1)
  await wire.post.answer(403, { code: 'forbidden', detail: 'not the secret' })
  await accept(wire, 12)
  await accept(wire, 13)
  await assert.rejects(writes[1], { code: 'forbidden' })
  assert.deepEqual([(await writes[0]).seq, (await writes[2]).seq, first.outcome.seq], [11, 12, 13])
  assert.deepEqual([...todos.rows.keys()].sort(), ['a', 'c', 'd', 'old'])
})

test('no writes at all are done at once, and hold nothing up', async () => {
  const { wire, client, todos } = await setup()
  assert.deepEqual(await client.write([]), [])
  const done = await watch(todos.put('a', { n: 1 }))
  await accept(wire, 11)
  assert.equal(done.outcome.seq, 11)
})

test('what a full tenant does not take is given up, and neither what fits nor what makes room waits for it', async () => {
  const { wire, clock, todos } = await setup()
  const first = todos.put('a', {})
  const [b, c] = [await watch(todos.put('b', {})), await watch(todos.put('c', {}))]
  await accept(wire, 11)
  await first
  const full = /** @type {const} */ ([429, { code: 'too-many', limit: 'rows' }, { 'retry-after': '30' }])
  await wire.post.answer(...full)
  assert.equal(wire.post.body.changes.length, 1)
  await wire.post.answer(...full)
  assert.deepEqual([b.outcome.code, b.outcome.limit], ['too-many', 'rows'])
  await accept(wire, 12)
  assert.equal(c.outcome.seq, 12)
  assert.deepEqual([...todos.rows.keys()].sort(), ['a', 'c', 'old'])
  assert.ok(clock.next > 30_000, 'nothing of it is left to be done')
})

test('a write that can not be sent now holds back those after it, so that their order is kept', async () => {
  const { wire, clock, todos } = await setup()
  const writes = [todos.put('a', { n: 1 }), todos.put('a', { n: 2 })]
  await turns()
  await wire.post.answer(503, { code: 'unavailable' })
  await clock.advance(249)
  assert.equal(wire.posts.length, 1)
  await clock.advance(1)
  const { length } = wire.post.body.changes
  assert.deepEqual(wire.post.body.changes[0], wire.posts[0].body.changes[0])
  await accept(wire, 11)
  if (length === 1) await accept(wire, 12)
  assert.deepEqual([(await writes[0]).seq, (await writes[1]).seq], [11, 12])
  assert.deepEqual(todos.rows.get('a'), { n: 2 })
})

// When the network fails.

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
    const done = await watch(todos.insert({ n: 1 }, { key: 'made' }))
    await lose(wire)
    assert.equal(done.outcome, undefined)
    assert.equal(wire.posts.length, 1)
    await clock.advance(250)
    assert.equal(wire.posts.length, 2)
    assert.equal(wire.posts[1].init.body, wire.posts[0].init.body)
    // It had taken effect the first time, and the feed has brought it meanwhile.
    await frames(change(11, 'made', { n: 1 }))
    await accept(wire, 11, 'duplicate')
    assert.equal(done.outcome.seq, 11)
    assert.deepEqual(told, ['insert made 0'])
  }
})

test('a write whose first try was lost is refused for what is wrong with it, where only a server that did not take it says so', async () => {
  for (const [status, code, want] of /** @type {const} */ ([
    [409, 'conflict', 'conflict'],
    [400, 'bad-name', 'bad-name'],
    [413, 'too-large', 'too-large'],
    [403, 'forbidden', 'unknown'],
    [413, undefined, 'unknown'],
  ])) {
    const { wire, clock, todos } = await setup()
    const done = await watch(todos.put('old', { n: 7 }, { if: 3 }))
    await wire.post.fail()
    await clock.advance(250)
    await wire.post.answer(status, { code, detail: 'no' })
    assert.equal(done.outcome.code, want)
  }
})

test('a write that is too long for a WebSocket does not end it', async () => {
  const { wire, todos } = await setup('websocket')
  const done = await watch(todos.put('a', { text: 'x'.repeat(1 << 20) }))
  assert.equal(wire.socket.writes.length, 0)
  await wire.post.answer(413, { code: 'too-large', detail: 'at most 1 MiB' })
  assert.deepEqual([done.outcome.code, wire.socket.closed], ['too-large', false])
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
  await accept(wire, 11)
  assert.equal((await done).seq, 11)
})

test('a write is tried for as long as it takes, later each time, as long as the feed shows that there is a chance', async () => {
  const { wire, clock, todos, frames } = await setup()
  const done = await watch(todos.put('a', { n: 1 }))
  const pauses = []
  for (let i = 0; i < 40; i++) {
    await wire.post.answer(503, { code: 'unavailable' })
    const { length } = wire.posts
    let pause = 0
    for (; wire.posts.length === length; pause += 50) {
      assert.ok(pause <= 30_000)
      await clock.advance(50)
      if (pause % 5000 === 0) await frames(live(11))
    }
    pauses.push(pause)
  }
  assert.deepEqual(pauses.slice(0, 8), [250, 500, 1000, 2000, 4000, 8000, 15_000, 15_000])
  assert.equal(pauses.at(-1), 15_000)
  assert.deepEqual([done.outcome, todos.rows.has('a')], [undefined, true])
  await accept(wire, 12)
  assert.equal(done.outcome.seq, 12)
})

test('while the feed is offline writes wait, and go when it is back', async () => {
  const { wire, clock, todos, told } = await setup()
  await wire.stream.fail()
  const writes = ['a', 'b'].map((key) => todos.put(key, {}))
  await turns()
  assert.deepEqual([wire.posts.length, told], [0, ['insert a 0', 'insert b 0']])
  await clock.advance(250)
  for (let i = 0; i < 20; i++) {
    await wire.feed.fail()
    await clock.advance(clock.next)
  }
  assert.equal(wire.posts.length, 0)
  await wire.feed.frames(open)
  assert.deepEqual([wire.posts.length, wire.post.body.changes.length], [1, 2], 'without waiting for all rows')
  await accept(wire, 11)
  assert.deepEqual(
    (await Promise.all(writes)).map(({ seq }) => seq),
    [11, 12],
  )
})

test('a server that swallows a write without a word gets it again after half a minute', async () => {
  const { wire, clock, todos } = await setup('poll')
  const done = todos.put('a', { n: 1 })
  await turns()
  await clock.advance(29_999)
  assert.equal(wire.post.aborted, false)
  await clock.advance(1)
  assert.equal(wire.post.aborted, true)
  await clock.advance(250)
  assert.equal(wire.posts.length, 2)
  await accept(wire, 11)
  assert.equal((await done).seq, 11)
})

test('a write that waits for the connection which a held poll has is let through', async () => {
  const { wire, clock, todos, client } = await setup('poll')
  const held = wire.poll
  const done = todos.put('a', { n: 1 })
  await turns()
  await clock.advance(2999)
  assert.equal(held.aborted, false)
  await clock.advance(1)
  assert.deepEqual([held.aborted, wire.held, wire.poll.query.get('wait')], [true, 'poll', '22'])
  assert.ok(wire.requests.indexOf(wire.poll) > wire.requests.indexOf(wire.post))
  await accept(wire, 11)
  await done
  const { poll } = wire
  await clock.advance(10_000)
  assert.equal(wire.poll, poll, 'once is enough')
  assert.equal(client.status.state, 'live')
})

test('a write that waits for the connection which an event stream has is let through', async () => {
  const { wire, clock, todos, client } = await setup('sse')
  const { stream } = wire
  const done = todos.put('a', { n: 1 })
  await turns()
  await clock.advance(3000)
  assert.equal(stream.aborted, true)
  assert.equal(wire.post.aborted, false)
  await accept(wire, 11)
  assert.equal((await done).seq, 11)
  await clock.advance(1000)
  if (wire.held === 'poll') await wire.poll.reply(open, live(11))
  await wire.prove('sse', 11)
  assert.equal(client.status.state, 'live')
})

test('a write that is answered in time leaves the feed alone', async () => {
  for (const transport of TRANSPORTS) {
    const { wire, clock, todos } = await setup(transport)
    const done = todos.put('a', { n: 1 })
    await turns()
    await clock.advance(2999)
    if (transport === 'websocket') {
      const [{ id, ...body }] = wire.socket.writes
      await wire.socket.frames({ type: 'written', id, ...answer(body, 11) })
    } else await accept(wire, 11)
    await done
    const before = wire.by(transport)
    await clock.advance(10_000)
    assert.equal(wire.by(transport), before)
    assert.equal(wire.held, transport)
  }
})

test('a write without an answer for 55 minutes is not sent again, because nobody could tell how often it happened', async () => {
  const { wire, clock, todos, told } = await setup('poll')
  const done = await watch(todos.put('a', { n: 1 }))
  await wire.post.fail()
  await wire.poll.fail()
  for (let minutes = 0; minutes < 54; minutes++) {
    if (wire.held) await wire.poll.fail()
    await clock.advance(60_000)
  }
  assert.equal(wire.posts.length, 1)
  await back(wire, clock)
  assert.equal(wire.posts.length, 2, 'the server still knows its id')
  await wire.post.fail()
  await wire.poll.fail()
  await clock.advance(61_000)
  await back(wire, clock)
  assert.equal(wire.posts.length, 2)
  assert.ok(done.outcome instanceof TidemarkError)
  assert.equal(done.outcome.code, 'unknown')
  assert.deepEqual([todos.rows.has('a'), told], [false, ['insert a 0', 'remove a 0']])
})

test('a write that was made offline does not grow old', async () => {
  const { wire, clock, todos } = await setup('poll')
  await wire.poll.fail()
  const done = await watch(todos.put('a', { n: 1 }))
  for (let hours = 0; hours < 3; hours++) {
    if (wire.held) await wire.poll.fail()
    await clock.advance(3_600_000)
  }
  await back(wire, clock)
  assert.equal(wire.posts.length, 1)
  await accept(wire, 11)
  assert.equal(done.outcome.seq, 11)
})

test('a write that was in line behind another, and was never sent, does not grow old', async () => {
  const { wire, clock, todos } = await setup('poll')
  const first = await watch(todos.put('a', { n: 1 }))
  const second = await watch(todos.put('b', { n: 2 }))
  assert.deepEqual(
    wire.posts.map(({ body }) => body.changes.length),
    [1],
  )
  await wire.post.fail()
  await wire.poll.fail()
  clock.time += 3_600_000
  await clock.advance(0)
  await wire.poll.frames(open)
  assert.equal(first.outcome.code, 'unknown')
  assert.equal(second.outcome, undefined)
  await accept(wire, 11)
  assert.equal(second.outcome.seq, 11)
})

// Over a WebSocket.

test('a write that was under way on a WebSocket when it broke goes on by POST, with the same id', async () => {
  const { wire, clock, todos } = await setup('websocket')
  const done = await watch(todos.put('a', { n: 1 }))
  const [{ type, id, ...body }] = wire.socket.writes
  await wire.socket.die()
  assert.equal(done.outcome, undefined)
  await clock.advance(250)
  await wire.poll.reply(open, live(10))
  assert.deepEqual(wire.post.body, body)
  await accept(wire, 11, 'duplicate')
  assert.equal(done.outcome.seq, 11)
  assert.deepEqual(todos.rows.get('a'), { n: 1 })
})

test('a write over a WebSocket that is not answered goes on by POST', async () => {
  const { wire, clock, todos } = await setup('websocket')
  const done = await watch(todos.put('a', { n: 1 }))
  const { socket } = wire
  for (let s = 0; !wire.post; s++) {
    assert.ok(s < 35)
    await clock.advance(1000)
    if (!socket.closed && s % 10 === 9) await socket.frames(live(11))
    if (wire.socket === socket || wire.socket.sent.length) continue
    await wire.socket.open()
    await wire.socket.frames(open)
    await wire.socket.done(live(11))
  }
  await accept(wire, 15)
  assert.equal(done.outcome.seq, 15)
  await socket.frames({ type: 'written', id: socket.writes[0].id, ...answer(wire.post.body, 15, 'duplicate') })
  assert.deepEqual([...todos.rows.keys()], ['old', 'a'])
})

test('without a proven WebSocket a write goes by POST', async () => {
  const { wire, clock, todos } = await setup('websocket')
  await clock.advance(10_000)
  await wire.socket.frames(live(10))
  await wire.socket.die()
  await clock.advance(250)
  assert.equal(wire.sockets.length, 2)
  const done = todos.put('a', { n: 1 })
  await turns()
  await wire.socket.open()
  assert.equal(wire.posts.length, 0)
  await wire.socket.frames(open)
  assert.deepEqual([wire.posts.length, wire.socket.writes.length], [1, 0])
  await accept(wire, 11)
  assert.equal((await done).seq, 11)
})

test('while another collection is being subscribed writes go on over the WebSocket', async () => {
  const { wire, client, todos } = await setup('websocket')
  client.collection('lists').start()
  await turns()
  assert.equal(client.status.state, 'catching-up')
  await watch(todos.put('a', { n: 1 }))
  assert.deepEqual([wire.posts.length, wire.socket.writes.length], [0, 1])
})

// Beside all that.

test('a client writes without following anything', async () => {
  const wire = new Wire()
  const clock = new FakeClock()
  const client = createClient({ url: 'http://tide.test', tenant: 'demo', transport: 'poll', fetch: wire.fetch, clock })
  const log = client.collection('log')
  const done = log.insert({ n: 1 })
  await turns()
  assert.equal(log.rows.size, 0)
  await wire.post.fail()
  await clock.advance(250)
  await accept(wire, 3)
  assert.equal((await done).seq, 3)
  assert.equal(wire.feeds.length, 0)
  assert.equal(log.rows.size, 0, 'what is not followed is not kept')
})

test('closing the client gives up its writes at once, says so, and takes them back', async () => {
  const { wire, clock, client, todos } = await setup()
  const sending = await watch(todos.put('a', { n: 1 }))
  const waiting = await watch(todos.put('b', { n: 2 }))
  const { post } = wire
  await client.close()
  await turns()
  for (const write of [sending, waiting]) assert.equal(write.outcome.code, 'closed')
  assert.equal(post.aborted, true)
  assert.equal(clock.timers.size, 0)
  assert.deepEqual([...todos.rows.keys()], ['old'])
  await clock.advance(100_000)
  assert.equal(wire.posts.length, 1)
})

test('what is written after the end never shows', async () => {
  const { client, todos, told } = await setup()
  await client.close()
  await assert.rejects(todos.put('a', { n: 1 }), { code: 'closed' })
  await assert.rejects(todos.remove('old'), { code: 'closed' })
  assert.deepEqual([told, [...todos.rows.keys()]], [[], ['old']])
})

test('closing the client gives up a write that waits for its next try, too', async () => {
  const { wire, clock, client, todos } = await setup()
  const write = await watch(todos.put('a', { n: 1 }))
  await wire.post.fail()
  await client.close()
  await turns()
  assert.equal(write.outcome.code, 'closed')
  assert.equal(clock.timers.size, 0)
  await clock.advance(100_000)
  assert.equal(wire.posts.length, 1)
})
