// What pages do to a client, and it to them: tabs, reloads, sleep, the back-forward cache, offline.
import assert from 'node:assert/strict'
import { createServer } from 'node:http'
import { after, before, test } from 'node:test'
import { launch, startServer, truth } from './program.js'

/** @typedef {import('playwright-core').Page} Page */

/**
 * What takes a fraction of a second, which each test prints, may take so many ms on a machine that is busy with other
 * things; what is broken takes a heartbeat, or for ever.
 */
const LATE = 5000

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

  /** A tab that follows a collection. @param {object} [options] */
  async function tab(options = {}) {
    const page = await context.newPage()
    page.on('pageerror', (error) => t.diagnostic(`page: ${error.stack}`))
    await page.goto(`${server.url}/healthz`)
    await follow(page, options)
    return page
  }
  return { server, context, tab }
}

/** @param {Page} page @param {object} [options] */
const follow = (page, options = {}) =>
  page.evaluate(async (options) => {
    const { url = '/' } = /** @type {any} */ (options)
    const { createClient } = await import(`${url.replace(/\/$/, '')}/client.js`)
    const begun = performance.now()
    const client = createClient({ url: '/', tenant: 'acme', ...options })
    const todos = client.collection('todos')
    const seen = {
      ready: 0,
      empty: 0,
      doubled: 0,
      errors: /** @type {string[]} */ ([]),
      statuses: /** @type {any[]} */ ([]),
    }
    /** @type {Map<string, number>} */
    const seqs = new Map()
    client.onError((/** @type {any} */ error) => seen.errors.push(`${error.code}: ${error.message}`))
    client.onStatus((/** @type {any} */ s) =>
      seen.statuses.push([Math.round(performance.now() - begun), s.state, s.transport, s.reason]),
    )
    todos.subscribe((/** @type {any} */ { changes }) => {
      seen.ready ||= Math.round(performance.now() - begun)
      if (seqs.size && !todos.rows.size) seen.empty++
      for (const { key, seq } of changes) {
        if (seq && seq <= (seqs.get(key) ?? 0)) seen.doubled++
        seqs.set(key, seq)
      }
    })
    Object.assign(window, { client, todos, seen })
  }, options)

/** @param {Page} page @param {number} [size] of the rows that it should have */
const live = (page, size = -1) =>
  page.waitForFunction(
    (size) => {
      const { client, todos } = /** @type {any} */ (window)
      return client?.status.state === 'live' && todos.ready && (size < 0 || todos.rows.size === size)
    },
    size,
    { polling: 10 },
  )

/** @param {Page} page @param {string} title */
const insert = (page, title) => page.evaluate((title) => /** @type {any} */ (window).todos.insert({ title }), title)

/** @param {Page} page */
const rows = (page) => page.evaluate(() => Object.fromEntries(/** @type {any} */ (window).todos.rows))

/** @param {Page} page @returns {Promise<{ready: number, empty: number, doubled: number, errors: string[], statuses: any[]}>} */
const seen = (page) => page.evaluate(() => /** @type {any} */ (window).seen)

/** Which of the tabs has the connection. @param {Page[]} pages */
async function leader(pages) {
  for (const page of pages) {
    const counts = await page.evaluate(
      () => performance.getEntriesByType('resource').filter((e) => /feed\?/.test(e.name)).length,
    )
    if (counts) return page
  }
  throw new Error('nobody leads')
}

test('eight tabs have one connection, all see what one writes, and a new one has its rows without the server', async (t) => {
  const { server, context, tab } = await setup(t)
  let sockets = 0
  let feeds = 0
  context.on('page', (page) => page.on('websocket', () => sockets++))
  context.on('request', (request) => {
    if (/feed\?/.test(request.url())) feeds++
  })
  const pages = [await tab()]
  await live(pages[0])
  await insert(pages[0], 'first')
  while (pages.length < 8) pages.push(await tab())
  for (const page of pages) await live(page, 1)
  await pages[0].waitForFunction(() => /** @type {any} */ (window).client.status.transport === 'websocket')
  await insert(pages[5], 'second')
  for (const page of pages) {
    await live(page, 2)
    assert.deepEqual(await rows(page), await truth(server))
    const { empty, doubled, errors } = await seen(page)
    assert.deepEqual({ empty, doubled, errors }, { empty: 0, doubled: 0, errors: [] })
  }
  assert.equal(sockets, 1)
  assert.ok(feeds <= 3, `${feeds} requests for the feed`)
})

for (const end of /** @type {const} */ (['closes', 'crashes', 'freezes', 'hangs'])) {
  test(`a leader that ${end} is replaced at once, and nothing is lost`, async (t) => {
    const { server, context, tab } = await setup(t)
    const first = await tab()
    await live(first)
    const others = [await tab(), await tab()]
    for (const page of others) await live(page)
    await others[1].bringToFront()
    await insert(others[0], 'before')
    for (const page of others) await live(page, 1)
    assert.equal(await leader([...others, first]), first)
    const page = (/** @type {string} */ event) =>
      first.evaluate((event) => document.dispatchEvent(new Event(event)), event)
    const begun = Date.now()
    if (end === 'closes') await first.close()
    else if (end === 'crashes') (await context.newCDPSession(first)).send('Page.crash').catch(() => {})
    else if (end === 'freezes')
      await page('freeze') // Chromium's own command tells the page nothing
    else {
      // Its scripts do nothing any more, while its connection is open and its lock is held.
      first
        .evaluate(() => {
          const end = Date.now() + 8000
          while (Date.now() < end);
        })
        .catch(() => {})
    }
    await new Promise((resolve) => setTimeout(resolve, 100))
    const put = fetch(`${server.url}/v1/acme/rows/todos?key=meanwhile`, { method: 'PUT', body: '{"title":"x"}' })
    for (const page of others) await live(page, 2)
    const took = Date.now() - begun
    await put
    t.diagnostic(`${took} ms`)
    assert.ok(took < LATE, `${took} ms`)
    await insert(others[0], 'after')
    for (const page of others) {
      await live(page, 3)
      assert.deepEqual(await rows(page), await truth(server))
      const { empty, doubled, errors } = await seen(page)
      assert.deepEqual({ empty, doubled, errors }, { empty: 0, doubled: 0, errors: [] })
    }
    if (end === 'freezes') await page('resume')
    if (end === 'freezes' || end === 'hangs') {
      // It comes back as one of the others.
      await first.bringToFront()
      await live(first, 3)
      assert.deepEqual(await rows(first), await truth(server))
    }
  })
}

test('tabs of two users, and tabs that want none, share nothing', async (t) => {
  const { tab } = await setup(t)
  const pages = [await tab({ user: 'ann' }), await tab({ user: 'bob' }), await tab({ tabs: false })]
  for (const page of pages) {
    await live(page)
    assert.equal(await leader([page]), page)
  }
})

test('a reload with persistence shows the rows before the server answers, and asks only for what is new', async (t) => {
  const { server, context, tab } = await setup(t)
  const page = await tab({ persist: true })
  await live(page)
  for (let i = 0; i < 3; i++) await insert(page, `${i}`)
  await page.waitForTimeout(500) // written together, a moment later
  await page.reload()
  await fetch(`${server.url}/v1/acme/rows/todos?key=meanwhile`, { method: 'PUT', body: '{"title":"x"}' })
  await context.route(/feed\?/, async (route) => {
    await new Promise((resolve) => setTimeout(resolve, 700))
    await route.continue()
  })
  const asked = page.waitForRequest(/feed\?/)
  await follow(page, { persist: true })
  await page.waitForFunction(() => /** @type {any} */ (window).todos.rows.size === 3, undefined, { polling: 10 })
  const { state } = await page.evaluate(() => ({ .../** @type {any} */ (window).client.status }))
  assert.notEqual(state, 'live', 'what may be old is not said to be current')
  assert.match((await asked).url(), /todos%40\w+-\d+/)
  await live(page, 4)
  assert.deepEqual(await rows(page), await truth(server))
  // Without it there is nothing to show before the server answers.
  await page.reload()
  await follow(page)
  assert.deepEqual(await rows(page), {})
  await live(page, 4)
})

test('what is removed while the page is away is gone when it comes back, and so is a log that was lost', async (t) => {
  const { server, tab } = await setup(t)
  const page = await tab({ persist: true })
  await live(page)
  const gone = await insert(page, 'gone')
  await insert(page, 'stays')
  await page.waitForTimeout(500)
  await page.goto('about:blank')
  await fetch(`${server.url}/v1/acme/rows/todos?key=${/** @type {any} */ (gone).key}`, { method: 'DELETE' })
  await page.goto(`${server.url}/healthz`)
  await follow(page, { persist: true })
  await live(page, 1)
  assert.deepEqual(await rows(page), await truth(server))
})

test('an hour of edits without a network, and a reload in the middle, land once, in order, when it is back', async (t) => {
  const { server, context, tab } = await setup(t)
  const page = await tab({ persist: true })
  await live(page)
  const { key } = /** @type {any} */ (await insert(page, 'counter'))
  await context.setOffline(true)
  await page.waitForFunction(() => /** @type {any} */ (window).client.status.state === 'offline')
  const edit = (/** @type {number} */ from) =>
    page.evaluate(
      ([key, from]) => {
        const { todos } = /** @type {any} */ (window)
        for (let i = from; i < from + 30; i++) {
          todos.modify(key, { n: i, [`edit${i}`]: true }).catch(() => {})
          todos.insert({ title: `offline ${i}` }).catch(() => {})
        }
      },
      /** @type {const} */ ([key, from]),
    )
  await edit(0)
  await page.waitForFunction(() => /** @type {any} */ (window).todos.rows.size === 31)
  await page.waitForTimeout(500)
  // The page is loaded again, from a cache as it were: the server is out of reach for the feed and for writes only.
  await context.setOffline(false)
  await context.route(/\/v1\//, (route) => route.abort())
  await page.reload()
  await follow(page, { persist: true })
  await page.waitForFunction(() => /** @type {any} */ (window).todos.rows.size === 31, undefined, { polling: 10 })
  await edit(30)
  await page.waitForFunction(() => /** @type {any} */ (window).todos.rows.size === 61)
  assert.equal(Object.keys(await truth(server)).length, 1)
  await context.unroute(/\/v1\//)
  await live(page, 61)
  await page.waitForFunction(
    (key) =>
      /** @type {any} */ (window).todos.rows.get(key).n === 59 &&
      /** @type {any} */ (window).client.status.state === 'live',
    key,
  )
  for (let tries = 0; Object.keys(await truth(server)).length < 61 && tries < 100; tries++)
    await page.waitForTimeout(50)
  const now = await truth(server)
  assert.equal(Object.keys(now).length, 61)
  assert.equal(now[key].n, 59, 'the last edit is the last')
  for (let i = 0; i < 60; i++) assert.equal(now[key][`edit${i}`], true, `edit ${i}`)
  await page.waitForFunction(
    (n) => JSON.stringify([.../** @type {any} */ (window).todos.rows.keys()].length) === `${n}`,
    61,
  )
  assert.deepEqual(await rows(page), now)
  assert.deepEqual((await seen(page)).errors, [])
})

test('a page that comes back from the back-forward cache is current at once', async (t) => {
  const server = await startServer()
  // Playwright turns the cache off.
  const own = await launch(['--disable-back-forward-cache'])
  t.after(async () => {
    await own.close()
    await server.stop()
  })
  // A page that may be cached, which none of the server's may.
  const dev = createServer((_, response) => response.setHeader('Content-Type', 'text/html').end('<h1>a page</h1>'))
  await new Promise((resolve) => dev.listen(0, '127.0.0.1', () => resolve(undefined)))
  t.after(() => dev.close())
  const { port } = /** @type {import('node:net').AddressInfo} */ (dev.address())
  const page = await (await own.newContext()).newPage()
  await page.goto(`http://127.0.0.1:${port}/one`)
  await follow(page, { url: server.url })
  await page.waitForFunction(() => /** @type {any} */ (window).client.status.transport === 'websocket')
  await live(page)
  await insert(page, 'before')
  await page.evaluate(() => {
    addEventListener('pageshow', ({ persisted }) => Object.assign(window, { persisted }))
  })
  await page.goto(`http://127.0.0.1:${port}/two`, { waitUntil: 'commit' })
  await fetch(`${server.url}/v1/acme/rows/todos?key=meanwhile`, { method: 'PUT', body: '{"title":"x"}' })
  const begun = Date.now()
  // By the page itself: what drives it has its hold on the cached page's target only once it is back.
  await page.evaluate(() => setTimeout(() => history.back()))
  await page.waitForURL(/one$/, { waitUntil: 'commit' })
  await live(page, 2)
  t.diagnostic(`${Date.now() - begun} ms`)
  assert.ok(Date.now() - begun < LATE)
  assert.equal(await page.evaluate(() => /** @type {any} */ (window).persisted), true, 'it was not in the cache at all')
})

test('a page without a network says so, and is current at once when it is back', async (t) => {
  const { server, context, tab } = await setup(t)
  const page = await tab()
  await live(page)
  await context.setOffline(true)
  await page.waitForFunction(() => /** @type {any} */ (window).client.status.state === 'offline')
  await fetch(`${server.url}/v1/acme/rows/todos?key=meanwhile`, { method: 'PUT', body: '{"title":"x"}' })
  const begun = Date.now()
  await context.setOffline(false)
  await live(page, 1)
  t.diagnostic(`${Date.now() - begun} ms`)
  assert.ok(Date.now() - begun < LATE)
})

test('fifty pages are all current again after the server was killed, each on the transport that it had', {
  timeout: 120_000,
}, async (t) => {
  const server = await startServer()
  t.after(() => server.stop())
  const contexts = await Promise.all(Array.from({ length: 10 }, () => browser.newContext()))
  t.after(() => Promise.all(contexts.map((context) => context.close())))
  /** @type {Page[]} */
  const pages = []
  for (const context of contexts) {
    for (let i = 0; i < 5; i++) {
      const page = await context.newPage()
      await page.goto(`${server.url}/healthz`)
      await follow(page, { tabs: false })
      pages.push(page)
    }
  }
  const proven = (/** @type {Page} */ page) =>
    page.waitForFunction(
      () => {
        const { status } = /** @type {any} */ (window).client
        return status.state === 'live' && status.transport === 'websocket'
      },
      undefined,
      { timeout: 30_000 },
    )
  for (const page of pages) await proven(page)
  await server.restart()
  await fetch(`${server.url}/v1/acme/rows/todos?key=meanwhile`, { method: 'PUT', body: '{"title":"x"}' })
  const begun = Date.now()
  for (const page of pages) await live(page, 1)
  t.diagnostic(`${Date.now() - begun} ms`)
  for (const page of pages) await proven(page)
  for (const page of pages) assert.deepEqual((await seen(page)).errors, [])
})

test('two people edit one row at once, and both end up with the same', async (t) => {
  const { server, tab } = await setup(t)
  const one = await tab({ tabs: false })
  const two = await tab({ tabs: false, transport: 'poll' })
  await live(one)
  await live(two)
  const { key } = /** @type {any} */ (await insert(one, 'shared'))
  await live(two, 1)
  const edit = (/** @type {Page} */ page, /** @type {string} */ who) =>
    page.evaluate(
      async ([key, who]) => {
        const { todos } = /** @type {any} */ (window)
        let wrong = 0
        const mine = []
        for (let i = 0; i < 40; i++) {
          const done = todos.modify(key, { [who]: i, last: `${who} ${i}` })
          if (todos.rows.get(key)[who] !== i) wrong++
          mine.push(done)
          await new Promise((resolve) => setTimeout(resolve, 7))
        }
        await Promise.all(mine)
        // What is one's own never falls back.
        if (todos.rows.get(key)[who] !== 39) wrong++
        return wrong
      },
      [key, who],
    )
  assert.deepEqual(await Promise.all([edit(one, 'ann'), edit(two, 'bob')]), [0, 0])
  const end = await truth(server)
  assert.deepEqual([end[key].ann, end[key].bob], [39, 39])
  for (const page of [one, two]) {
    await page.waitForFunction(
      ([key, last]) => /** @type {any} */ (window).todos.rows.get(key).last === last,
      [key, end[key].last],
    )
    assert.deepEqual(await rows(page), end)
  }
})

test('a worker follows and writes like a page, and leaves the tabs alone', async (t) => {
  const { server, tab } = await setup(t)
  const page = await tab({ tabs: false })
  await live(page)
  const result = page.evaluate(
    () =>
      new Promise((resolve) => {
        const code = `
          import { createClient } from '${location.origin}/client.js'
          const client = createClient({ url: '${location.origin}', tenant: 'acme' })
          const todos = client.collection('todos')
          todos.subscribe(({ changes }) => changes.some(({ key }) => key === 'answer') && postMessage(todos.rows.size))
          todos.insert({ from: 'a worker' }, { key: 'question' })`
        const url = URL.createObjectURL(new Blob([code], { type: 'text/javascript' }))
        new Worker(url, { type: 'module' }).onmessage = ({ data }) => resolve(data)
      }),
  )
  await live(page, 1)
  await page.evaluate(() => /** @type {any} */ (window).todos.insert({ from: 'a page' }, { key: 'answer' }))
  assert.equal(await result, 2)
  assert.equal(Object.keys(await truth(server)).length, 2)
})
