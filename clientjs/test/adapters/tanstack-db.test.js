import assert from 'node:assert/strict'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { gzipSync } from 'node:zlib'
import { build } from 'esbuild'
import fc from 'fast-check'
import '../seed.js'
import { WebSocket } from 'ws'
import { tidemarkCollectionOptions } from '../../src/adapters/tanstack-db.js'
import { createClient, TidemarkError } from '../../src/index.js'
import { turns } from '../clock.js'
import { Server } from '../server.js'
import { FakeClient } from './fake.js'

/** What an app may have installed. */
const VERSIONS = ['tanstack-db-0.6', 'tanstack-db-0.9', '@tanstack/db']

/** @typedef {typeof import('@tanstack/db')} Db */

/**
 * Once for each version.
 * @param {string} name
 * @param {(db: Db, t: import('node:test').TestContext) => Promise<void>} fn
 */
function each(name, fn) {
  for (const version of VERSIONS) test(`${name} (${version})`, async (t) => fn(await import(version), t))
}

/** @param {any} collection */
const rowsOf = (collection) =>
  Object.fromEntries([...collection.entries()].map(([key, { title, done }]) => [key, done ? `${title}!` : title]))

/**
 * A collection on a fake client, and everything that it ever showed, one line a frame.
 * @param {Db} db
 * @param {Record<string, any>} [options]
 */
function setup(db, options) {
  const client = new FakeClient()
  const source = /** @type {any} */ (client.collection('todos'))
  const todos = db.createCollection(
    tidemarkCollectionOptions(
      /** @type {import('../../src/adapters/tanstack-db.js').Options<any>} */ ({
        client: /** @type {any} */ (client),
        collection: 'todos',
        ...options,
      }),
    ),
  )
  /** @type {string[]} */
  const frames = []
  const watch = () =>
    todos.subscribeChanges(() => {
      const shown = Object.entries(rowsOf(todos))
        .sort()
        .map(([key, title]) => `${key}=${title}`)
        .join(' ')
      if (shown !== frames.at(-1)) frames.push(shown)
    })
  return { client, source, todos, frames, watch }
}

/** One that is live with two rows. @param {Db} db @param {Record<string, any>} [options] */
async function live(db, options) {
  const all = setup(db, options)
  const subscription = all.watch()
  all.client.feed({ todos: { a: { id: 'a', title: 'milk' }, b: { id: 'b', title: 'bread' } } })
  all.client.live('todos')
  await turns()
  all.frames.length = 0
  return { ...all, subscription }
}

each('a page sees rows as they come, and is ready when they are whole, not before', async (db) => {
  const { client, todos, frames, watch } = setup(db)
  const preload = todos.preload()
  watch()
  client.feed({ todos: { a: { id: 'a', title: 'milk' } } })
  assert.equal(todos.status, 'loading')
  client.feed({ todos: { b: { id: 'b', title: 'bread' } } })
  assert.equal(todos.status, 'loading')
  client.live('todos')
  assert.equal(todos.status, 'ready')
  await preload
  assert.deepEqual(frames, ['a=milk', 'a=milk b=bread'])
})

each('an empty collection does not load for ever', async (db) => {
  const { client, todos } = setup(db)
  const preload = todos.preload()
  client.live('todos')
  await preload
  assert.equal(todos.size, 0)
})

each('rows from before the page looked are there at once', async (db) => {
  const { client, todos } = setup(db)
  client.feed({ todos: { a: { id: 'a', title: 'milk' } } })
  client.live('todos')
  await todos.preload()
  assert.deepEqual(rowsOf(todos), { a: 'milk' })
})

each('changes from others are shown whole, transaction by transaction, and are never written back', async (db) => {
  const { client, frames } = await live(db)
  client.feed({ todos: { a: { id: 'a', title: 'oat milk' }, b: null, c: { id: 'c', title: 'tea' } } })
  client.feed({ todos: { c: { id: 'c', title: 'tea', done: true } } })
  assert.deepEqual(frames, ['a=oat milk c=tea', 'a=oat milk c=tea!'])
  await turns()
  assert.deepEqual(client.writes, [])
})

each('a member that others took away is gone, not left over', async (db) => {
  const { client, todos } = await live(db)
  client.feed({ todos: { a: { id: 'a', title: 'milk', done: true, n: { x: 1 } } } })
  client.feed({ todos: { a: { id: 'a', title: 'milk' } } })
  assert.equal('done' in /** @type {any} */ (todos.get('a')), false)
  assert.equal('n' in /** @type {any} */ (todos.get('a')), false)
})

each('a reset shows what differs and nothing else: no row vanishes for a moment', async (db) => {
  const { client, todos, frames } = await live(db)
  client.feed({ todos: { c: { id: 'c', title: 'tea' } } })
  /** @type {any[]} */
  const changes = []
  todos.subscribeChanges((batch) => changes.push(...batch), { includeInitialState: true })
  changes.length = 0
  client.reset('todos', { a: { id: 'a', title: 'milk' }, b: { id: 'b', title: 'rye' }, d: { id: 'd', title: 'jam' } })
  assert.deepEqual(frames, ['a=milk b=bread c=tea', 'a=milk b=rye d=jam'])
  assert.deepEqual(changes.map(({ type, key }) => `${type} ${key}`).sort(), ['delete c', 'insert d', 'update b'])
})

each('an own change shows at once and stays until and after the server has it', async (db) => {
  const { client, todos, frames } = await live(db)
  const insert = todos.insert({ id: 'c', title: 'tea' })
  const update = todos.update('a', (draft) => {
    draft.title = 'oat milk'
  })
  const remove = todos.delete('b')
  await turns()
  assert.deepEqual(
    client.writes.map(({ changes, options }) => [JSON.parse(JSON.stringify(changes)), options]),
    [
      [[{ collection: 'todos', key: 'c', op: 'insert', value: { id: 'c', title: 'tea' } }], { optimistic: false }],
      [[{ collection: 'todos', key: 'a', op: 'modify', patch: { title: 'oat milk' } }], { optimistic: false }],
      [[{ collection: 'todos', key: 'b', op: 'remove' }], { optimistic: false }],
    ],
  )
  // Out of order, with news from others between, which must wait.
  for (const write of [...client.writes].reverse()) {
    client.feed({ todos: { z: { id: 'z', title: 'last', at: client.seq } } })
    write.confirm()
    await turns()
  }
  await Promise.all([insert, update, remove].map((transaction) => transaction.isPersisted.promise))
  assert.deepEqual(frames.slice(0, 3), ['a=milk b=bread c=tea', 'a=oat milk b=bread c=tea', 'a=oat milk c=tea'])
  assert.deepEqual(frames.at(-1), 'a=oat milk c=tea z=last')
  for (const frame of frames.slice(3)) assert.match(frame, /^a=oat milk c=tea/)
})

each('a mutation has ended only when the page shows what the server made of it', async (db) => {
  const { client, source, todos, frames } = await live(db)
  const { isPersisted } = todos.update('a', (draft) => {
    draft.title = 'oat milk'
  })
  await turns()
  // Somebody else was a moment faster, with another member.
  client.feed({ todos: { a: { id: 'a', title: 'milk', done: true } } })
  client.writes[0].confirm()
  await isPersisted.promise
  assert.deepEqual(source.rows.get('a'), { id: 'a', title: 'oat milk', done: true })
  assert.deepEqual(frames, ['a=oat milk b=bread', 'a=oat milk! b=bread'])
})

each('several mutations of one call are one transaction on the server', async (db) => {
  const { client, todos, frames } = await live(db)
  todos.update(['a', 'b'], (drafts) => {
    for (const draft of drafts) draft.done = true
  })
  todos.insert([
    { id: 'c', title: 'tea' },
    { id: 'd', title: 'jam' },
  ])
  await turns()
  assert.deepEqual(
    client.writes.map(({ changes }) => changes.map(({ op, key }) => `${op} ${key}`)),
    [
      ['modify a', 'modify b'],
      ['insert c', 'insert d'],
    ],
  )
  for (const write of [...client.writes]) write.confirm()
  await turns()
  assert.deepEqual(frames, ['a=milk! b=bread!', 'a=milk! b=bread! c=tea d=jam'])
})

each('a transaction over two collections is one on the server', async (db) => {
  const { client, todos } = await live(db)
  const lists = db.createCollection(
    tidemarkCollectionOptions({ client: /** @type {any} */ (client), collection: 'lists' }),
  )
  const local = db.createCollection(db.localOnlyCollectionOptions({ getKey: (/** @type {any} */ row) => row.id }))
  const transaction = db.createTransaction({ mutationFn: todos.utils.commit })
  transaction.mutate(() => {
    lists.insert({ id: 'home' })
    todos.update('a', (draft) => {
      draft.list = 'home'
    })
    local.insert({ id: 'not for the server' })
  })
  await turns()
  assert.deepEqual(
    client.writes.map(({ changes }) => changes.map(({ op, collection, key }) => `${op} ${collection} ${key}`)),
    [['insert lists home', 'modify todos a']],
  )
  client.writes[0].confirm()
  await transaction.isPersisted.promise
})

each('a refused mutation is rolled back, and says why', async (db) => {
  const { client, todos, frames } = await live(db)
  const { isPersisted } = todos.update('a', (draft) => {
    draft.title = 'mine'
  })
  await turns()
  client.feed({ todos: { a: { id: 'a', title: 'theirs' } } })
  client.writes[0].refuse('conflict', { seq: 3, value: { id: 'a', title: 'theirs' } })
  await assert.rejects(isPersisted.promise, (error) => {
    assert.ok(error instanceof TidemarkError)
    assert.equal(error.code, 'conflict')
    assert.equal(error.status, 409)
    assert.deepEqual(error.value, { id: 'a', title: 'theirs' })
    return true
  })
  await turns()
  // It is the server's row that comes back. The one from before may be seen for as long as a mutation is under way.
  assert.equal(frames[0], 'a=mine b=bread')
  assert.equal(frames.at(-1), 'a=theirs b=bread')
})

each('a write can say which row it meant, and for how long it is to live', async (db) => {
  const { client, todos } = await live(db)
  todos.insert({ id: 'c', title: 'tea' }, { metadata: { ttl: 30 } })
  const seq = todos.utils.collection.seq('a')
  assert.equal(seq, 1)
  todos.update('a', { metadata: { if: seq } }, (draft) => {
    draft.done = true
  })
  await turns()
  const [[insert], [modify]] = client.writes.map(({ changes }) => changes)
  assert.equal(insert.ttl, 30)
  assert.equal(modify.if, 1)
})

each('what is written is the row, without what TanStack DB adds to it', async (db) => {
  const { client, todos } = await live(db)
  const row = /** @type {any} */ (todos.get('a'))
  todos.insert({ ...row, id: 'c' })
  await turns()
  assert.deepEqual(client.writes[0].changes[0].value, { id: 'c', title: 'milk' })
})

each('a row that does not tell its key can be found, changed and removed by it', async (db) => {
  const { client, todos, frames } = await live(db)
  client.feed({ todos: { 'made-1': { title: 'tea' }, 7: { id: 7, title: 'seven' }, k: { key: 'k', title: 'keyed' } } })
  const [made] = [...todos.values()].filter(({ title }) => title === 'tea')
  assert.equal(/** @type {any} */ (made).$key, 'made-1')
  for (const key of ['made-1', '7', 'k']) {
    const update = todos.update(key, (draft) => {
      draft.done = true
      draft.nothing = null
    })
    await turns()
    assert.equal(client.writes[0].changes[0].key, key)
    client.writes[0].confirm()
    await update.isPersisted.promise
    const again = todos.update(key, (draft) => {
      draft.title += '?'
    })
    await turns()
    client.writes[0].confirm()
    await again.isPersisted.promise
  }
  assert.deepEqual(client.collection('todos').rows.get('made-1'), { title: 'tea?', done: true, nothing: null })
  const removal = todos.delete('made-1')
  await turns()
  client.writes[0].confirm()
  await removal.isPersisted.promise
  assert.equal(frames.at(-1), '7=seven?! a=milk b=bread k=keyed?!')
  assert.throws(() => todos.insert({ title: 'no key' }), /key/)
})

each('getKey and a schema of one’s own are used', async (db) => {
  const { client, todos } = await live(db, {
    getKey: (/** @type {any} */ row) => row.slug,
    schema: {
      '~standard': {
        version: 1,
        vendor: 'test',
        validate: (/** @type {any} */ value) =>
          value.title ? { value: { done: false, ...value } } : { issues: [{ message: 'a title, please' }] },
      },
    },
  })
  assert.throws(() => todos.insert({ slug: 's' }), /title/)
  todos.insert({ slug: 's', title: 'tea' })
  await turns()
  const { key, value } = client.writes[0].changes[0]
  assert.equal(key, 's')
  assert.deepEqual(value, { slug: 's', title: 'tea', done: false })
})

each('handlers of one’s own may write another way, and wait for the feed', async (db) => {
  const { client, todos, frames } = await live(db, {
    onInsert: async (/** @type {any} */ { transaction, collection }) => {
      const [{ key, modified }] = transaction.mutations
      // As a backend would, which answers with the sequence.
      queueMicrotask(() => client.feed({ todos: { [key]: modified } }))
      await collection.utils.awaitSeq(client.seq + 1)
    },
  })
  const { isPersisted } = todos.insert({ id: 'c', title: 'tea' })
  await isPersisted.promise
  assert.deepEqual(client.writes, [])
  assert.deepEqual(frames, ['a=milk b=bread c=tea'])
})

each('a page that leaves stops following, and finds everything when it comes back', async (db) => {
  const { client, source, todos, subscription, watch, frames } = await live(db)
  subscription.unsubscribe()
  await todos.cleanup()
  assert.deepEqual([source.starts, source.ends], [1, 1])
  client.feed({ todos: { a: null, c: { id: 'c', title: 'tea' } } })
  watch()
  await todos.preload()
  assert.deepEqual([source.starts, source.ends], [2, 1])
  assert.deepEqual(rowsOf(todos), { b: 'bread', c: 'tea' })
  client.feed({ todos: { c: { id: 'c', title: 'tea', done: true } } })
  assert.equal(frames.at(-1), 'b=bread c=tea!')
})

each('the page can tell whether it is connected', async (db) => {
  const { client, todos } = await live(db)
  /** @type {string[]} */
  const states = []
  const undo = todos.utils.onStatus(({ state }) => states.push(state))
  client.become({ state: 'live' })
  assert.equal(todos.utils.status().state, 'live')
  undo()
  client.become({ state: 'offline' })
  assert.deepEqual(states, ['live'])
  assert.equal(todos.utils.client, client)
})

test('whatever a mutation does to a row, the server ends up with exactly that row', async () => {
  const db = await import('@tanstack/db')
  const members = fc.dictionary(fc.constantFrom('p', 'q', 'r'), fc.jsonValue({ maxDepth: 3 }), { maxKeys: 3 })
  const row = fc
    .tuple(members, fc.dictionary(fc.constantFrom('n', 'm'), members))
    .map((parts) => JSON.parse(JSON.stringify(Object.assign({}, ...parts))))
  await fc.assert(
    fc.asyncProperty(row, row, async (before, after) => {
      const { client, source, todos } = setup(db, { getKey: () => 'x' })
      client.feed({ todos: { x: before } })
      client.live('todos')
      await todos.preload()
      const { isPersisted } = todos.update('x', (draft) => {
        for (const member of Object.keys(draft)) draft[member] = undefined
        Object.assign(draft, after)
      })
      await turns()
      client.writes[0]?.confirm()
      await isPersisted.promise
      assert.deepEqual(source.rows.get('x'), after)
    }),
    { numRuns: 300 },
  )
})

test('a page downloads no more than 1.5 kB for it, and no second TanStack DB', async (t) => {
  const { outputFiles, metafile } = await build({
    entryPoints: [fileURLToPath(new URL('../../src/adapters/tanstack-db.js', import.meta.url))],
    bundle: true,
    minify: true,
    format: 'esm',
    target: 'es2022',
    metafile: true,
    write: false,
  })
  const size = gzipSync(outputFiles[0].contents, { level: 9 }).length
  t.diagnostic(`${outputFiles[0].contents.length} bytes minified, ${size} gzipped`)
  assert.ok(size <= 1500, `${size} bytes`)
  assert.equal(Object.keys(metafile.inputs).length, 1)
})

/**
 * On the real client, over a real network. `until` resolves once the page shows this.
 * @param {string} name
 * @param {(all: {server: Server, todos: any, frames: string[], until: (frame: string) => Promise<void>}) => Promise<void>} fn
 */
function real(name, fn) {
  each(name, async (db, t) => {
    const server = await new Server().listen()
    const client = createClient({ url: server.url, tenant: 'demo', WebSocket: /** @type {any} */ (WebSocket) })
    client.onError((error) => t.diagnostic(`${error.code}: ${error.message}`))
    t.after(async () => {
      await client.close()
      await server.close()
    })
    if (!('ready' in client.collection('todos'))) return t.skip('the core does not say when its rows are whole')
    const todos = db.createCollection(tidemarkCollectionOptions({ client, collection: 'todos' }))
    /** @type {string[]} */
    const frames = []
    /** @type {Set<() => void>} */
    const waiting = new Set()
    todos.subscribeChanges(() => {
      const shown = Object.entries(rowsOf(todos))
      frames.push(
        shown
          .sort()
          .map(([key, title]) => `${key}=${title}`)
          .join(' '),
      )
      for (const look of waiting) look()
    })
    /** @param {string} frame */
    const until = (frame) =>
      /** @type {Promise<void>} */ (
        new Promise((resolve) => {
          const look = () => frames.at(-1) === frame && resolve()
          waiting.add(look)
          look()
        })
      )
    await fn({ server, todos, frames, until })
  })
}

const put = (/** @type {string} */ key, /** @type {object} */ value) => ({ op: 'put', collection: 'todos', key, value })

real('over a real connection, an own change never flickers, whatever the network does', async (all) => {
  const { server, todos, frames, until } = all
  server.write([put('a', { id: 'a', title: 'milk' }), put('b', { id: 'b', title: 'bread' })])
  await todos.preload()
  await until('a=milk b=bread')
  const insert = todos.insert({ id: 'c', title: 'tea' })
  await insert.isPersisted.promise
  const update = todos.update('a', (/** @type {any} */ draft) => {
    draft.done = true
  })
  await update.isPersisted.promise
  assert.deepEqual(frames.at(-1), 'a=milk! b=bread c=tea')
  // The log is made anew, and has lost a row, while a change is under way.
  const other = todos.update('a', (/** @type {any} */ draft) => {
    draft.title = 'oat milk'
  })
  server.renew((key) => key !== 'b')
  await other.isPersisted.promise
  await until('a=oat milk! c=tea')
  server.write([put('d', { id: 'd', title: 'jam' })])
  await until('a=oat milk! c=tea d=jam')
  for (const frame of frames.slice(frames.indexOf('a=milk b=bread'))) assert.match(frame, /^a=/)
  const since = frames.slice(frames.findIndex((frame) => frame.includes('c=tea')))
  for (const frame of since) assert.match(frame, /c=tea/)
})

real('over a real connection, a refusal says why and shows the row as it stands', async (all) => {
  const { server, todos, until } = all
  server.write([put('a', { id: 'a', title: 'milk' })])
  await todos.preload()
  const seq = todos.utils.collection.seq('a')
  server.write([put('a', { id: 'a', title: 'theirs' })])
  const { isPersisted } = todos.update('a', { metadata: { if: seq } }, (/** @type {any} */ draft) => {
    draft.title = 'mine'
  })
  await assert.rejects(isPersisted.promise, {
    name: 'TidemarkError',
    code: 'conflict',
    value: { title: 'theirs', id: 'a' },
  })
  await until('a=theirs')
})
