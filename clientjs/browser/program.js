// The whole program, and a real browser, for the tests in this folder.
import { spawn } from 'node:child_process'
import { createReadStream } from 'node:fs'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout as pause } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { createGunzip } from 'node:zlib'
import { chromium } from 'playwright-core'

const root = fileURLToPath(new URL('../../', import.meta.url))
const binary = join(root, 'bin/tidemark')

/** Debian's Chromium. It needs no sandbox to look at our own pages, and as root it can't have one. */
export const launch = (/** @type {string[]} */ ignoreDefaultArgs = [], /** @type {string[]} */ more = []) =>
  chromium.launch({
    ignoreDefaultArgs,
    executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
    args: [
      '--no-sandbox',
      '--disable-gpu',
      '--disable-background-networking',
      '--disable-component-update',
      '--disable-sync',
      '--no-first-run',
      ...more,
    ],
  })

/** @returns {Promise<number>} a port of this machine that was free a moment ago */
export const freePort = () =>
  new Promise((resolve, reject) => {
    const server = createServer()
    server.on('error', reject)
    server.listen(0, '127.0.0.1', () => {
      const { port } = /** @type {import('node:net').AddressInfo} */ (server.address())
      server.close(() => resolve(port))
    })
  })

/**
 * @param {string[]} args
 * @returns {{child: import('node:child_process').ChildProcess, exited: Promise<number | null>, output: () => string}}
 */
function run(args) {
  const child = spawn(binary, args, { stdio: ['ignore', 'pipe', 'pipe'] })
  let text = ''
  for (const stream of [child.stdout, child.stderr]) stream.on('data', (chunk) => (text += chunk))
  const exited = new Promise((resolve, reject) => {
    child.on('exit', resolve)
    child.on('error', reject)
  })
  return { child, exited, output: () => text }
}

/**
 * What a command prints.
 * @param {...string} args
 */
export async function tidemark(...args) {
  const { exited, output } = run(args)
  if ((await exited) !== 0) throw new Error(`tidemark ${args[0]}:\n${output()}`)
  return output().trim()
}

/**
 * A server on data of its own, which can be killed and comes back on the same port.
 * @param {(dir: string) => Promise<string[]>} [access] gives the flags of a server with credentials
 */
export async function startServer(access) {
  const dir = await mkdtemp(join(tmpdir(), 'tidemark-browser-'))
  const flags = await access?.(dir)
  const port = await freePort()
  const url = `http://127.0.0.1:${port}`
  let current = run([])

  async function start() {
    // Checkpoints come often, so that restarts read them back.
    current = run([
      flags ? 'serve' : 'dev',
      ...(flags ?? []),
      '--admin-listen',
      'off',
      '--listen',
      `127.0.0.1:${port}`,
      '--data',
      join(dir, 'data'),
      '--log-size',
      '256KiB',
      '--log-level',
      'warn',
    ])
    for (let tries = 0; ; tries++) {
      const ready = await fetch(`${url}/readyz`).then(
        (r) => r.ok,
        () => false,
      )
      if (ready) return
      if (tries > 500 || current.child.exitCode !== null)
        throw new Error(`the server does not start:\n${current.output()}`)
      await pause(20)
    }
  }
  async function kill() {
    current.child.kill('SIGKILL')
    await current.exited
  }
  await start()
  return {
    url,
    dir,
    async restart() {
      await kill()
      await start()
    },
    async stop() {
      await kill()
      await rm(dir, { recursive: true, force: true })
    },
  }
}

/**
 * Imports a file of transactions; resolves when the program says that all is written.
 * @param {string} url
 * @param {string} file
 */
export async function importFile(url, file) {
  const { exited, output } = run(['import', '--url', url, '--tenant', 'acme', file])
  const code = await exited
  if (code !== 0) throw new Error(`import ended with ${code}:\n${output()}`)
}

/**
 * A real history, in two halves, and what it must end with.
 * @param {string} name
 * @param {string} dir where the halves go
 */
export async function loadHistory(name, dir) {
  const packed = createReadStream(join(root, `cmd/tidemark/testdata/${name}-history.ndjson.gz`))
  /** @type {string[]} */
  const lines = []
  /** @type {Record<string, string>} */
  let final = {}
  for await (const line of createInterface({ input: packed.pipe(createGunzip()) })) {
    const parsed = JSON.parse(line)
    if (parsed.final) final = parsed.final
    else lines.push(line)
  }
  const middle = Math.floor(lines.length / 2)
  const halves = [lines.slice(0, middle), lines.slice(middle)]
  const files = await Promise.all(
    halves.map(async (half, i) => {
      const file = join(dir, `${name}-${i}.ndjson`)
      await writeFile(file, `${half.join('\n')}\n`)
      return file
    }),
  )
  return { files, final, collection: JSON.parse(lines[0]).changes[0].collection }
}

/**
 * What a server holds of the todos.
 * @param {{url: string}} server
 * @returns {Promise<Record<string, any>>}
 */
export async function truth({ url }, tenant = 'acme') {
  const response = await fetch(`${url}/v1/${tenant}/rows/todos?limit=10000`)
  /** @type {{rows: {key: string, value: any}[]}} */
  const { rows } = await response.json()
  return Object.fromEntries(rows.map(({ key, value }) => [key, value]))
}

/**
 * The page, which is one of the server's, follows the todos and notes in `window.seen` what it is told: when its first
 * rows came, and each row; what came twice; whether it was empty again; how the feed was.
 * @param {import('playwright-core').Page} page
 */
export const watch = (page, tenant = 'acme') =>
  page.evaluate(async (tenant) => {
    // @ts-expect-error: the server has it
    const { createClient } = await import('/client.js')
    const begun = performance.now()
    const client = createClient({ url: '/', tenant })
    const todos = client.collection('todos')
    const seen = {
      first: 0,
      doubled: 0,
      empty: 0,
      errors: /** @type {string[]} */ ([]),
      /** @type {[ms: number, state: string, transport: string][]} each of the two with the reason for it */
      statuses: [],
      /** @type {Record<string, number>} */
      arrived: {},
    }
    /** @type {Map<string, number>} */
    const seqs = new Map()
    const now = () => Math.round(performance.now() - begun)
    client.onError((/** @type {any} */ error) => seen.errors.push(`${error.code}: ${error.message}`))
    client.onStatus((/** @type {any} */ { state, reason, transport, why }) =>
      seen.statuses.push([now(), `${state} ${reason}`, `${transport} ${why}`]),
    )
    todos.subscribe((/** @type {any} */ batch) => {
      if (todos.rows.size) seen.first ||= now()
      else if (seen.first) seen.empty++
      for (const { key, seq } of batch.changes) {
        if (seq && seq <= (seqs.get(key) ?? 0)) seen.doubled++
        if (seq) seqs.set(key, seq)
        seen.arrived[key] ??= Date.now()
      }
    })
    Object.assign(window, { client, todos, seen })
  }, tenant)

/** @param {import('playwright-core').Page} page */
export const seen = (page) => page.evaluate(() => /** @type {any} */ (window).seen)
