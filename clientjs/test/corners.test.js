// What hostile data, odd moments and many clients in one place do to a client.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { createBeyond } from '../src/beyond.js'
import { createCore } from '../src/client.js'
import { createClient } from '../src/index.js'
import { createRows } from '../src/rows.js'
import { FakeClock, turns } from './clock.js'
import { live, Wire } from './wire.js'

/** @typedef {import('../src/writer.js').Entry} Entry */

/** A store of a past that a test makes up. @param {Entry[]} orphans @param {Promise<unknown>} [ready] */
const store = async (orphans, ready) => ({
  load: async () => {},
  heard: () => {},
  passed: () => {},
  keep: async () => {},
  drop: () => {},
  adopt: async () => {
    await ready
    return orphans.splice(0)
  },
  close: async () => {},
})

/** Rows that are live with one of them. @param {object} value */
function one(value) {
  const rows = createRows()
  rows.cover('aaaa')
  rows.put('k', 1, value)
  rows.live(1)
  rows.take()
  return rows
}

for (const member of ['constructor', 'toString', '__proto__']) {
  test(`a member called ${member} that a row gets is a change`, () => {
    const rows = one({})
    rows.put('k', 2, JSON.parse(`{"${member}":{}}`))
    rows.next(2)
    assert.equal(rows.take()?.changes.length, 1)
    assert.deepEqual(Object.keys(rows.values.get('k')), [member])
  })

  test(`a member called ${member} that a row loses is a change`, () => {
    const rows = one(JSON.parse(`{"${member}":{}}`))
    rows.put('k', 2, {})
    rows.next(2)
    assert.equal(rows.take()?.changes.length, 1)
    assert.deepEqual(Object.keys(rows.values.get('k')), [])
  })
}

test('a page with thousands of unsent writes is not busy for long when all rows come anew', () => {
  const many = 2000
  const rows = createRows()
  rows.watch()
  rows.cover('aaaa')
  let looks = 0
  for (let i = 0; i < many; i++) {
    rows.put(`k${i}`, i + 1, { n: i })
    rows.guess(`w${i}`, {
      op: 'modify',
      patch: { mine: i },
      get key() {
        looks++
        return `k${i}`
      },
    })
  }
  rows.live(many)
  const told = rows.take()
  assert.equal(told?.changes.length, many)
  assert.deepEqual(rows.values.get('k7'), { n: 7, mine: 7 })
  assert.ok(looks <= 10 * many, `the keys of ${many} writes were looked at ${looks} times`)
})

test('keys and collections called as members of objects are like any other', async () => {
  const wire = new Wire()
  const client = createClient({
    url: 'http://tide.test',
    tenant: 'demo',
    transport: 'poll',
    fetch: wire.fetch,
    clock: new FakeClock(),
  })
  const names = ['__proto__', 'constructor', 'toString']
  const all = names.map((name) => client.collection(name))
  for (const one of all) one.start()
  await turns()
  const frames = names.flatMap((collection, i) =>
    names.map((key, j) => ({ type: 'change', seq: 1 + 3 * i + j, collection, op: 'insert', key, value: { [key]: i } })),
  )
  await wire.poll.reply(wire.open, ...frames, live(9))
  for (const [i, { rows }] of all.entries()) {
    assert.deepEqual([...rows.keys()], names)
    assert.deepEqual(Object.entries(rows.get('__proto__') ?? {}), [['__proto__', i]])
  }
  await client.close()
})

test('a write that was made before its collection is followed shows once it is', async () => {
  const wire = new Wire()
  const client = createClient({
    url: 'http://tide.test',
    tenant: 'demo',
    transport: 'poll',
    fetch: wire.fetch,
    clock: new FakeClock(),
  })
  client.onError(() => {})
  const todos = client.collection('todos')
  todos.put('a', { n: 1 }).catch(() => {})
  todos.start()
  await turns()
  await wire.poll.reply(wire.open, live(3))
  const shown = todos.rows.get('a')
  await client.close()
  assert.deepEqual(shown, { n: 1 })
})

test('writes of a page that is gone go before those that its successor makes in its first moment', async () => {
  const wire = new Wire()
  /** @type {(x?: unknown) => void} */
  let read = () => {}
  const old = {
    client: 'c',
    atomic: true,
    changes: [{ id: 'old', collection: 'todos', op: 'put', key: 'a', value: {} }],
  }
  const client = createCore(
    { url: 'http://tide.test', tenant: 'demo', transport: 'poll', fetch: wire.fetch, clock: new FakeClock() },
    (host) => createBeyond(host, () => store([/** @type {any} */ (old)], new Promise((resolve) => (read = resolve)))),
  )
  client.onError(() => {})
  client
    .collection('todos')
    .put('a', { n: 1 })
    .catch(() => {})
  await turns()
  read()
  await turns()
  const [first] = wire.post.body.changes
  await client.close()
  assert.equal(first.id, 'old')
})

test('a write that was sent too long ago is not sent again in the company of a new one', async () => {
  const wire = new Wire()
  const clock = new FakeClock()
  const change = { id: 'old', collection: 'todos', op: 'put', key: 'a', value: {} }
  const old = { client: 'c', atomic: true, at: clock.now() - 2 * 3600e3, changes: [change] }
  const client = createCore(
    { url: 'http://tide.test', tenant: 'demo', transport: 'poll', client: 'c', fetch: wire.fetch, clock },
    (host) => createBeyond(host, () => store([/** @type {any} */ (old)])),
  )
  client.onError(() => {})
  const todos = client.collection('todos')
  // Nothing is sent before the feed is there, so both wait.
  todos.start()
  todos.put('b', { n: 1 }).catch(() => {})
  await turns()
  await wire.poll.reply(wire.open, live(3))
  await turns()
  const sent = wire.posts.flatMap(({ body }) => body.changes.map((/** @type {any} */ { id }) => id))
  await client.close()
  assert.ok(sent.length > 0)
  assert.ok(!sent.includes('old'), `sent: ${sent}`)
})

test('undoing twice, or after closing, does nothing', async () => {
  const wire = new Wire()
  const client = createClient({
    url: 'http://tide.test',
    tenant: 'demo',
    transport: 'poll',
    fetch: wire.fetch,
    clock: new FakeClock(),
  })
  const todos = client.collection('todos')
  const first = todos.subscribe(() => {})
  first()
  todos.start()
  first()
  await turns()
  await wire.poll.reply(wire.open, live(3))
  assert.equal(client.status.state, 'live')
  await client.close()
  await client.close()
  first()
  await turns()
  assert.equal(client.status.reason, 'closed')
})
