// The client, in pages, behind real nginx and haproxy.
import assert from 'node:assert/strict'
import { readFile, writeFile } from 'node:fs/promises'
import { cpus } from 'node:os'
import { after, before, test } from 'node:test'
import { setTimeout as pause } from 'node:timers/promises'
import { launch, seen, startServer, truth, watch } from '../browser/program.js'
import { createYard, version } from './run.js'
import { setups } from './setups.js'

/** Where to put the table: a document that has both marks. */
const TABLE = process.env.TABLE
/** The only one to look at; then there is no table. */
const SETUP = process.env.SETUP
/** How often each page is opened for the first time. */
const RUNS = Number(process.env.RUNS ?? 3)
/** s: for how long nothing is said, so that what is cut when silent is cut, and for how long a transport must have stayed. */
const SILENCE = 30
const STEADY = 8
const ROWS = 100

/** @typedef {import('playwright-core').Page} Page */
/**
 * One page behind one set-up, and what it found.
 * @typedef {object} Seat
 * @property {string} name also the tenant's: nobody is disturbed by the others' changes
 * @property {import('./setups.js').Setup} setup
 * @property {string} url
 * @property {number[]} first ms
 * @property {string} settled
 * @property {number} cuts how often its connection was lost before the end of the silence
 * @property {number[]} others ms
 * @property {number[]} own ms
 * @property {number} back ms from when the server is ready again until the page has what was written then
 * @property {Page} page
 */

/** @type {import('playwright-core').Browser} */
let browser
/** @type {Awaited<ReturnType<typeof startServer>>} */
let server
/** @type {Awaited<ReturnType<typeof createYard>>} */
let yard

before(async () => {
  browser = await launch()
  server = await startServer()
  yard = await createYard()
})
after(async () => {
  await browser?.close()
  await yard?.close()
  await server?.stop()
})

/**
 * By another way than the page's.
 * @param {string} tenant
 * @param {Record<string, any>} rows
 */
async function put(tenant, rows) {
  const changes = Object.entries(rows).map(([key, value]) => ({ collection: 'todos', op: 'put', key, value }))
  const body = JSON.stringify({ changes })
  const response = await fetch(`${server.url}/v1/${tenant}/changes`, { method: 'POST', body })
  assert.equal(response.status, 200)
}

/** A browser that was never here before follows a collection. @param {Seat} seat */
async function visit({ name, url, setup }) {
  const context = await browser.newContext({ ignoreHTTPSErrors: setup.tls ?? false })
  const page = await context.newPage()
  await page.goto(`${url}/healthz`)
  await watch(page, name)
  return page
}

/** @param {Page} page */
const transport = (page) =>
  page.evaluate(() => {
    const { state, transport } = /** @type {any} */ (window).client.status
    return state === 'live' ? transport : ''
  })
/** How long a write of the page's own takes. @param {Page} page @param {string} text */
const insert = (page, text) =>
  page.evaluate(async (text) => {
    const begun = performance.now()
    await /** @type {any} */ (window).todos.insert({ text })
    return Math.round(performance.now() - begun)
  }, text)
/** When a row came. @param {Page} page @param {string} key */
async function arrival(page, key) {
  const fn = (/** @type {string} */ key) => /** @type {any} */ (window).seen.arrived[key]
  const handle = await page.waitForFunction(fn, key, { timeout: 30_000, polling: 50 })
  return /** @type {Promise<number>} */ (handle.jsonValue())
}

/** Until it has been the same for long; changes of others come all the while. @param {Seat} seat */
async function settle(seat) {
  const { name, page, setup } = seat
  let last = ''
  let since = Date.now()
  for (let i = 0; i < 60 && (!last || Date.now() - since < STEADY * 1000); i++) {
    await put(name, { [`busy-${i % 20}`]: { i } })
    await pause(500)
    const now = await transport(page)
    if (now !== last) since = Date.now()
    last = now
  }
  seat.settled = last
  assert.ok(
    setup.settles.some((name) => name === last),
    `on ${last || 'nothing'}`,
  )
}

/** @param {number[]} numbers */
const median = (numbers) => [...numbers].sort((a, b) => a - b)[Math.floor(numbers.length / 2)]

test('behind real proxies rows show soon, nothing is lost or doubled, and pages are current after the server was killed', {
  timeout: 230_000,
  concurrency: true,
}, async (t) => {
  /** @type {Seat[]} */
  const seats = []
  for (const [name, setup] of Object.entries(setups)) {
    if (SETUP && name !== SETUP) continue
    const url = await yard.build(setup, new URL(server.url).host)
    const rest = { first: [], settled: '', cuts: 0, others: [], own: [], back: 0, page: /** @type {any} */ (undefined) }
    seats.push({ name, setup, url, ...rest })
    const rows = Array.from({ length: ROWS }, (_, n) => [`seed-${n}`, { n, text: 'x'.repeat(60) }])
    await put(name, Object.fromEntries(rows))
  }

  let failures = 0
  /**
   * All set-ups at once, each as a test of its own.
   * @param {string} what
   * @param {(seat: Seat) => Promise<void>} fn
   */
  const all = async (what, fn) => {
    await Promise.all(
      seats.map((seat) =>
        t.test(`${seat.name} ${what}`, async () => {
          try {
            await fn(seat)
          } catch (cause) {
            failures++
            const { statuses, errors } = await seen(seat.page)
            throw new Error(`${cause}\n${[...statuses, ...errors].join('\n')}`, { cause })
          }
        }),
      ),
    )
  }

  // One after the other, so that they do not measure each other.
  for (const seat of seats) {
    for (let i = 0; i < RUNS; i++) {
      const page = await visit(seat)
      await page.waitForFunction(() => /** @type {any} */ (window).seen.first, undefined, { polling: 20 })
      seat.first.push((await seen(page)).first)
      await page.context().close()
      await put(seat.name, { [`run-${i}`]: { i } }) // a cache does not know it
    }
    assert.ok(Math.max(...seat.first) <= 3000, `${seat.name}: first rows after ${seat.first} ms`)
  }

  for (const seat of seats) seat.page = await visit(seat)
  await all('settles', settle)
  await all('gets through silence', async (seat) => {
    await pause(SILENCE * 1000)
    /** @type {{statuses: [number, string, string][]}} */
    const { statuses } = await seen(seat.page)
    seat.cuts = statuses.filter(([, state]) => state.startsWith('offline ')).length
    assert.ok(seat.cuts <= 3, `lost ${seat.cuts} times`)
  })

  for (const { name, page, others, own } of seats) {
    for (let i = 0; i < 10; i++) {
      await put(name, { [`late-${i}`]: { i } })
      const at = Date.now()
      others.push(Math.max(0, (await arrival(page, `late-${i}`)) - at))
      if (i < 5) own.push(await insert(page, 'late'))
    }
  }

  // Each has a write under way, or just about to be, when the server dies.
  const written = Promise.all(seats.map(({ page }) => insert(page, 'meanwhile')))
  await server.restart()
  const begun = Date.now()
  await all('comes back after the server was killed', async (seat) => {
    await put(seat.name, { after: { is: 'here' } })
    seat.back = (await arrival(seat.page, 'after')) - begun
    await settle(seat)
  })
  await written

  await all('ends with what the server holds', async ({ name, page, url, setup }) => {
    const { doubled, empty, errors } = await seen(page)
    assert.deepEqual({ doubled, empty, errors }, { doubled: 0, empty: 0, errors: [] })
    const expected = await truth(server, name)
    for (let tries = 0; ; tries++) {
      const rows = await page.evaluate(() => Object.fromEntries(/** @type {any} */ (window).todos.rows))
      try {
        assert.deepEqual(rows, expected)
        break
      } catch (error) {
        if (tries > 20) throw error
        await pause(200)
      }
    }
    const texts = Object.values(expected).map(({ text }) => text)
    assert.equal(texts.filter((text) => text === 'late').length, 5)
    assert.equal(texts.filter((text) => text === 'meanwhile').length, 1)
    if (setup.caches) {
      const ask = async () => (await fetch(`${url}/v1/${name}/feed?c=todos&wait=0`)).headers.get('x-cache')
      assert.deepEqual([await ask(), await ask()], ['MISS', 'HIT'])
    }
    await page.context().close()
  })

  const lines = seats.map(({ name, setup, first, settled, cuts, others, own, back }) => {
    const cells = [`${median(first)} (${Math.max(...first)})`, settled, cuts, median(others), median(own), back]
    t.diagnostic(`${name}: ${cells.join(', ')}`)
    return `| ${setup.what} | ${cells.join(' | ')} |`
  })
  if (TABLE && !SETUP && !failures) {
    const programs = [await version('nginx'), await version('haproxy'), `Chromium ${browser.version()}`]
    const table = [
      `${programs.join(', ')}, ${cpus().length} cores, ${new Date().toISOString().slice(0, 10)}:`,
      '',
      '| proxy | first rows, ms: median (worst) | settles on | cut in 30 s of silence | a change of others, ms | an own write, ms | current once the server is back, ms |',
      '|---|---|---|---|---|---|---|',
      ...lines,
    ]
    const text = await readFile(TABLE, 'utf8')
    const parts = text.match(/^(.*<!-- begin: make proxies -->\n).*(<!-- end: make proxies -->.*)$/s)
    assert.ok(parts, `${TABLE} has no marks`)
    await writeFile(TABLE, `${parts[1]}${table.join('\n')}\n${parts[2]}`)
  }
})
