// What stands between pages and the server: how each proxy is set up. What docs/proxies.md recommends is read from
// there; the rest is what one meets.
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'

/**
 * @typedef {object} Place where a proxy is
 * @property {number} port it listens on, at 127.0.0.1
 * @property {string} target what it speaks to: host:port
 * @property {string} dir has its files, and `tidemark.crt`, `tidemark.key` and, both in one, `tidemark.pem`
 */
/**
 * @typedef {object} Hop
 * @property {'nginx' | 'haproxy'} program
 * @property {(place: Place) => string} conf
 */
/**
 * @typedef {object} Setup
 * @property {string} what
 * @property {Hop[]} hops from the server to the page
 * @property {import('../src/machine.js').Transport[]} settles what pages may end up with
 * @property {boolean} [tls]
 * @property {boolean} [caches] that its cache answers is looked at: one that does not would prove nothing
 */

export const DOCS = new URL('../../docs/proxies.md', import.meta.url)

const docs = [...readFileSync(DOCS, 'utf8').matchAll(/^```(?:nginx|haproxy)\n(.*?)^```$/gms)].map(([, text]) => text)
assert.equal(docs.length, 4, 'docs/proxies.md has a block for nginx, its TLS, haproxy, and its TLS')
const [NGINX, NGINX_TLS, HAPROXY, HAPROXY_TLS] = docs

/**
 * @param {string} text
 * @param {string | RegExp} from what must be there once, so that nothing is tested that was not meant
 * @param {string} to
 */
function swap(text, from, to) {
  assert.equal(text.split(from).length, 2, `once: ${from}\n${text}`)
  return text.replace(from, to)
}

/**
 * As documented, but for where things are.
 * @param {'nginx' | 'haproxy'} program
 * @param {string} text
 * @returns {Hop}
 */
const documented = (program, text) => ({
  program,
  conf({ port, target, dir }) {
    const here = swap(
      swap(text, '127.0.0.1:7333', target),
      /(?<=listen )(?:80|443)\b|(?<=bind ):(?:80|443)\b/,
      `127.0.0.1:${port}`,
    )
    return here.replaceAll('/etc/ssl', dir)
  },
})

/**
 * nginx as whoever knows nothing of Tidemark sets it up: one line, and perhaps a few more.
 * @param {string} [lines]
 * @param {string} [outside] the server
 * @returns {Hop}
 */
const bare = (lines = '', outside = '') => ({
  program: 'nginx',
  conf: ({ port, target }) => `
${outside}
server {
    listen 127.0.0.1:${port};
    location / {
        proxy_pass http://${target};
        ${lines}
    }
}
`,
})

/**
 * @param {string} timeout
 * @param {string} [lines] of its backend
 * @returns {Hop}
 */
const plain = (timeout, lines = '') => ({
  program: 'haproxy',
  conf: ({ port, target }) => `
defaults
    mode http
    timeout connect 5s
    timeout client ${timeout}
    timeout server ${timeout}
frontend web
    bind 127.0.0.1:${port}
    default_backend tidemark
backend tidemark
    server tidemark ${target}
    ${lines}
`,
})

/** The header with which the server asks for no buffering. */
const IGNORES = 'proxy_ignore_headers X-Accel-Buffering;'
/** Everything that was answered is answered again for 10 s, whatever the server said of it. */
const CACHE = `proxy_cache all;
        proxy_cache_key $request_uri;
        proxy_cache_valid 200 10s;
        proxy_ignore_headers Cache-Control Expires Vary X-Accel-Buffering;
        add_header X-Cache $upstream_cache_status;`

/** @type {Record<string, Setup>} */
export const setups = {
  'nginx-bare': { what: 'nginx, a bare `proxy_pass`', hops: [bare()], settles: ['sse'] },
  'nginx-buffers': {
    what: 'the same with `proxy_ignore_headers X-Accel-Buffering`: answers are held back until they are whole',
    hops: [bare(IGNORES)],
    settles: ['poll'],
  },
  'nginx-twice': {
    what: 'two bare ones in a row: the inner one eats that header',
    hops: [bare(), bare()],
    settles: ['poll'],
  },
  'nginx-cache': {
    what: 'a bare one with a cache that ignores `Cache-Control`',
    hops: [bare(CACHE, 'proxy_cache_path cache keys_zone=all:1m;')],
    settles: ['poll'],
    caches: true,
  },
  'nginx-hurry-buffers': {
    what: 'one that holds back, and gives up after 5 s of silence (`proxy_read_timeout 5s`)',
    hops: [bare(`${IGNORES} proxy_read_timeout 5s;`)],
    settles: ['poll'],
  },
  'nginx-hurry': {
    what: 'nginx as above, but with `proxy_read_timeout 5s`',
    hops: [documented('nginx', swap(NGINX, 'proxy_read_timeout 75s', 'proxy_read_timeout 5s'))],
    settles: ['websocket'],
  },
  'nginx-docs': { what: 'nginx as above', hops: [documented('nginx', NGINX)], settles: ['websocket'] },
  'nginx-docs-h2': {
    what: 'nginx as above, with TLS and HTTP/2',
    hops: [documented('nginx', swap(NGINX, '    listen 80;\n', NGINX_TLS))],
    settles: ['sse'],
    tls: true,
  },
  'haproxy-hurry': {
    what: 'haproxy with timeouts of 5 s, and nothing else',
    hops: [plain('5s')],
    settles: ['websocket'],
  },
  'haproxy-deletes': {
    what: 'haproxy that deletes `Upgrade`',
    hops: [plain('75s', 'http-request del-header Upgrade')],
    settles: ['sse'],
  },
  'haproxy-docs': { what: 'haproxy as above', hops: [documented('haproxy', HAPROXY)], settles: ['websocket'] },
  'haproxy-docs-h2': {
    what: 'haproxy as above, with TLS and HTTP/2',
    hops: [documented('haproxy', swap(HAPROXY, '    bind :80\n', HAPROXY_TLS))],
    settles: ['sse'],
    tls: true,
  },
}
