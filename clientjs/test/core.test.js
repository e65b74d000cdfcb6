// What the entry without a queue, tabs and store does otherwise: its writes, and what it remembers.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { createClient } from '../src/core.js'
import { FakeClock, turns } from './clock.js'
import { install } from './install.js'
import { change, live, Wire } from './wire.js'

/** A client that is live at 10, with one row. @param {import('../src/machine.js').Transport} transport */
async function setup(transport) {
  const wire = new Wire()
  const clock = new FakeClock()
  const { fetch, WebSocket } = wire
  const client = createClient({ url: 'http://tide.test', tenant: 'demo', transport, fetch, WebSocket, clock })
  client.onError(() => {})
  const todos = client.collection('todos')
  todos.start()
  await turns()
  await wire.reach(transport, 10, change(1, 'old', { n: 1 }))
  return { wire, clock, client, todos }
}

/** @param {any} body @param {number} seq */
const answer = ({ changes: [{ id, key, value }] }, seq) => ({
  cursor: `aaaa-${seq}`,
  results: [{ id, key, seq, status: 'ok', value }],
})

/** The code of what a write is rejected with; undefined as long as it is not. @param {Promise<unknown>} write */
function outcome(write) {
  /** @type {{code?: string}} */
  const seen = {}
  write.catch(({ code }) => {
    seen.code = code
  })
  return seen
}

test('without a queue writes show at once, and are sent one after the other', async () => {
  const { wire, client, todos } = await setup('sse')
  const [first, second] = [todos.put('a', { n: 1 }), todos.put('b', { n: 2 })]
  await turns()
  assert.deepEqual([...todos.rows.keys()], ['old', 'a', 'b'])
  assert.equal(wire.posts.length, 1)
  const [{ body }] = wire.posts
  await wire.post.answer(200, answer(body, 11))
  assert.equal((await first).seq, 11)
  assert.equal(wire.posts.length, 2)
  await wire.post.answer(200, answer(wire.post.body, 12))
  assert.equal((await second).seq, 12)
  await client.close()
})

test('without a queue a write that is refused is taken back, and costs the next one nothing', async () => {
  const { wire, client, todos } = await setup('sse')
  const refused = outcome(todos.modify('old', { n: 2 }, { if: 7 }))
  const next = todos.put('b', { n: 2 })
  await turns()
  const [{ id }] = wire.post.body.changes
  const results = [{ id, key: 'old', seq: 9, status: 'conflict', value: { n: 5 } }]
  await wire.post.answer(200, { cursor: 'aaaa-10', results })
  assert.equal(refused.code, 'conflict')
  assert.deepEqual(todos.rows.get('old'), { n: 1 })
  assert.deepEqual(wire.posts.length, 2)
  await wire.post.answer(200, answer(wire.post.body, 11))
  assert.equal((await next).seq, 11)
  await client.close()
})

test('without a queue a write that gets no answer is sent once more under its id, and then rejects', async () => {
  const { wire, client, todos } = await setup('sse')
  const lost = todos.put('a', { n: 1 })
  const end = outcome(lost)
  await turns()
  const [{ id }] = wire.post.body.changes
  await wire.post.fail()
  assert.equal(end.code, undefined)
  assert.equal(wire.posts.length, 2)
  assert.equal(wire.post.body.changes[0].id, id)
  await wire.post.fail()
  assert.equal(end.code, 'unavailable')
  assert.equal(todos.rows.has('a'), false)
  assert.equal(wire.posts.length, 2)
  await client.close()
})

test('without a queue what a dying WebSocket took along goes by POST', async () => {
  const { wire, client, todos } = await setup('websocket')
  const write = todos.put('a', { n: 1 })
  await turns()
  const [{ changes }] = wire.socket.writes
  await wire.socket.die()
  assert.deepEqual(wire.post.body.changes, changes)
  await wire.post.answer(200, answer(wire.post.body, 11))
  assert.equal((await write).seq, 11)
  await client.close()
})

test('without a queue a busy server is not asked twice', async () => {
  const { wire, client, todos } = await setup('sse')
  const busy = outcome(todos.put('a', { n: 1 }))
  await turns()
  await wire.post.answer(503, { code: 'unavailable' }, { 'retry-after': '5' })
  assert.equal(busy.code, 'unavailable')
  assert.equal(wire.posts.length, 1)
  await client.close()
})

test('without a queue closing gives up what is under way and what waits, and says so', async () => {
  const { wire, client, todos } = await setup('sse')
  const ends = [outcome(todos.put('a', { n: 1 })), outcome(todos.put('b', { n: 1 }))]
  await turns()
  await client.close()
  await turns()
  assert.deepEqual(
    ends.map(({ code }) => code),
    ['closed', 'closed'],
  )
  assert.equal(wire.posts.length, 1)
  assert.equal(wire.held, '')
})

test('without a queue a feed changes rows as with one', async () => {
  const { wire, client, todos } = await setup('sse')
  await wire.stream.frames(change(11, 'new', { n: 1 }), live(11))
  assert.deepEqual([...todos.rows.keys()], ['old', 'new'])
  await client.close()
})

test('without a memory of networks each page begins with polls, whatever was proven on the one before', async (t) => {
  let asked = 0
  const item = () => {
    asked++
    return null
  }
  install(t, { localStorage: { getItem: item, setItem: item } })
  for (let page = 0; page < 2; page++) {
    const { wire, client } = await setup('websocket')
    assert.equal(wire.polls.length, 1)
    assert.equal(client.status.transport, 'websocket')
    await client.close()
  }
  assert.equal(asked, 0)
})
