import assert from 'node:assert/strict'
import { readFile } from 'node:fs/promises'
import { createServer } from 'node:http'
import { after, before, test } from 'node:test'
import { importFile, launch, loadHistory, startServer } from './program.js'

/** @type {import('playwright-core').Browser} */
let browser
before(async () => {
  browser = await launch()
})
after(() => browser?.close())

/**
 * A page of the server's origin; what goes wrong in it fails the test.
 * @param {import('node:test').TestContext} t
 * @param {string} url
 */
async function open(t, url) {
  const context = await browser.newContext()
  t.after(() => context.close())
  const page = await context.newPage()
  page.on('pageerror', (error) => {
    t.diagnostic(`page: ${error.message}`)
    page.setDefaultTimeout(1) // whatever the test waits for, it need not wait any more
  })
  await page.goto(url)
  return page
}

/** @param {import('node:test').TestContext} t */
async function serve(t) {
  const server = await startServer()
  t.after(() => server.stop())
  return server
}

for (const transport of ['websocket', 'sse', 'poll']) {
  test(`a page by ${transport} misses nothing of a real history, though the server is killed`, {
    timeout: 120_000,
  }, async (t) => {
    const server = await serve(t)
    const { files, final, collection } = await loadHistory('chi', server.dir)
    const page = await open(t, `${server.url}/healthz`)
    await page.evaluate(
      async ([collection, transport]) => {
        // @ts-expect-error: the server has it
        const { createClient } = await import('/client.js')
        const client = createClient({ url: '/', tenant: 'acme', transport, heartbeat: 3 })
        const files = client.collection(collection)
        const seen = { lives: 0, batches: 0, errors: /** @type {string[]} */ ([]), doubled: 0, empty: 0 }
        /** @type {Map<string, number>} */
        const seqs = new Map()
        let full = false
        client.onStatus((/** @type {any} */ status) => {
          if (status.state === 'live') seen.lives++
        })
        client.onError((/** @type {any} */ error) => seen.errors.push(String(error)))
        files.subscribe((/** @type {any} */ batch) => {
          seen.batches++
          if (full && files.rows.size === 0) seen.empty++
          full = files.rows.size > 0
          for (const { key, seq } of batch.changes) {
            if (seq <= (seqs.get(key) ?? 0)) seen.doubled++
            seqs.set(key, seq)
          }
        })
        Object.assign(window, { client, files, seen })
      },
      [collection, transport],
    )
    // Live before the first kill, so that it has to come back.
    await page.waitForFunction(() => /** @type {any} */ (window).seen.lives > 0, undefined, { timeout: 40_000 })
    const importing = importFile(server.url, files[0])
    await server.restart()
    await server.restart()
    await importing
    const rest = importFile(server.url, files[1])
    await server.restart()
    await rest
    await page.waitForFunction(
      ([final]) => {
        const { files, client } = /** @type {any} */ (window)
        return (
          client.status.state === 'live' &&
          files.rows.size === Object.keys(final).length &&
          [...files.rows].every(([key, value]) => value.blob === /** @type {any} */ (final)[key])
        )
      },
      [final],
      { timeout: 40_000 },
    )
    const seen = await page.evaluate(() => /** @type {any} */ (window).seen)
    t.diagnostic(JSON.stringify(seen))
    assert.deepEqual(seen.errors, [])
    assert.equal(seen.doubled, 0, 'a change was applied twice')
    assert.equal(seen.empty, 0, 'the page flashed empty')
    assert.ok(seen.lives >= 2, 'it never came back')
    await page.evaluate(() => /** @type {any} */ (window).client.close())
  })
}

test('a plain EventSource is a full client, also when the server is killed', { timeout: 120_000 }, async (t) => {
  const server = await serve(t)
  const { files, final, collection } = await loadHistory('chi', server.dir)
  // The example's own script, told to follow another collection of this server.
  const html = await readFile(new URL('../../examples/eventsource.html', import.meta.url), 'utf8')
  const body = html.replace(/'http:[^']*feed\?c=todos'/, `'${server.url}/v1/acme/feed?c=${collection}'`)
  assert.ok(body.includes(collection))
  const dev = createServer((_, response) => response.setHeader('Content-Type', 'text/html').end(body))
  await new Promise((resolve) => dev.listen(0, '127.0.0.1', () => resolve(undefined)))
  t.after(() => dev.close())
  const { port } = /** @type {import('node:net').AddressInfo} */ (dev.address())
  const page = await open(t, `http://localhost:${port}/`)
  const importing = importFile(server.url, files[0])
  await server.restart()
  await importing
  const rest = importFile(server.url, files[1])
  await server.restart()
  await rest
  // The example shows its rows under their keys; it has them in a variable of its script.
  await page.waitForFunction(
    ([final]) => {
      // biome-ignore lint/security/noGlobalEval: a top-level const of another script can be had no other way
      const rows = /** @type {Map<string, any>} */ (globalThis.eval('rows'))
      return (
        rows.size === Object.keys(final).length &&
        [...rows].every(([key, value]) => value.blob === /** @type {any} */ (final)[key])
      )
    },
    [final],
    { timeout: 40_000 },
  )
})

test('two people on the demo page see each other, on any two transports, at once', { timeout: 120_000 }, async (t) => {
  const server = await serve(t)
  const one = await open(t, `${server.url}/?transport=websocket`)
  const two = await open(t, `${server.url}/?transport=poll`)
  for (const page of [one, two]) await page.waitForSelector('.dot.live')

  await one.fill('#title', 'milk')
  await one.press('#title', 'Enter')
  await two.waitForFunction(() => /** @type {any} */ (document.querySelector('#list .text'))?.value === 'milk')

  await two.check('#list input[type=checkbox]')
  await one.waitForSelector('#list li.done')

  const names = { sse: 'Server-Sent', poll: 'poll', websocket: 'WebSocket' }
  for (const [transport, name] of Object.entries(names)) {
    await one.click(`[value=${transport}] + span`)
    await one.waitForFunction(
      (name) => document.querySelector('.dot.live') && document.querySelector('#reason')?.textContent?.includes(name),
      name,
    )
    await two.fill('#list .text', `milk for ${transport}`)
    await two.press('#list .text', 'Enter')
    await one.waitForFunction(
      (text) => /** @type {any} */ (document.querySelector('#list .text'))?.value === text,
      `milk for ${transport}`,
    )
  }

  // What is written from a terminal shows too.
  await fetch(`${server.url}/v1/demo/rows/todos?key=bread`, { method: 'PUT', body: '{"title":"bread"}' })
  for (const page of [one, two]) await page.waitForFunction(() => document.querySelectorAll('#list li').length === 2)
  await one.click('#list li:first-child .gone')
  for (const page of [one, two]) await page.waitForFunction(() => document.querySelectorAll('#list li').length === 1)
})
