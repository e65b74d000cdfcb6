// Real proxies, each a process of its own with a directory of its own.
import { execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { copyFile, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { connect } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as pause } from 'node:timers/promises'
import { promisify } from 'node:util'
import { freePort } from '../browser/program.js'

/** Debian has them where only root looks. */
const env = { ...process.env, PATH: `${process.env.PATH}:/usr/sbin` }
const exec = promisify(execFile)

/** As `nginx 1.22.1`. @param {'nginx' | 'haproxy'} program */
export async function version(program) {
  const { stdout, stderr } = await exec(program, ['-v'], { env })
  return `${program} ${`${stdout}${stderr}`.match(/\d+\.\d+\.\d+/)?.[0]}`
}

/** A certificate that nobody trusts, where proxies look for one. @param {string} dir */
async function certify(dir) {
  const [key, crt] = [join(dir, 'tidemark.key'), join(dir, 'tidemark.crt')]
  const name = ['-subj', '/CN=127.0.0.1', '-addext', 'subjectAltName=IP:127.0.0.1']
  await exec('openssl', [
    'req',
    '-x509',
    '-newkey',
    'rsa:2048',
    '-nodes',
    '-days',
    '1',
    '-keyout',
    key,
    '-out',
    crt,
    ...name,
  ])
  await writeFile(join(dir, 'tidemark.pem'), (await readFile(crt, 'utf8')) + (await readFile(key, 'utf8')))
}

/** One process, nothing outside its directory, and no more than it needs to run. @param {string} servers */
const nginx = (servers) => `
daemon off;
master_process off;
pid nginx.pid;
events {}
http {
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
${servers}
}
`

/** A place for proxies, which ends them all. */
export async function createYard() {
  const yard = await mkdtemp(join(tmpdir(), 'tidemark-proxies-'))
  await certify(yard)
  /** @type {{child: import('node:child_process').ChildProcess, exited: Promise<unknown>}[]} */
  const started = []

  /**
   * @param {import('./setups.js').Hop} hop
   * @param {string} target
   * @returns {Promise<string>} host:port
   */
  async function start({ program, conf }, target) {
    const dir = await mkdtemp(join(yard, 'hop-'))
    for (const end of ['crt', 'key', 'pem']) await copyFile(join(yard, `tidemark.${end}`), join(dir, `tidemark.${end}`))
    const port = await freePort()
    const text = conf({ port, target, dir })
    const file = join(dir, `${program}.conf`)
    await writeFile(file, program === 'nginx' ? nginx(text) : text)
    const args = program === 'nginx' ? ['-e', 'stderr', '-p', dir, '-c', file] : ['-db', '-f', file]
    const child = spawn(program, args, { env, stdio: ['ignore', 'pipe', 'pipe'] })
    const exited = new Promise((resolve) => child.on('exit', resolve).on('error', resolve))
    started.push({ child, exited })
    let output = ''
    for (const stream of [child.stdout, child.stderr]) stream.on('data', (chunk) => (output += chunk))
    for (let tries = 0; tries < 250; tries++) {
      const socket = connect(port, '127.0.0.1')
      const there = await once(socket, 'connect').catch(() => undefined)
      socket.destroy()
      if (there) return `127.0.0.1:${port}`
      if (child.exitCode !== null) break
      await pause(20)
    }
    throw new Error(`${program} does not start:\n${output}\n${text}`)
  }

  return {
    /**
     * @param {import('./setups.js').Setup} setup
     * @param {string} target
     * @returns {Promise<string>} the url of the outermost proxy
     */
    async build({ hops, tls }, target) {
      for (const hop of hops) target = await start(hop, target)
      return `${tls ? 'https' : 'http'}://${target}`
    },
    async close() {
      for (const { child } of started) child.kill()
      await Promise.all(started.map(({ exited }) => exited))
      await rm(yard, { recursive: true, force: true })
    },
  }
}
