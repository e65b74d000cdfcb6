import assert from 'node:assert/strict'
import { createServer } from 'node:http'
import { after, before, test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { build } from 'esbuild'
import { launch, startServer } from './program.js'

/** @type {import('playwright-core').Browser} */
let browser
before(async () => {
  browser = await launch()
})
after(() => browser?.close())

/** What an app may have installed, by the name that it has here. @type {Record<string, Record<string, string>>} */
const REACTS = { 18: { react: 'react-18', 'react-dom': 'react-dom-18' }, 19: {} }

/** @param {Record<string, string>} alias */
async function bundle(alias) {
  const { outputFiles } = await build({
    entryPoints: [fileURLToPath(new URL('../test/adapters/react-page.js', import.meta.url))],
    alias,
    bundle: true,
    // Not for production: only so does StrictMode mount everything twice.
    define: { 'process.env.NODE_ENV': '"development"' },
    format: 'esm',
    write: false,
  })
  return outputFiles[0].text
}

/**
 * A page with the hooks in it.
 * @param {import('node:test').TestContext} t
 * @param {string} react
 */
async function open(t, react) {
  const script = (await bundle(REACTS[react])).replaceAll('</script', '<\\/script')
  const body = `<!doctype html><meta charset=utf-8><link rel=icon href=data:><div id=app></div><script type=module>${script}</script>`
  const server = createServer((_, response) => response.setHeader('Content-Type', 'text/html').end(body))
  await new Promise((resolve) => server.listen(0, '127.0.0.1', () => resolve(undefined)))
  t.after(() => server.close())
  const page = await browser.newPage()
  t.after(() => page.close())
  /** @type {string[]} */
  const errors = []
  page.on('pageerror', (error) => errors.push(String(error)))
  page.on('console', (message) => {
    if (message.type() === 'error') errors.push(message.text())
  })
  const { port } = /** @type {import('node:net').AddressInfo} */ (server.address())
  await page.goto(`http://localhost:${port}/`)
  assert.match(await page.evaluate(() => /** @type {any} */ (window).page.version), new RegExp(`^${react}\\.`))
  return { page, errors }
}

for (const react of Object.keys(REACTS)) {
  test(`React ${react}: a page follows a collection once and leaves it, and no row it shows ever vanishes and comes back`, async (t) => {
    const { page, errors } = await open(t, react)
    const { frames, starts, ends, html } = await page.evaluate(async () => {
      const { page } = /** @type {any} */ (window)
      const client = new page.FakeClient()
      const todos = client.collection('todos')
      const unmount = page.mount(client)
      await page.painted()
      client.feed({ todos: { a: { title: 'milk' }, b: { title: 'bread' } } })
      await page.painted()
      client.live('todos')
      client.become({ state: 'live' })
      await page.painted()
      for (let i = 0; i < 5; i++) {
        const edit = todos.modify('a', { title: `milk-${i}` })
        await page.painted()
        // Others write the same row meanwhile, and a new one.
        client.feed({ todos: { a: { title: 'theirs', n: i }, [`c${i}`]: { title: `c${i}` } } })
        await page.painted()
        if (i === 3) client.writes[0].refuse('conflict')
        else client.writes[0].confirm()
        await edit.catch(() => {})
        await page.painted()
        const rows = Object.fromEntries([...client.collection('todos').base].map(([key, { value }]) => [key, value]))
        client.reset('todos', structuredClone({ ...rows, [`c${i}`]: { title: `reset-${i}` } }))
        await page.painted()
      }
      const html = document.querySelector('#app')?.innerHTML
      unmount()
      await page.painted()
      return { frames: page.frames, starts: todos.starts, ends: todos.ends, html }
    })
    // StrictMode leaves and comes back in one go; the client sees to it that this is no second connection.
    assert.ok(starts <= 2 && starts === ends, `${starts} ${ends}`)
    assert.match(frames[0], /^false offline undefined: $/)
    assert.match(frames.at(-1), /^true live milk-4: /)
    const seen = new Set()
    for (const frame of frames) {
      const keys = frame
        .split(': ')[1]
        .split(' ')
        .map((/** @type {string} */ row) => row.split('=')[0])
      for (const key of seen) assert.ok(keys.includes(key), `${key} vanished: ${frame}`)
      for (const key of keys) if (key) seen.add(key)
      // The one row and the list are of the same moment.
      const [, one] = /^\w+ \w+ (.*): /.exec(frame) ?? []
      if (one !== 'undefined') assert.ok(`${frame} `.includes(`a=${one} `), frame)
    }
    assert.equal(seen.size, 7)
    assert.match(String(html), /^<ul><li id="b">bread<\/li>.*<li id="a">milk-4<\/li>/)
    assert.deepEqual(errors, [])
  })

  test(`React ${react}: a change renders the row that changed, not all of them`, async (t) => {
    const { page, errors } = await open(t, react)
    const [before, after, listed, more] = await page.evaluate(async () => {
      const { page } = /** @type {any} */ (window)
      const client = new page.FakeClient()
      client.feed({ todos: { a: { title: 'milk' }, b: { title: 'bread' }, c: { title: 'tea' } } })
      client.live('todos')
      page.mount(client)
      await page.painted()
      const before = Object.fromEntries(page.renders)
      client.feed({ todos: { b: { title: 'rye' } } })
      await page.painted()
      const after = Object.fromEntries(page.renders)
      page.setFilter('t')
      while (document.querySelectorAll('li').length > 1) await page.painted()
      await page.painted()
      const { length } = page.frames
      // Of a row that is not listed.
      client.feed({ todos: { b: { title: 'corn' } } })
      await page.painted()
      return [before, after, [...document.querySelectorAll('li')].map(({ id }) => id), page.frames.length - length]
    })
    const { b, ...rest } = after
    assert.ok(b > before.b)
    assert.deepEqual(rest, { a: before.a, c: before.c })
    assert.deepEqual(listed, ['c'])
    assert.equal(more, 0)
    assert.deepEqual(errors, [])
  })

  test(`React ${react}: a page connects once, and edits over a real connection never flicker`, {
    timeout: 60_000,
  }, async (t) => {
    const server = await startServer()
    t.after(() => server.stop())
    const put = (/** @type {string} */ key, /** @type {string} */ title) =>
      fetch(`${server.url}/v1/demo/rows/todos?key=${key}`, { method: 'PUT', body: JSON.stringify({ title }) })
    for (const key of ['a', 'b', 'c']) assert.ok((await put(key, key)).ok)
    const { page, errors } = await open(t, react)
    /** What was asked for from the beginning. @type {string[]} */
    const asked = []
    page.on('request', (request) => {
      const url = new URL(request.url())
      if (url.searchParams.get('c') === 'todos') asked.push(request.url())
    })
    const able = await page.evaluate((url) => {
      const { page } = /** @type {any} */ (window)
      const client = page.createClient({ url, tenant: 'demo' })
      const todos = client.collection('todos')
      page.mount(client)
      Object.assign(window, { client, todos })
      return 'ready' in todos
    }, server.url)
    if (!able) return t.skip('the core does not say when its rows are whole')
    await page.waitForFunction(() => document.querySelectorAll('li').length === 3)
    for (let i = 0; i < 10; i++) {
      const edit = page.evaluate((i) => /** @type {any} */ (window).todos.modify('a', { title: `a-${i}` }), i)
      await Promise.all([edit, put('b', `b-${i}`)])
    }
    await page.waitForFunction(() => document.querySelector('#app')?.textContent === 'a-9b-9c')
    const frames = await page.evaluate(() => /** @type {any} */ (window).page.frames)
    const whole = frames.slice(frames.findIndex((/** @type {string} */ frame) => frame.endsWith('a=a b=b c=c')))
    for (const frame of whole) assert.match(frame, /: a=\S+ b=\S+ c=c$/)
    // Own edits show at once and in order, each as long as there is no later one.
    const own = whole.map((/** @type {string} */ frame) => Number(/ a=a-(\d)/.exec(frame)?.[1] ?? -1))
    assert.deepEqual(
      own,
      own.toSorted((/** @type {number} */ a, /** @type {number} */ b) => a - b),
    )
    assert.equal(asked.length, 1, `${asked}`)
    assert.deepEqual(errors, [])
  })
}
