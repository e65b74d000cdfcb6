import assert from 'node:assert/strict'
import { test } from 'node:test'
import { QueryClient, QueryObserver } from '@tanstack/query-core'
import { bindQueryData, invalidateOnChange } from '../../src/adapters/tanstack-query.js'
import { FakeClient } from './fake.js'

/** @typedef {import('node:test').TestContext} TestContext */

/** @param {TestContext} t */
function setup(t) {
  t.mock.timers.enable({ apis: ['setTimeout', 'setInterval', 'Date'] })
  const client = new FakeClient()
  const queries = new QueryClient({ defaultOptions: { queries: { retry: false } } })
  queries.mount()
  t.after(() => queries.clear())
  const todos = /** @type {import('../../src/index.js').Collection} */ (client.collection('todos'))
  let n = 0
  const change = () => client.feed({ todos: { a: { n: ++n } } })
  /** Time goes by, ms for ms. @param {number} ms */
  const pass = async (ms) => {
    for (let i = 0; i < ms; i++) {
      t.mock.timers.tick(1)
      await new Promise((resolve) => setImmediate(resolve))
    }
  }
  /**
   * A query that somebody looks at. Its answer is how many changes there were when it was asked.
   * @param {readonly unknown[]} queryKey
   * @param {number} [ms] how long the answer takes
   */
  const look = async (queryKey, ms = 100) => {
    const seen = { fetches: 0, aborted: 0, answers: /** @type {number[]} */ ([]) }
    const observer = new QueryObserver(queries, {
      queryKey,
      queryFn: ({ signal }) => {
        seen.fetches++
        signal.onabort = () => seen.aborted++
        const then = n
        return new Promise((resolve) => setTimeout(() => resolve(then), ms))
      },
    })
    observer.subscribe(({ data }) => {
      if (data !== undefined && data !== seen.answers.at(-1)) seen.answers.push(/** @type {number} */ (data))
    })
    await pass(ms + 1)
    assert.deepEqual(seen.answers, [n])
    return seen
  }
  return { client, queries, todos, change, pass, look, count: () => n }
}

test('a page is up to date while changes stream in, and no fetch is thrown away', async (t) => {
  const { queries, todos, change, pass, look, count } = setup(t)
  const seen = await look(['stats'])
  t.after(invalidateOnChange(queries, todos, { queryKey: ['stats'] }))
  let inTime = 0
  for (let i = 0; i < 40; i++) {
    change()
    await pass(50)
    inTime = seen.answers.length
  }
  await pass(500)
  t.diagnostic(`${seen.fetches} fetches, ${seen.aborted} aborted, ${inTime} answers while it streamed`)
  assert.ok(seen.fetches <= 10, `${seen.fetches} fetches`)
  assert.ok(inTime >= 7, `${inTime} answers`)
  assert.equal(seen.aborted, 0)
  assert.equal(seen.answers.at(-1), count())
})

test('a change that comes during a slow fetch is not forgotten', async (t) => {
  const { queries, todos, change, pass, look, count } = setup(t)
  const slow = await look(['slow'], 1000)
  const fast = await look(['fast'], 10)
  t.after(invalidateOnChange(queries, todos, { queryKey: [] }))
  change()
  await pass(300)
  assert.deepEqual([slow.fetches, fast.fetches], [2, 2])
  // The slow one is under way, and its answer will not know of this.
  change()
  await pass(300)
  assert.deepEqual([slow.fetches, fast.fetches], [2, 3])
  await pass(2000)
  assert.equal(slow.answers.at(-1), count())
  assert.deepEqual([slow.fetches, fast.fetches, slow.aborted], [3, 3, 0])
  await pass(2000)
  assert.equal(slow.fetches, 3)
})

test('only what a change concerns is fetched again', async (t) => {
  const { client, queries, pass, look } = setup(t)
  const a = await look(['todo', 'a'])
  const b = await look(['todo', 'b'])
  const lists = await look(['lists'])
  const undo = invalidateOnChange(queries, [client.collection('todos'), client.collection('lists')], {
    queryKeys: ({ changes }, { name }) => (name === 'lists' ? [['lists']] : changes.map(({ key }) => ['todo', key])),
    throttle: 20,
  })
  client.feed({ todos: { a: { n: 1 } } })
  await pass(150)
  assert.deepEqual([a.fetches, b.fetches, lists.fetches], [2, 1, 1])
  client.feed({ todos: { b: { n: 1 } }, lists: { home: { n: 1 } } })
  await pass(150)
  assert.deepEqual([a.fetches, b.fetches, lists.fetches], [2, 2, 2])
  client.feed({ lists: { home: { n: 2 } } })
  undo()
  client.feed({ todos: { a: { n: 3 } } })
  await pass(500)
  assert.deepEqual([a.fetches, b.fetches, lists.fetches], [2, 2, 2])
})

test('that the rows are whole is no reason to fetch', async (t) => {
  const { client, queries, todos, pass, look } = setup(t)
  const seen = await look(['stats'])
  t.after(invalidateOnChange(queries, todos, { queryKey: ['stats'] }))
  client.live('todos')
  await pass(500)
  assert.equal(seen.fetches, 1)
})

test('a query whose key begins like that of the rows still gets what it fetches', async (t) => {
  const { client, queries, todos } = setup(t)
  client.feed({ todos: { a: { n: 1 } } })
  client.live('todos')
  t.after(bindQueryData(queries, todos, ['todos']))
  for (const answer of [{ id: 7 }, null, 'text', [1]]) {
    const queryKey = ['todos', 'detail', JSON.stringify(answer)]
    for (let i = 0; i < 2; i++)
      assert.deepEqual(await queries.fetchQuery({ queryKey, queryFn: () => answer, staleTime: 0 }), answer)
  }
})

test('a query shows the rows once they are whole, and then each change', async (t) => {
  const { client, queries, todos, pass } = setup(t)
  const undo = bindQueryData(queries, todos, ['todos'])
  const observer = new QueryObserver(queries, { queryKey: ['todos'] })
  t.after(observer.subscribe(() => {}))
  client.feed({ todos: { a: { n: 1 } } })
  await pass(10)
  assert.equal(observer.getCurrentResult().status, 'pending')
  client.feed({ todos: { b: { n: 2 } } })
  client.live('todos')
  await pass(10)
  const { status, fetchStatus, data } = observer.getCurrentResult()
  assert.deepEqual([status, fetchStatus, data], ['success', 'idle', [{ n: 1 }, { n: 2 }]])
  client.feed({ todos: { a: null, c: { n: 3 } } })
  await pass(1)
  assert.deepEqual(observer.getCurrentResult().data, [{ n: 2 }, { n: 3 }])
  undo()
  client.feed({ todos: { d: { n: 4 } } })
  await pass(1)
  assert.deepEqual(queries.getQueryData(['todos']), [{ n: 2 }, { n: 3 }])
})

test('a row that has not changed is the same object, wherever it moves', async (t) => {
  const { client, queries, todos } = setup(t)
  client.feed({ todos: { a: { n: 1 }, b: { n: 2 }, c: { n: 3 } } })
  client.live('todos')
  t.after(bindQueryData(queries, todos, ['todos']))
  const even = (/** @type {any[]} */ rows) => rows.filter(({ n }) => n % 2 === 0)
  t.after(bindQueryData(queries, todos, ['even'], { select: even }))
  const [, b, c] = /** @type {any[]} */ (queries.getQueryData(['todos']))
  const before = queries.getQueryData(['even'])
  client.feed({ todos: { a: null } })
  const rows = /** @type {any[]} */ (queries.getQueryData(['todos']))
  assert.equal(rows.length, 2)
  assert.ok(rows[0] === b && rows[1] === c)
  assert.deepEqual(before, [{ n: 2 }])
  assert.equal(queries.getQueryData(['even']), before)
  client.reset('todos', { b: { n: 2 }, c: { n: 5 } })
  const again = /** @type {any[]} */ (queries.getQueryData(['todos']))
  assert.ok(again[0] === b && again[1] !== c)
})

test('a query that was thrown away is filled again when somebody looks', async (t) => {
  const { client, queries, todos, pass } = setup(t)
  client.feed({ todos: { a: { n: 1 } } })
  client.live('todos')
  t.after(bindQueryData(queries, todos, ['todos']))
  queries.removeQueries({ queryKey: ['todos'] })
  const observer = new QueryObserver(queries, { queryKey: ['todos'] })
  t.after(observer.subscribe(() => {}))
  await pass(5)
  assert.deepEqual(observer.getCurrentResult().data, [{ n: 1 }])
  await queries.invalidateQueries({ queryKey: ['todos'] })
  await pass(5)
  assert.deepEqual(observer.getCurrentResult().data, [{ n: 1 }])
})
