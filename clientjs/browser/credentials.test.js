// A server with credentials, and real pages: of the app, and of somebody who would like to be.
import assert from 'node:assert/strict'
import { createServer } from 'node:http'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { freePort, launch, startServer, tidemark } from './program.js'

/** @type {import('playwright-core').Browser} */
let browser
before(async () => {
  // Names of our own, all of them this machine.
  browser = await launch([], ['--host-resolver-rules=MAP *.test 127.0.0.1'])
})
after(() => browser?.close())

/** @param {import('node:test').TestContext} t */
async function setup(t) {
  const port = await freePort()
  // Every name serves the same empty page: what counts is where it is.
  const pages = createServer((_request, response) => {
    response.setHeader('Content-Type', 'text/html')
    response.end('<!doctype html><title>page</title>')
  })
  await new Promise((resolve) => pages.listen(port, '127.0.0.1', () => resolve(undefined)))
  let keys = ''
  const server = await startServer(async (dir) => {
    keys = join(dir, 'keys')
    await tidemark('keys', '--out', keys)
    const origins = ['app.example.test', '127.0.0.1'].map((host) => `http://${host}:${port}`)
    return ['--jwt-public-key', join(keys, 'public.pem'), '--origins', origins.join()]
  })
  const context = await browser.newContext()
  t.after(async () => {
    await context.close()
    await server.stop()
    pages.close()
  })
  const token = (/** @type {string[]} */ ...more) =>
    tidemark('token', '--key-file', join(keys, 'private.pem'), '--tenant', 'acme', '--sub', 'ada', ...more)
  const sync = server.url.replace('127.0.0.1', 'sync.example.test')
  /** @param {string} host */
  const page = async (host) => {
    const page = await context.newPage()
    await page.goto(`http://${host}:${port}/`)
    return page
  }
  return { server, context, token, sync, page }
}

/**
 * All that a page can think of to read and write by somebody's cookie; it returns what of it worked.
 * @param {import('playwright-core').Page} page
 * @param {string} sync
 * @param {string} key
 */
const attempts = (page, sync, key) =>
  page.evaluate(
    async ({ sync, key }) => {
      /** @type {string[]} */
      const worked = []
      const feed = `${sync}/v1/acme/feed?c=todos&wait=0`
      const rows = `${sync}/v1/acme/rows/todos`
      const changes = `${sync}/v1/acme/changes`
      const body = JSON.stringify({ changes: [{ op: 'put', collection: 'todos', key, value: { by: location.host } }] })
      /** @type {[string, () => Promise<unknown>][]} */
      const ways = [
        ['poll', () => read(feed, {})],
        ['fetch of events', () => read(feed, { headers: { Accept: 'text/event-stream' } })],
        ['rows', () => read(rows, {})],
        ['rows, simple', () => read(rows, { mode: 'no-cors' })],
        ['ticket', () => read(`${sync}/v1/acme/tickets`, { method: 'POST' })],
        ['write', () => read(changes, { method: 'POST', headers: { 'Content-Type': 'application/json' }, body })],
        ['write, simple', () => read(changes, { method: 'POST', mode: 'no-cors', body })],
        ['put', () => read(`${rows}?key=${key}`, { method: 'PUT', body: '{}' })],
        ['EventSource', () => events(`${feed}&transport=sse`)],
        ['WebSocket', () => socket(`${feed.replace('http', 'ws')}&transport=websocket`)],
        ['form', () => form()],
        ['script', () => element('script', feed)],
        ['image', () => element('img', feed)],
        ['beacon', async () => navigator.sendBeacon(changes, body) && undefined],
      ]
      for (const [name, way] of ways) {
        const got = await Promise.race([way(), new Promise((resolve) => setTimeout(resolve, 3000))]).catch(() => {})
        if (got) worked.push(name)
      }
      return worked

      /** @param {string} url @param {RequestInit} options */
      async function read(url, options) {
        const response = await fetch(url, { credentials: 'include', ...options })
        return response.ok && (await response.body?.getReader().read())?.value?.length
      }
      /** @param {string} url */
      function events(url) {
        const source = new EventSource(url, { withCredentials: true })
        return new Promise((resolve) => {
          source.addEventListener('open', () => resolve(true))
          source.addEventListener('live', () => resolve(true))
          source.onerror = () => resolve(false)
        }).finally(() => source.close())
      }
      /** @param {string} url */
      function socket(url) {
        const s = new WebSocket(url)
        return new Promise((resolve) => {
          s.onmessage = () => resolve(true)
          s.onerror = () => resolve(false)
        }).finally(() => s.close())
      }
      function form() {
        const frame = document.createElement('iframe')
        frame.name = 'frame'
        const form = document.createElement('form')
        Object.assign(form, { action: changes, method: 'POST', enctype: 'text/plain', target: 'frame' })
        const input = document.createElement('input')
        input.name = body.slice(0, -1)
        input.value = '}'
        form.append(input)
        document.body.append(frame, form)
        form.submit()
        return new Promise((resolve) => {
          frame.onload = () => resolve(false)
        })
      }
      /** @param {string} tag @param {string} src */
      function element(tag, src) {
        const e = Object.assign(document.createElement(tag), { src })
        document.body.append(e)
        return new Promise((resolve) => {
          e.onload = () => resolve(true)
          e.onerror = () => resolve(false)
        })
      }
    },
    { sync, key },
  )

test("a page of another origin neither reads nor writes by somebody's cookie, whatever it tries", async (t) => {
  const { server, context, token, sync, page } = await setup(t)
  const cookie = await token()
  // The worst that an app can do: a cookie for all of its domain, sent along by every page of it.
  await context.addCookies([{ name: 'tidemark', value: cookie, domain: '.example.test', path: '/', sameSite: 'Lax' }])

  const good = await attempts(await page('app.example.test'), sync, 'good')
  for (const way of ['poll', 'fetch of events', 'rows', 'ticket', 'write', 'put', 'EventSource', 'WebSocket'])
    assert.ok(good.includes(way), `the app's own page: ${way} does not work (${good})`)

  for (const host of ['evil.example.test', 'app.example.test.evil.test', 'evil.test', 'example.test']) {
    const worked = await attempts(await page(host), sync, 'evil')
    assert.deepEqual(worked, [], `${host} got through`)
  }
  const answer = await fetch(`${server.url}/v1/acme/rows/todos`, { headers: { Authorization: `Bearer ${cookie}` } })
  const { rows } = await answer.json()
  assert.deepEqual(
    rows.map((/** @type {any} */ row) => row.key),
    ['good'],
    'what is there is what the app wrote',
  )
})

test('the client goes on over the end of its tokens, on every transport, and shows no gap', async (t) => {
  const { server, token, sync, page } = await setup(t)
  const writer = await token()
  const put = (/** @type {number} */ n) =>
    fetch(`${server.url}/v1/acme/rows/todos?key=${n}`, {
      method: 'PUT',
      headers: { Authorization: `Bearer ${writer}` },
      body: JSON.stringify({ n }),
    })
  /** @param {string} transport */
  async function goesOn(transport) {
    const app = await page('app.example.test')
    let given = 0
    await app.exposeFunction('getToken', () => {
      given++
      return token('--ttl', '4s')
    })
    await app.evaluate(
      async ({ sync, transport }) => {
        const { createClient } = await import(`${sync}/client.js`)
        const client = createClient({
          url: sync,
          tenant: 'acme',
          transport,
          tabs: false,
          // @ts-expect-error: the test has put it there
          getToken: window.getToken,
        })
        const todos = client.collection('todos')
        /** @type {string[]} */
        const seen = []
        client.onStatus((/** @type {any} */ s) => seen.push(`${s.state} ${s.reason}`))
        todos.subscribe(() => {})
        Object.assign(window, { client, todos, seen })
      },
      { sync, transport },
    )
    const first = transport.length * 1000
    let n = first
    const end = Date.now() + 13_000
    while (Date.now() < end) {
      await put(n++)
      await new Promise((resolve) => setTimeout(resolve, 200))
    }
    const have = () =>
      app.evaluate((first) => {
        // @ts-expect-error: the page has it
        return [...window.todos.rows.keys()].map(Number).filter((key) => key >= first && key < first + 1000).length
      }, first)
    for (let tries = 0; tries < 50 && (await have()) < n - first; tries++)
      await new Promise((resolve) => setTimeout(resolve, 100))
    assert.equal(await have(), n - first, `${transport}: all that was written shows`)
    // @ts-expect-error: the page has it
    const seen = await app.evaluate(() => window.seen)
    t.diagnostic(`${transport}: ${given} tokens; ${seen.join(', ')}`)
    assert.ok(given >= 3 && given < 20, `${transport}: ${given} tokens in 13 s of 4 s each`)
    assert.ok(!seen.some((/** @type {string} */ s) => /^(offline|denied)/.test(s)), `${transport}: ${seen}`)
    await app.close()
  }
  await Promise.all(['websocket', 'sse', 'poll'].map(goesOn))
})

/**
 * A tab of an app; only pages of this machine may share a connection over plain HTTP.
 * @param {Awaited<ReturnType<typeof setup>>} s
 * @param {string} token
 */
async function tab({ server, page }, token) {
  const tab = await page('127.0.0.1')
  await tab.evaluate(
    async ([url, token]) => {
      const { createClient } = await import(`${url}/client.js`)
      /** @type {any} */
      const w = window
      w.errors = []
      w.client = createClient({ url, tenant: 'acme', getToken: () => token })
      w.client.onError((/** @type {any} */ error) => w.errors.push(error.code))
      w.client.collection('todos').start()
    },
    /** @type {const} */ ([server.url, token]),
  )
  return tab
}

/** @param {import('playwright-core').Page} tab @param {string} state */
const comesTo = (tab, state) =>
  tab.waitForFunction((state) => /** @type {any} */ (window).client.status.state === state, state, { timeout: 10_000 })

test('a tab with a good credential is not held down by one whose credential is bad', async (t) => {
  const s = await setup(t)
  const good = await s.token()
  // As good a text, but for who signed it.
  const bad = await tab(s, good.slice(0, -8) + [...good.slice(-8)].reverse().join(''))
  await comesTo(bad, 'denied')
  const other = await tab(s, good)
  await comesTo(other, 'live')
  await comesTo(await tab(s, good), 'live')
  await comesTo(bad, 'denied')
})

test('a tab that follows what it may not read does not take from the others what they may', async (t) => {
  const s = await setup(t)
  const token = await s.token('--read', 'todos')
  const first = await tab(s, token)
  await comesTo(first, 'live')
  const second = await tab(s, token)
  await comesTo(second, 'live')
  const third = await tab(s, token)
  await comesTo(third, 'live')
  await second.evaluate(() => /** @type {any} */ (window).client.collection('secret').start())
  await comesTo(second, 'denied')
  await comesTo(first, 'live')
  await comesTo(third, 'live')
  assert.deepEqual(await second.evaluate(() => /** @type {any} */ (window).errors), ['forbidden'])
})
