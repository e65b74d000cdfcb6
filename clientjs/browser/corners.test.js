// Tabs, stores and pages in their odd moments: each promise at the point where it is easiest broken.
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { launch, startServer } from './program.js'

/** @typedef {import('playwright-core').Page} Page */
/** @typedef {import('playwright-core').BrowserContext} Context */

/** @type {import('playwright-core').Browser} */
let browser
before(async () => {
  browser = await launch()
})
after(() => browser?.close())

/**
 * A browser of somebody's own, and a server.
 * @param {import('node:test').TestContext} t
 */
async function setup(t) {
  const server = await startServer()
  const context = await browser.newContext()
  t.after(async () => {
    await context.close()
    await server.stop()
  })
  const counts = { open: 0, sockets: 0, feeds: 0 }
  context.on('page', (page) =>
    page.on('websocket', (socket) => {
      counts.open++
      counts.sockets++
      socket.on('close', () => counts.open--)
    }),
  )
  context.on('request', (request) => {
    if (/feed\?/.test(request.url())) counts.feeds++
  })

  /** A page without a client. */
  async function blank() {
    const page = await context.newPage()
    page.on('pageerror', (error) => t.diagnostic(`page: ${error.stack}`))
    await page.goto(`${server.url}/healthz`)
    return page
  }
  /** A tab that follows a collection. @param {object} [options] @param {string[]} [names] */
  async function tab(options = {}, names = ['todos']) {
    const page = await blank()
    await follow(page, options, names)
    return page
  }
  /** @param {string} collection @param {string} key @param {object | null} [value] null: it goes */
  const put = (collection, key, value = { key }) =>
    fetch(`${server.url}/v1/acme/rows/${collection}?key=${key}`, {
      method: value ? 'PUT' : 'DELETE',
      ...(value && { body: JSON.stringify(value) }),
    })
  /** @param {string} collection @param {number} count @param {number} [size] */
  async function fill(collection, count, size = 1) {
    for (let i = 0; i < count; i += 500) {
      const changes = Array.from({ length: Math.min(500, count - i) }, (_, j) => ({
        id: `${i + j}`,
        collection,
        op: 'put',
        key: `${i + j}`,
        value: { n: i + j, text: 'x'.repeat(size) },
      }))
      const { ok } = await fetch(`${server.url}/v1/acme/changes`, {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body: JSON.stringify({ client: `fill ${collection}`, changes }),
      })
      assert.ok(ok)
    }
  }
  return { server, context, counts, blank, tab, put, fill }
}

/** @param {Page} page @param {object} [options] @param {string[]} [names] */
const follow = (page, options = {}, names = ['todos']) =>
  page.evaluate(
    async ([options, names]) => {
      const { createClient } = await import(`${location.origin}/client.js`)
      /** @type {any} */
      const w = window
      w.rejections = []
      addEventListener('unhandledrejection', ({ reason }) => w.rejections.push(`${reason}`))
      w.errors = []
      w.statuses = []
      w.undo = {}
      w.all = {}
      w.client = createClient({ url: '/', tenant: 'acme', ...options })
      w.client.onError((/** @type {any} */ error) => w.errors.push(`${error.code}: ${error.message}`))
      w.client.onStatus((/** @type {any} */ s) => w.statuses.push(`${s.state} ${s.reason}`.trim()))
      for (const name of names) {
        w.all[name] = w.client.collection(name)
        w.undo[name] = w.all[name].start()
      }
    },
    /** @type {const} */ ([options, names]),
  )

/** @param {Page} page @param {number} [size] @param {string} [name] @param {number} [timeout] */
const live = (page, size = -1, name = 'todos', timeout = 10_000) =>
  page.waitForFunction(
    ([size, name]) => {
      const { client, all } = /** @type {any} */ (window)
      return client?.status.state === 'live' && all[name]?.ready && (size < 0 || all[name].rows.size === size)
    },
    /** @type {const} */ ([size, name]),
    { polling: 10, timeout },
  )

/** @param {Page} page @param {string} [transport] */
const on = (page, transport = 'websocket') =>
  page.waitForFunction((t) => /** @type {any} */ (window).client.status.transport === t, transport)

/** @param {Page} page @param {string} name */
const peek = (page, name) => page.evaluate((name) => /** @type {any} */ (window)[name], name)

/** @param {number} ms */
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms))

// One connection for all tabs.

test('a leader that was frozen comes back without a connection of its own', async (t) => {
  const { counts, tab } = await setup(t)
  const first = await tab()
  await live(first)
  await on(first)
  const second = await tab()
  await live(second)
  await first.evaluate(() => document.dispatchEvent(new Event('freeze')))
  await pause(1000)
  await live(second)
  await first.evaluate(() => document.dispatchEvent(new Event('resume')))
  await live(first)
  await pause(1500)
  assert.equal(counts.open, 1)
})

test('what a follower wrote without a network lands at once when it is back, by poll too', async (t) => {
  const { server, context, tab } = await setup(t)
  const pages = [await tab({ transport: 'poll' }), await tab({ transport: 'poll' })]
  for (const page of pages) await live(page)
  await context.setOffline(true)
  for (const page of pages) {
    await page.waitForFunction(() => /** @type {any} */ (window).client.status.state === 'offline')
  }
  await pages[1].evaluate(() => {
    const { all } = /** @type {any} */ (window)
    all.todos.put('mine', { n: 1 }).catch(() => {})
  })
  await pause(200)
  await context.setOffline(false)
  for (const page of pages) await live(page)
  const begun = Date.now()
  for (;;) {
    const { rows } = await (await fetch(`${server.url}/v1/acme/rows/todos`)).json()
    if (rows.length || Date.now() - begun > 4000) break
    await pause(50)
  }
  const took = Date.now() - begun
  t.diagnostic(`${took} ms`)
  assert.ok(took < 3000, `${took} ms after live`)
})

test('what is undone after its client was closed, and closing twice, are no errors in any tab', async (t) => {
  const { tab } = await setup(t)
  const pages = [await tab(), await tab(), await tab()]
  for (const page of pages) await live(page)
  const twice = []
  for (const page of pages.toReversed()) {
    const result = await page.evaluate(async () => {
      const { client, undo } = /** @type {any} */ (window)
      const closed = client.close()
      undo.todos()
      await closed
      await new Promise((resolve) => setTimeout(resolve, 100))
      return client.close().then(
        () => 'fine',
        (/** @type {unknown} */ error) => `${error}`,
      )
    })
    twice.push(result, ...(await peek(page, 'rejections')))
  }
  assert.deepEqual(twice, ['fine', 'fine', 'fine'])
})

test('a leader that closes its client does not say to the others that theirs is closed', async (t) => {
  const { tab } = await setup(t)
  const [first, second] = [await tab(), await tab()]
  await live(first)
  await live(second)
  await first.evaluate(() => /** @type {any} */ (window).client.close())
  await pause(500)
  await live(second)
  const statuses = await peek(second, 'statuses')
  assert.ok(!statuses.includes('offline closed'), statuses.join(', '))
})

test('a tab that follows too much for one feed of all does not keep another from its rows', async (t) => {
  const { tab } = await setup(t)
  const many = (/** @type {string} */ prefix, /** @type {number} */ n) =>
    Array.from({ length: n }, (_, i) => prefix + i)
  const first = await tab({}, ['todos', ...many('a', 150)])
  await live(first)
  const second = await tab({}, many('b', 150))
  await pause(1000)
  const third = await tab()
  await live(third, -1, 'todos', 3000)
  // And itself it goes on as well, or says why not.
  const { state } = await second.evaluate(() => ({ .../** @type {any} */ (window).client.status }))
  const errors = await peek(second, 'errors')
  assert.ok(state === 'live' || errors.length, state)
})

test('a collection that the leader left long ago is not live elsewhere before it is', async (t) => {
  const { tab, put } = await setup(t)
  await put('notes', 'old')
  const first = await tab({}, ['todos', 'notes'])
  await live(first, 1, 'notes')
  await on(first)
  await first.evaluate(() => /** @type {any} */ (window).undo.notes())
  const second = await tab()
  await live(second)
  await put('notes', 'old', null)
  await put('notes', 'new')
  await pause(100)
  await second.evaluate(() => {
    /** @type {any} */
    const w = window
    w.notes = w.all.notes = w.client.collection('notes')
    w.lies = []
    const look = () => {
      if (w.notes.ready && w.client.status.state === 'live' && !w.notes.rows.has('new'))
        w.lies.push([...w.notes.rows.keys()])
    }
    w.client.onStatus(look)
    w.notes.subscribe(look)
  })
  await live(second, 1, 'notes')
  await second.waitForFunction(() => /** @type {any} */ (window).notes.rows.has('new'))
  assert.deepEqual(await peek(second, 'lies'), [])
})

test('a tab that crashed is not followed for any more', async (t) => {
  const { context, tab } = await setup(t)
  const first = await tab({ transport: 'poll' })
  await live(first)
  const second = await tab({ transport: 'poll' }, ['notes'])
  await live(second, 0, 'notes')
  const session = await context.newCDPSession(second)
  session.send('Page.crash').catch(() => {})
  await pause(1000)
  const asked = first.waitForRequest(/feed\?/)
  await first.evaluate(() => /** @type {any} */ (window).client.setTransport('sse'))
  assert.doesNotMatch((await asked).url(), /notes/)
})

test('a follower that is closed says so', async (t) => {
  const { tab } = await setup(t)
  const pages = [await tab(), await tab()]
  for (const page of pages) await live(page)
  const reasons = []
  for (const page of pages.toReversed()) {
    reasons.push(
      await page.evaluate(async () => {
        /** @type {any} */
        const { client } = window
        await client.close()
        return `${client.status.state} ${client.status.reason}`
      }),
    )
  }
  assert.deepEqual(reasons, ['offline closed', 'offline closed'])
})

test('a follower that is busy does not take the connection from a leader that is not', async (t) => {
  const { counts, tab } = await setup(t)
  const pages = [await tab(), await tab()]
  for (const page of pages) await live(page)
  await on(pages[0])
  await pause(500)
  counts.feeds = counts.sockets = 0
  await pages[1].evaluate(() => {
    setInterval(() => {
      const end = performance.now() + 450
      while (performance.now() < end);
    }, 900)
  })
  await pause(8000)
  assert.deepEqual([counts.feeds, counts.sockets], [0, 0], 'requests for the feed, and connections, in 8 s')
})

test('a leader that hung for long does not talk the others out of being live when it wakes', async (t) => {
  const { tab } = await setup(t)
  const pages = [await tab({ heartbeat: 3 }), await tab({ heartbeat: 3 }), await tab({ heartbeat: 3 })]
  for (const page of pages) await live(page)
  await on(pages[0])
  await pause(500)
  pages[0]
    .evaluate(() => {
      const end = Date.now() + 12_000
      while (Date.now() < end);
    })
    .catch(() => {})
  await pages[1].bringToFront()
  await pause(2000)
  for (const page of pages.slice(1)) await live(page)
  for (const page of pages.slice(1)) await on(page)
  for (const page of pages.slice(1)) {
    await page.evaluate(() => {
      const { statuses } = /** @type {any} */ (window)
      statuses.length = 0
    })
  }
  await pause(14_000)
  for (const page of pages) await live(page)
  const statuses = (await Promise.all(pages.slice(1).map((page) => peek(page, 'statuses')))).flat()
  assert.deepEqual(statuses, [])
})

test('a page that follows one collection after the other, 300 in all, stays live', async (t) => {
  const { tab } = await setup(t)
  const page = await tab({ tabs: false })
  await live(page)
  await on(page)
  const before = (await peek(page, 'statuses')).length
  const end = await page.evaluate(async () => {
    /** @type {any} */
    const { client } = window
    for (let i = 0; i < 300; i++) {
      const one = client.collection(`c${i}`)
      const undo = one.start()
      for (let n = 0; n < 200 && !one.ready; n++) await new Promise((resolve) => setTimeout(resolve, 5))
      if (!one.ready) return `${i} ${client.status.state} ${client.status.reason}`
      undo()
    }
    return client.status.state
  })
  assert.equal(end, 'live')
  const statuses = (await peek(page, 'statuses')).slice(before)
  assert.ok(
    !statuses.some((/** @type {string} */ s) => /offline|connecting/.test(s)),
    [...new Set(statuses)].join(', '),
  )
})

test('two clients in one tab share a connection, and either goes on without the other', async (t) => {
  const { counts, tab, put } = await setup(t)
  const page = await tab()
  await live(page)
  await on(page)
  await page.evaluate(async () => {
    const { createClient } = await import(`${location.origin}/client.js`)
    /** @type {any} */
    const w = window
    w.other = createClient({ url: '/', tenant: 'acme' })
    w.todos = w.other.collection('todos')
    w.todos.start()
  })
  await put('todos', 'a')
  await page.waitForFunction(() => /** @type {any} */ (window).todos.rows.size === 1)
  assert.equal(counts.open, 1)
  await page.evaluate(() => /** @type {any} */ (window).client.close())
  await put('todos', 'b')
  await page.waitForFunction(() => {
    const { other, todos } = /** @type {any} */ (window)
    return todos.rows.size === 2 && other.status.state === 'live'
  })
})

test('a follower may follow what nobody else does, leave it, and follow it again', async (t) => {
  const { tab, put } = await setup(t)
  await put('notes', 'a')
  const first = await tab()
  await live(first)
  await on(first)
  const second = await tab({}, ['notes'])
  await live(second, 1, 'notes')
  for (let i = 0; i < 5; i++) {
    await second.evaluate(() => /** @type {any} */ (window).undo.notes())
    if (i % 2) await pause(100)
    await put('notes', `n${i}`)
    await second.evaluate(() => {
      const { undo, all } = /** @type {any} */ (window)
      undo.notes = all.notes.start()
    })
    await live(second, i + 2, 'notes')
  }
})

test('tabs that come and go while 20,000 rows are read end up with all of them', async (t) => {
  const { tab, fill, context } = await setup(t)
  await fill('todos', 20_000, 100)
  const slow = async (/** @type {import('playwright-core').Route} */ route) => {
    await pause(150)
    await route.continue().catch(() => {})
  }
  await context.route(/feed\?/, slow)
  const first = await tab({ transport: 'poll' })
  const second = await tab({ transport: 'poll' })
  const third = await tab({ transport: 'poll' })
  await first.waitForFunction(() => /** @type {any} */ (window).all.todos.rows.size > 0)
  await first.close()
  const fourth = await tab({ transport: 'poll' })
  for (const page of [second, third, fourth]) await live(page, 20_000)
})

// Rows and writes on disk.

test('a write of a follower that is closed in that moment is sent by those that stay', async (t) => {
  const { server, blank, tab } = await setup(t)
  const first = await tab({ persist: true })
  await live(first)
  const second = await blank()
  // The request does not get out before the page is gone.
  await second.evaluate(() => {
    const { fetch } = window
    window.fetch = (url, init) => (/changes/.test(`${url}`) ? new Promise(() => {}) : fetch(url, init))
  })
  await follow(second, { persist: true })
  await live(second)
  await second.evaluate(() => {
    const { all } = /** @type {any} */ (window)
    all.todos.put('mine', { n: 1 }).catch(() => {})
  })
  await pause(300)
  await second.close()
  const begun = Date.now()
  let count = 0
  while (!count && Date.now() - begun < 4000) {
    await pause(50)
    count = (await (await fetch(`${server.url}/v1/acme/rows/todos`)).json()).rows.length
  }
  assert.equal(count, 1)
})

test('writes and rows are kept also if there was no credential in the first moment', async (t) => {
  const { blank } = await setup(t)
  const page = await blank()
  const kept = await page.evaluate(async () => {
    const { createClient } = await import(`${location.origin}/client.js`)
    let asked = 0
    const client = createClient({
      url: '/',
      tenant: 'acme',
      transport: 'poll',
      persist: true,
      getToken: async () => {
        if (!asked++) throw new Error('no network')
        return undefined
      },
    })
    client.onError(() => {})
    const todos = client.collection('todos')
    todos.start()
    for (let n = 0; n < 500 && client.status.state !== 'live'; n++) await new Promise((r) => setTimeout(r, 10))
    await todos.put('a', { n: 1 })
    await new Promise((resolve) => setTimeout(resolve, 600))
    const found = (await indexedDB.databases()).filter(({ name }) => name?.startsWith('tidemark'))
    return [client.status.state, found.length]
  })
  assert.deepEqual(kept, ['live', 1])
})

test('another version of the database is not kept waiting', async (t) => {
  const { tab } = await setup(t)
  const first = await tab({ persist: true })
  await live(first)
  const upgrade = await first.evaluate(async () => {
    const { name } = (await indexedDB.databases()).find(({ name }) => name?.startsWith('tidemark')) ?? {}
    const request = indexedDB.open(`${name}`, 2)
    return new Promise((resolve) => {
      request.onblocked = () => resolve('blocked')
      request.onsuccess = () => resolve('fine')
      request.onerror = () => resolve('error')
    })
  })
  assert.equal(upgrade, 'fine')
})

test('a database that does not open keeps nobody from the server', async (t) => {
  const { blank } = await setup(t)
  const page = await blank()
  await page.evaluate(() => {
    indexedDB.open = () => /** @type {any} */ ({})
  })
  await follow(page, { persist: true })
  await live(page, 0, 'todos', 6000)
})

test('rows that were kept in the middle of a first reading are not said to be ready', async (t) => {
  const { blank, context, fill } = await setup(t)
  await fill('todos', 3000)
  const page = await blank()
  let feeds = 0
  await context.route(/feed\?/, (route) => (feeds++ ? undefined : route.continue()))
  await follow(page, { persist: true, transport: 'poll' })
  await page.waitForFunction(() => /** @type {any} */ (window).all.todos.rows.size > 0)
  await pause(600)
  await page.reload()
  await follow(page, { persist: true, transport: 'poll' })
  await pause(600)
  const [size, ready] = await page.evaluate(() => {
    const { todos } = /** @type {any} */ (window).all
    return [todos.rows.size, todos.ready]
  })
  assert.ok(size < 3000)
  assert.equal(ready, false, `${size} of 3000 rows`)
})

test('a client that is closed at once leaves nothing behind', async (t) => {
  const { blank } = await setup(t)
  const page = await blank()
  const left = await page.evaluate(async () => {
    const { createClient } = await import(`${location.origin}/client.js`)
    const client = createClient({ url: '/', tenant: 'acme', persist: true })
    client.collection('todos').start()
    await client.close()
    await new Promise((resolve) => setTimeout(resolve, 500))
    const { held = [], pending = [] } = await navigator.locks.query()
    return [...held, ...pending].map(({ name }) => `${name}`.replace(/\d{20,}/, ''))
  })
  assert.deepEqual(left, [])
})

for (const persist of [true, false])
  test(`a tab that takes the lead keeps what it heard before, though the leader ${persist ? 'went before it wrote' : 'kept nothing'}`, async (t) => {
    const { tab, put } = await setup(t)
    await put('todos', 'a', { n: 1 })
    const zero = await tab({ persist: true })
    await live(zero, 1)
    await pause(600)
    await zero.close()
    const first = await tab({ persist })
    await live(first, 1)
    await on(first)
    const second = await tab({ persist: true })
    await live(second, 1)
    await pause(300)
    await Promise.all([put('todos', 'b', { n: 1 }), put('todos', 'a', { n: 2 })])
    await live(second, 2)
    await first.close()
    await put('todos', 'c', { n: 1 })
    await live(second, 3)
    await pause(800)
    await second.reload()
    await follow(second, { persist: true })
    await live(second, 3)
    const rows = await second.evaluate(() => Object.fromEntries(/** @type {any} */ (window).all.todos.rows))
    assert.deepEqual(rows, { a: { n: 2 }, b: { n: 1 }, c: { n: 1 } })
  })

/** Takes a page into the back-forward cache and back, as Chromium does. @param {Page} page */
const comeBack = (page) =>
  page.evaluate(async () => {
    const tell = (/** @type {EventTarget} */ target, /** @type {string} */ type) =>
      target.dispatchEvent(Object.assign(new Event(type), { persisted: true }))
    tell(window, 'pagehide')
    tell(document, 'freeze')
    await new Promise((resolve) => setTimeout(resolve, 200))
    tell(document, 'resume')
    tell(window, 'pageshow')
  })

test('a page that was in the back-forward cache is followed for no longer than it is there', async (t) => {
  const { tab } = await setup(t)
  const first = await tab()
  await live(first)
  await on(first)
  const second = await tab({}, ['notes'])
  await live(second, 0, 'notes')
  await comeBack(second)
  await live(second, 0, 'notes')
  await pause(300)
  const locks = (/** @type {Page} */ page) =>
    page.evaluate(async () => {
      const { held = [], pending = [] } = await navigator.locks.query()
      return [held.length, pending.length]
    })
  await second.evaluate(() => /** @type {any} */ (window).client.close())
  await pause(300)
  assert.deepEqual(await locks(first), [2, 0]) // it is there, and it leads
  await comeBack(first)
  await live(first)
  await first.evaluate(() => /** @type {any} */ (window).client.close())
  await pause(300)
  assert.deepEqual(await locks(first), [0, 0])
})

test('a client of a signal that is over already says nothing', async (t) => {
  const { blank } = await setup(t)
  const page = await blank()
  const errors = await page.evaluate(async () => {
    const { createClient } = await import(`${location.origin}/client.js`)
    /** @type {string[]} */
    const errors = []
    console.error = (/** @type {any[]} */ ...all) => errors.push(all.join())
    addEventListener('unhandledrejection', ({ reason }) => errors.push(`${reason}`))
    const client = createClient({ url: '/', tenant: 'acme', persist: true, signal: AbortSignal.abort() })
    client.collection('todos').start()
    await new Promise((resolve) => setTimeout(resolve, 500))
    return errors
  })
  assert.deepEqual(errors, [])
})

test('a page that is denied the locks connects by itself', async (t) => {
  const { blank } = await setup(t)
  const page = await blank()
  // As in a frame without an origin, or where the user blocks all cookies.
  await page.evaluate(() => {
    navigator.locks.request = () => Promise.reject(new DOMException('denied', 'SecurityError'))
  })
  await follow(page)
  await live(page, 0, 'todos', 4000)
})
