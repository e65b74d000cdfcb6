// What stands between browsers and servers, one hop after the other (cmd/hostile), and what the client makes of it.
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { writeFile } from 'node:fs/promises'
import { cpus } from 'node:os'
import { createInterface } from 'node:readline'
import { after, before, test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { launch, seen, startServer, truth, watch } from './program.js'

/** How often each page is opened for the first time, and where to write the table, if anywhere. */
const RUNS = Number(process.env.RUNS ?? 1)
const TABLE = process.env.TABLE
/** How long a page is watched for what it settles on, in seconds, and for how long it must have stayed so. */
const WATCH = Number(process.env.WATCH ?? 20)
const STEADY = 8
const ROWS = 100

const root = fileURLToPath(new URL('../../', import.meta.url))

/** @type {import('playwright-core').Browser} */
let browser
/** @type {Awaited<ReturnType<typeof startServer>>} */
let server
/** @type {Record<string, string>} */
let hops = {}
/** @type {Record<string, string>} */
const what = {}
/** @type {import('node:child_process').ChildProcess} */
let bed

before(async () => {
  browser = await launch()
  server = await startServer()
  const binary = `${root}bin/hostile`
  const list = spawn(binary, ['-list'])
  for await (const line of createInterface({ input: list.stdout })) {
    const [, name, text] = line.match(/`(.*)` \| (.*) \|/) ?? []
    if (name) what[name] = text
  }
  bed = spawn(binary, ['-target', server.url, '-watch-stdin'], { stdio: ['pipe', 'pipe', 'inherit'] })
  for await (const line of createInterface({ input: /** @type {any} */ (bed.stdout) })) {
    hops = JSON.parse(line)
    break
  }
  await write(
    Array.from({ length: ROWS }, (_, i) => ({ op: 'put', key: `seed-${i}`, value: { n: i, text: 'x'.repeat(60) } })),
  )
})
after(async () => {
  await browser?.close()
  bed?.stdin?.end()
  await server?.stop()
})

/** By another way than the page's. @param {any[]} changes */
async function write(changes) {
  const body = JSON.stringify({ atomic: false, changes: changes.map((change) => ({ collection: 'todos', ...change })) })
  const response = await fetch(`${server.url}/v1/acme/changes`, { method: 'POST', body })
  assert.equal(response.status, 200)
}

/**
 * A browser that was never here before follows a collection through a hop. What a network cuts while the page itself is
 * loading is loaded again, as its reader would: on a busy machine an answer takes longer than idle-killed-5s waits.
 * @param {string} hop
 */
async function visit(hop) {
  for (let tries = 1; ; tries++) {
    const context = await browser.newContext()
    const page = await context.newPage()
    try {
      await page.goto(`${hops[hop]}/healthz`)
      await watch(page)
      return { page, close: () => context.close() }
    } catch (error) {
      await context.close()
      if (tries === 3 || !/ERR_|dynamically imported/.test(String(error))) throw error
    }
  }
}

/** @param {number[]} numbers */
const median = (numbers) => [...numbers].sort((a, b) => a - b)[Math.floor(numbers.length / 2)]

/** @type {Record<string, {first: number[], settled: string, after: number, latency: number[], own: number}>} */
const found = {}

/** @param {string} hop */
async function live(hop) {
  const { page, close } = await visit(hop)
  const changed = () =>
    page.evaluate(() => {
      const { seen } = /** @type {any} */ (window)
      return [performance.now(), ...(seen.statuses.at(-1) ?? [])]
    })
  try {
    // The first write of its own, while nothing has settled yet.
    const early = page.evaluate(() => /** @type {any} */ (window).todos.insert({ early: true }).then(() => true))
    const begun = Date.now()
    let i = 0
    /** @type {any[]} */
    let status = []
    let last = ''
    let since = Date.now()
    // A hole is seen after two and a half heartbeats, so it takes longer to be sure there; not in a short run.
    const slow = hop === 'black-hole' && WATCH > 60 ? 5 : 1
    while (Date.now() - begun < slow * WATCH * 1000) {
      await write([{ op: 'put', key: `${hop}-${i++ % 20}`, value: { i } }])
      await page.waitForTimeout(500)
      status = await changed()
      const text = `${status[2]} ${status[3]?.split(' ')[0]}`
      if (text !== last) since = Date.now()
      last = text
      if (/^live/.test(text) && Date.now() - since > slow * STEADY * 1000) break
    }
    assert.ok(await early, `${hop}: an early write was lost`)
    /** @type {number[]} */
    const latency = []
    for (let i = 0; i < (TABLE ? 10 : 5); i++) {
      const key = `${hop}-late-${i}-${begun}`
      await write([{ op: 'put', key, value: { i } }])
      const at = Date.now()
      await page.waitForFunction((key) => /** @type {any} */ (window).seen.arrived[key], key, {
        timeout: 60_000,
        polling: TABLE ? 50 : 250, // when it came is told by the page
      })
      latency.push(Math.max(0, (await seen(page)).arrived[key] - at))
    }
    const own = await page.evaluate(async () => {
      const t = performance.now()
      await /** @type {any} */ (window).todos.insert({ late: true })
      return Math.round(performance.now() - t)
    })
    const all = await seen(page)
    return { page, close, all, latency, own, settled: last.split(' ').at(-1) ?? '', after: since - begun, begun }
  } catch (error) {
    const all = await seen(page)
    await close()
    throw new Error(`${hop}: ${error}\n${JSON.stringify(all.statuses)}\n${all.errors}`)
  }
}

test('through every network rows show soon, nothing is lost or doubled, and the page is current at the end', {
  timeout: 3_600_000,
  concurrency: true,
}, async (t) => {
  const names = Object.keys(hops).filter((name) => !process.env.HOP || name === process.env.HOP)
  assert.ok(Object.keys(hops).length > 20)
  /** @param {string} hop */
  const opens = (hop) =>
    t.test(`first rows: ${hop}`, async () => {
      for (let i = 0; i < RUNS; i++) {
        const { page, close } = await visit(hop)
        await page.waitForFunction(() => /** @type {any} */ (window).seen.first, undefined, {
          timeout: 20_000,
          polling: 20,
        })
        found[hop].first.push((await seen(page)).first)
        await close()
      }
      const { first } = found[hop]
      assert.ok(median(first) <= 3000 && Math.max(...first) <= 6000, `${first}`)
    })
  /** @param {string} hop */
  const settles = (hop) =>
    t.test(`settles: ${hop}`, async () => {
      const { page, close, all, settled, after, latency, own } = await live(hop)
      Object.assign(found[hop], { settled, after, latency, own })
      assert.equal(all.doubled, 0, 'a change was told twice')
      assert.equal(all.empty, 0, 'the page flashed empty')
      assert.deepEqual(all.errors, [])
      let rows
      for (let tries = 0; tries < 40; tries++) {
        const expected = await truth(server)
        rows = await page.evaluate(() => Object.fromEntries(/** @type {any} */ (window).todos.rows))
        try {
          assert.deepEqual(rows, expected)
          break
        } catch (error) {
          if (tries === 39) throw error
          await page.waitForTimeout(500)
        }
      }
      t.diagnostic(`${hop}: ${JSON.stringify(all.statuses)}`)
      await close()
    })
  for (const hop of names) found[hop] = { first: [], settled: '', after: 0, latency: [], own: 0 }
  // These take a minute by themselves, so they begin at once; but for the table nothing disturbs what is measured.
  const slow = (/** @type {string} */ hop) => !TABLE && ['black-hole', 'dies-after-900-bytes'].includes(hop)
  const first = Promise.all(names.filter(slow).map(settles))
  const waiting = [...names]
  const line = async () => {
    for (let hop = waiting.shift(); hop; hop = waiting.shift()) await opens(hop)
  }
  await Promise.all(Array.from({ length: TABLE ? 1 : 3 }, line))
  await Promise.all([first, ...names.filter((hop) => !slow(hop)).map(settles)])
  const lines = names.map((hop) => {
    const { first, settled, after, latency, own } = found[hop]
    const worst = (/** @type {number[]} */ numbers) => `${median(numbers)} (${Math.max(...numbers)})`
    const cells = [worst(first), settled, (after / 1000).toFixed(1), worst(latency), own]
    return `| ${hop} | ${what[hop]} | ${cells.join(' | ')} |`
  })
  for (const line of lines) t.diagnostic(line)
  if (TABLE && !process.env.HOP) {
    const day = new Date().toISOString().slice(0, 10)
    const head = `# What the client makes of bad networks

Each hop of [cmd/hostile](../cmd/hostile) stands between a Tidemark server and Chromium ${browser.version()}, on ${cpus().length} cores, all on one
machine. A page that was never there before opens ${RUNS} times and follows a collection of ${ROWS} rows; then one is watched, while
others write twice a second, until its transport has not changed for ${STEADY} s (${5 * STEADY} s in the black hole). Nothing may be
lost or doubled, and the page never shows no rows once it had some; the test fails otherwise, or if the first rows take
more than 3 s in the median or 6 s at worst. Made by \`make networks\` on ${day}.

| hop | what it does | first rows, ms: median (worst) | settles on | after, s | a change of others, ms: median (worst) | an own write, ms |
|---|---|---|---|---|---|---|
`
    await writeFile(TABLE, `${head}${lines.join('\n')}\n`)
  }
})
