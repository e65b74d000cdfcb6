// Credentials that end, are renewed, taken back, or are somebody else's: what a user would lose by them.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { createClient as createCoreClient } from '../src/core.js'
import { createClient } from '../src/index.js'
import { FakeClock, turns } from './clock.js'
import { install } from './install.js'
import { change, live, open, Wire } from './wire.js'

/** @typedef {import('../src/client.js').Options} Options */
/** @typedef {import('../src/errors.js').TidemarkError} TidemarkError */
/** @typedef {import('../src/machine.js').Transport} Transport */

const TRANSPORTS = /** @type {const} */ (['sse', 'poll', 'websocket'])
const SECOND = 1000
const MINUTE = 60 * SECOND
const HOUR = 60 * MINUTE
const expired = { type: 'end', reason: 'expired' }
const revoked = { type: 'end', reason: 'revoked' }
/** What no token may be seen by. */
const CANARY = 'canary7f3a'

/** A token, as far as a client looks at it. @param {object} claims */
const jwt = (claims) => `e30.${Buffer.from(JSON.stringify(claims)).toString('base64url')}.${CANARY}`

/**
 * Whoever gives tokens. Each lives for so long; `cached`: the same one is given as long as it has so long to live.
 * @param {FakeClock} clock
 * @param {number} life ms
 */
function issuer(clock, life, cached = Infinity) {
  const it = {
    /** When each was asked for. @type {number[]} */
    asked: [],
    /** @type {string[]} */
    tokens: [],
    sub: 'ann',
    fails: false,
    ends: -Infinity,
    /** By how much its clock is ahead. */
    ahead: 0,
    getToken: async () => {
      it.asked.push(clock.now())
      if (it.fails) throw new TypeError('fetch failed')
      const now = clock.now() + it.ahead
      if (it.ends - now > cached) return it.tokens.at(-1)
      it.ends = now + life
      const claims = { sub: it.sub, iat: now / 1000, exp: it.ends / 1000, n: it.asked.length }
      it.tokens.push(jwt(claims))
      return it.tokens.at(-1)
    },
  }
  return it
}

/**
 * A client that is live at 1 by this transport, with a token.
 * @param {Transport | 'auto'} transport
 * @param {{life?: number, cached?: number, ahead?: number, chance?: number, core?: boolean}} [world]
 * @param {Partial<Options>} [options]
 */
async function setup(transport, { life = HOUR, cached, ahead = 0, chance = 0.5, core } = {}, options = {}) {
  const wire = new Wire()
  const clock = new FakeClock()
  clock.chance = chance
  const tokens = issuer(clock, life, cached)
  tokens.ahead = ahead
  const { fetch, WebSocket } = wire
  const { getToken } = tokens
  const client = (core ? createCoreClient : createClient)({
    url: 'http://tide.test',
    tenant: 'demo',
    transport,
    fetch,
    WebSocket,
    clock,
    getToken,
    ...options,
  })
  /** @type {TidemarkError[]} */
  const errors = []
  client.onError((error) => errors.push(error))
  const todos = client.collection('todos')
  todos.start()
  await turns()
  await wire.poll.reply(open, live(1))
  if (transport === 'websocket' || transport === 'auto') await wire.tickets[0].answer(200, { ticket: 'one' })
  if (transport !== 'poll') await wire.prove(transport === 'auto' ? 'websocket' : transport, 1)
  assert.equal(client.status.state, 'live')
  /** @type {string[]} */
  const states = []
  client.onStatus(({ state, reason }) => states.push(reason ? `${state}: ${reason}` : state))
  /** The frames that renewed the token of the socket. */
  const auths = () => wire.socket.sent.filter(({ type }) => type === 'auth')
  /** Time passes, and the server says that it is there. @param {number} ms */
  const pass = async (ms) => {
    for (let left = ms; left > 0; left -= 15 * SECOND) {
      await clock.advance(Math.min(left, 15 * SECOND))
      if (wire.held === 'websocket') await wire.socket.frames(live(1))
      else if (wire.held === 'sse') await wire.stream.frames(live(1))
      else if (wire.held === 'poll') await wire.poll.reply(open, live(1))
    }
  }
  return { wire, clock, tokens, client, errors, states, todos, auths, pass }
}

// In place.

for (const life of [10 * SECOND, MINUTE, 5 * MINUTE, HOUR, 30 * 24 * HOUR]) {
  for (const chance of [0, 0.999]) {
    test(`a page on a WebSocket does not lose it to a token of ${life / 1000} s: the next one is there in time (${chance})`, async () => {
      const { wire, clock, tokens, client, states, auths, pass } = await setup('websocket', { life, chance })
      const begun = clock.now()
      // One that lives longer than a timer can wait is not asked for at once, over and over.
      const end = begun + (life > HOUR ? MINUTE : 4 * life)
      while (clock.now() < end) await pass(Math.max(SECOND, Math.min(life, HOUR) / 240))
      if (life <= HOUR) {
        assert.ok(auths().length >= 4 && auths().length <= 7, `${auths().length} in four lives`)
        assert.deepEqual([wire.sockets.length, wire.tickets.length, states], [1, 1, []])
        tokens.asked.slice(1).forEach((at, i) => {
          const used = at - tokens.asked[i]
          assert.ok(used < life - 0.9 * Math.min(MINUTE, life / 10), `${used} ms`)
          assert.ok(used >= life / 2, `${used} ms`)
        })
        assert.deepEqual(
          auths().map(({ token }) => token),
          tokens.tokens.slice(1),
        )
      }
      assert.ok(tokens.asked.length <= 7)
      await client.close()
      assert.equal(clock.timers.size, 0, 'nothing is left running')
    })
  }
}

test('a page that is told done goes on, with what it followed and wrote before', async () => {
  const { wire, todos, tokens, client, states, errors, auths, pass } = await setup('websocket', { life: MINUTE })
  await pass(50 * SECOND)
  const [{ id }] = auths()
  const write = todos.put('a', { n: 1 })
  await turns()
  await wire.socket.frames({ type: 'done', id }, change(2, 'b', { n: 2 }), live(2))
  const [sent] = wire.socket.writes
  await wire.socket.frames({
    type: 'written',
    id: sent.id,
    cursor: 'aaaa-3',
    results: [{ id: sent.changes[0].id, key: 'a', seq: 3, status: 'ok', value: { n: 1 } }],
  })
  assert.equal((await write).seq, 3)
  assert.deepEqual([[...todos.rows.keys()].sort(), client.cursor('todos')], [['a', 'b'], 'aaaa-2'])
  assert.deepEqual([states, errors, tokens.asked.length, wire.held], [[], [], 2, 'websocket'])
})

test('whoever gives the same token until shortly before its end is asked a few times, and the feed goes on', async () => {
  for (const cached of [60, 20, 5]) {
    const { wire, tokens, states, auths, pass } = await setup('websocket', { life: HOUR, cached: cached * SECOND })
    await pass(HOUR)
    assert.deepEqual([auths().length, wire.sockets.length, states], [1, 1, []], `${cached}`)
    assert.ok(tokens.asked.length <= 5, `${tokens.asked.length}`)
  }
})

test('a token that can not be had for a moment is asked for again before the old one ends', async () => {
  const { wire, clock, tokens, client, states, auths, pass } = await setup('websocket', { life: 10 * MINUTE })
  tokens.fails = true
  await pass(10 * MINUTE - 20 * SECOND)
  assert.deepEqual([tokens.asked.length, auths().length], [2, 0])
  tokens.fails = false
  await pass(20 * SECOND)
  assert.deepEqual([auths().length, wire.sockets.length, client.status.state, states], [1, 1, 'live', []])
  // And one that can't be had at all is not asked for in a hot loop.
  tokens.fails = true
  const { length } = tokens.asked
  await clock.advance(1)
  await pass(HOUR)
  assert.ok(tokens.asked.length - length <= 5, `${tokens.asked.length - length}`)
})

test('while a token is slow to come nothing waits for it as long as the old one is good', async () => {
  /** @type {(token: string) => void} */
  let give = () => {}
  const clock = new FakeClock()
  let asked = 0
  const getToken = () => {
    const token = jwt({ exp: clock.now() / 1000 + 60, n: ++asked })
    return asked === 1 ? token : new Promise((resolve) => (give = resolve))
  }
  const { wire, todos } = await setup('sse', {}, { clock, getToken })
  for (let i = 0; i < 5; i++) {
    await clock.advance(10 * SECOND)
    await wire.stream.frames(live(1))
  }
  assert.equal(asked, 2)
  todos.put('a', { n: 1 })
  await turns()
  assert.equal(wire.posts.length, 1)
  give('late')
})

test('a token that says nothing, or nonsense, of its end is asked for once, and is good until the server says no', async () => {
  const now = new FakeClock().now() / 1000
  for (const token of [
    'opaque',
    'a.b.c',
    `a.${btoa('7')}.c`,
    jwt({}),
    jwt({ exp: 'soon' }),
    jwt({ exp: null }),
    jwt({ exp: now - 3600 }),
    jwt({ exp: now }),
    jwt({ exp: now + 1 }),
    jwt({ exp: 1e300 }),
    jwt({ exp: -1 }),
    jwt({ exp: now + 600, iat: now + 900 }),
  ]) {
    let asked = 0
    const getToken = () => {
      asked++
      return token
    }
    const { wire, states, pass } = await setup('websocket', {}, { getToken })
    await pass(HOUR)
    assert.deepEqual([asked, wire.sockets.length, states], [1, 1, []], token)
  }
})

test('a clock that is wrong by hours costs no storm of tokens, and one that is behind no connection', async () => {
  for (const ahead of [-2 * HOUR, -50 * SECOND, 2 * HOUR]) {
    const { wire, tokens, auths, pass } = await setup('websocket', { life: MINUTE, ahead })
    await pass(10 * MINUTE)
    assert.ok(tokens.asked.length < 100, `${ahead}: ${tokens.asked.length}`)
    if (ahead > 0) assert.deepEqual([auths().length > 9, wire.sockets.length], [true, 1])
  }
})

test('a token that is not taken in place costs one reconnect with another, and then the server has said no', async () => {
  for (const transport of /** @type {const} */ (['websocket', 'auto'])) {
    for (const code of ['unauthenticated', 'forbidden']) {
      const { wire, tokens, client, errors, states, auths, pass } = await setup(transport, { life: MINUTE })
      await pass(50 * SECOND)
      const [{ id }] = auths()
      const no = { code, status: code === 'forbidden' ? 403 : 401, detail: 'sign in' }
      await wire.socket.frames({ type: 'error', id, ...no })
      assert.deepEqual([wire.sockets[0].closed, tokens.asked.length, wire.tickets.length], [true, 3, 2])
      assert.equal(wire.tickets[1].bearer, `Bearer ${tokens.tokens[2]}`)
      assert.deepEqual([client.status.state, states.filter((s) => s !== 'live'), errors], ['live', [], []])
      await wire.tickets[1].answer(401, no)
      await wire.tickets.at(-1)?.answer(401, no)
      if (transport === 'auto') {
        await wire.poll.answer(401, no)
        await wire.poll.answer(401, no)
      }
      assert.deepEqual([client.status.state, errors.length], ['denied', 1])
      assert.ok(wire.tickets.length <= 3)
    }
  }
})

test('a server that can not check a token now keeps the page on the connection that it has', async () => {
  const { wire, client, errors, states, auths, pass } = await setup('websocket', { life: MINUTE })
  await pass(50 * SECOND)
  await wire.socket.frames({ type: 'error', id: auths()[0].id, status: 503, code: 'unavailable', detail: 'busy' })
  assert.deepEqual([client.status.state, states, errors, wire.held], ['live', [], [], 'websocket'])
})

test('a socket that opens while its token is renewed is told of the new one', async () => {
  const { wire, clock, tokens, client, auths, pass } = await setup('websocket', { life: MINUTE })
  await pass(40 * SECOND)
  await wire.socket.die()
  await clock.advance(500)
  await wire.tickets[1].answer(200, { ticket: 'two' })
  await clock.advance(9.5 * SECOND)
  assert.deepEqual([tokens.asked.length, wire.sockets.length], [2, 2])
  await wire.socket.open()
  assert.deepEqual(
    auths().map(({ token }) => token),
    [tokens.tokens[1]],
  )
  await client.close()
})

test('a page that follows nothing, or has left, asks for no tokens and keeps no process alive', async () => {
  const { clock, tokens, client, wire } = await setup('poll', { life: MINUTE })
  const todos = client.collection('todos')
  const undo = todos.subscribe(() => {})
  await client.close()
  undo()
  await clock.advance(HOUR)
  assert.deepEqual([tokens.asked.length, clock.timers.size], [1, 0])
  assert.equal(wire.held, '')

  const idle = new FakeClock()
  const other = issuer(idle, MINUTE)
  const { fetch } = new Wire()
  const writer = createClient({ url: 'http://tide.test', tenant: 'demo', fetch, clock: idle, getToken: other.getToken })
  const stop = writer.collection('todos').start()
  await turns()
  stop()
  await turns()
  await idle.advance(HOUR)
  assert.deepEqual([other.asked.length, idle.timers.size], [1, 0])
})

// At the end.

test('a feed that ends with its token goes on at once with the next one, and nothing flickers', async () => {
  for (const transport of TRANSPORTS) {
    const { wire, clock, tokens, client, errors, states, todos } = await setup(transport, { life: 2 * HOUR })
    await clock.advance(20 * SECOND)
    await wire.by(transport).frames(open, change(2, 'a', { n: 1 }), live(2), expired)
    assert.deepEqual([tokens.asked.length, wire.requests.at(-1)?.bearer], [2, `Bearer ${tokens.tokens[1]}`])
    if (transport === 'websocket') await wire.tickets[1].answer(200, { ticket: 'two' })
    else assert.deepEqual([...wire.feed.asked], [['todos', 'aaaa-2']])
    if (transport === 'poll') await wire.poll.reply(open, live(2))
    else await wire.prove(transport, 2)
    assert.deepEqual([client.status.state, states.filter((s) => s !== 'live'), errors], ['live', [], []])
    assert.deepEqual([todos.rows.size, client.status.transport], [1, transport])
  }
})

test('a feed whose next token ends it again soon is patient', async () => {
  const { wire, clock, client, states } = await setup('sse')
  await clock.advance(20 * SECOND)
  await wire.stream.frames(expired)
  // Each time it is live for a moment.
  let asked = 0
  for (let i = 0; i < 100; i++) {
    const { length } = wire.feeds
    await wire.feed.frames(open, live(1), expired)
    if (wire.feeds.length === length) await clock.advance(clock.next)
    asked++
  }
  assert.ok(clock.now() > 1_700_000_000_000 + 5 * MINUTE, `${asked} in ${clock.now() - 1_700_000_000_000} ms`)
  assert.ok(states.includes('offline: expired'))
  await client.close()
})

test('rows that take longer than a token to come do come', async () => {
  for (const transport of /** @type {const} */ (['sse', 'poll'])) {
    const wire = new Wire()
    const clock = new FakeClock()
    const tokens = issuer(clock, 10 * SECOND)
    const { fetch, WebSocket } = wire
    const { getToken } = tokens
    const client = createClient({
      url: 'http://tide.test',
      tenant: 'demo',
      transport,
      fetch,
      WebSocket,
      clock,
      getToken,
    })
    client.onError(() => {})
    client.collection('todos').start()
    await turns()
    for (let i = 1; i < 20; i++) {
      await wire.poll.frames(open, change(i, `${i}`, { i }))
      await clock.advance(9 * SECOND)
      await wire.poll.frames(expired)
      if (client.status.state === 'offline') await clock.advance(1000)
      assert.notEqual(client.status.state, 'denied')
      assert.deepEqual([...wire.poll.asked], [['todos', `aaaa-${i}`]])
    }
  }
})

test('who is revoked is not let in again with the same token, nor kept from trying another', async () => {
  for (const transport of /** @type {const} */ (['sse', 'poll', 'websocket', 'auto'])) {
    const by = transport === 'auto' ? 'websocket' : transport
    const { wire, clock, tokens, client, errors, todos, states } = await setup(transport, { cached: 0 })
    await wire.by(by).frames(open, revoked)
    await clock.advance(SECOND)
    const { length } = wire.requests
    assert.deepEqual([client.status.state, client.status.reason, tokens.asked.length], ['denied', 'revoked', 2])
    assert.deepEqual(
      [errors.length, errors[0].code, wire.held, wire.sockets.length],
      [1, 'revoked', '', by === 'websocket' ? 1 : 0],
    )
    await clock.advance(100 * SECOND)
    assert.equal(wire.requests.length, length, 'the server is left alone')
    // The app may want it tried nonetheless.
    todos.start()
    await turns()
    const last = () => /** @type {import('./wire.js').Request} */ (wire.requests.at(-1))
    assert.equal(last().bearer, `Bearer ${tokens.tokens[0]}`)
    const no = { code: 'unauthenticated', detail: 'the credential was revoked' }
    for (let i = 0; i < 6 && client.status.state !== 'denied'; i++) await last().answer(401, no)
    assert.equal(client.status.reason, 'unauthenticated')
    assert.equal(tokens.tokens.length, 1)
    tokens.ends = -Infinity
    client.setTransport('poll')
    await turns()
    await wire.poll.reply(open, live(1))
    assert.equal(tokens.tokens.length, 2)
    assert.equal(states.at(-1), 'live')
    await client.close()
  }
  for (const transport of TRANSPORTS) {
    const { wire, clock, tokens, client, states } = await setup(transport)
    await clock.advance(6 * SECOND)
    await wire.by(transport).frames(open, revoked)
    assert.equal(wire.requests.at(-1)?.bearer, `Bearer ${tokens.tokens[1]}`, 'another one is tried')
    assert.deepEqual([client.status.state, states.filter((s) => s !== 'live')], ['live', []])
    await client.close()
  }
})

test('a server that says when to come back is believed, and no token is asked for without need', async () => {
  for (const reason of ['revoked', 'expired', 'evicted', 'draining', 'slow']) {
    const { wire, clock, tokens, states } = await setup('sse')
    await wire.stream.frames({ type: 'end', reason, retry: 4000 })
    assert.deepEqual([states, clock.next], [[`offline: ${reason}`], 4250])
    await clock.advance(4250)
    assert.deepEqual([tokens.asked.length, wire.requests.at(-1)?.bearer], [1, `Bearer ${tokens.tokens[0]}`])
  }
})

test('a WebSocket that is closed for its credential gets another; for what it may not, the user is told', async () => {
  for (const transport of /** @type {const} */ (['websocket', 'auto'])) {
    const one = await setup(transport)
    await one.clock.advance(6 * SECOND)
    await one.wire.socket.die(4401, 'expired')
    assert.deepEqual([one.tokens.asked.length, one.wire.tickets.length, one.client.status.state], [2, 2, 'live'])

    const two = await setup(transport, { cached: 0 })
    await two.clock.advance(6 * SECOND)
    await two.wire.socket.die(4403, 'todos is not covered')
    const [error] = two.errors
    assert.deepEqual([two.client.status.state, two.client.status.reason], ['denied', 'forbidden'])
    assert.deepEqual([error.code, error.status, error.message], ['forbidden', 403, 'todos is not covered'])
    assert.equal(two.wire.held, '')

    const three = await setup(transport)
    await three.wire.socket.frames({ type: 'end', reason: 'evicted', retry: 60_000 })
    await three.wire.socket.die(4409, 'evicted')
    assert.deepEqual([three.states, three.tokens.asked.length], [['offline: evicted'], 1])
    assert.equal(three.clock.next, 60_250)
  }
})

test('a page that was refused is told which collection it was, and the others come back without it', async () => {
  const { wire, tokens, client, errors, states } = await setup('sse', { cached: 0 })
  const undo = client.collection('secrets').start()
  await turns()
  const no = { code: 'forbidden', status: 403, detail: 'secrets is not covered' }
  assert.ok(wire.feed.asked.has('secrets'))
  await wire.feed.answer(403, no)
  assert.deepEqual([client.status.state, client.status.reason, tokens.asked.length], ['denied', 'forbidden', 1])
  assert.deepEqual([errors.length, errors[0].code, errors[0].message], [1, 'forbidden', 'secrets is not covered'])
  undo()
  client.collection('todos').start()
  await turns()
  await wire.feed.frames(open, live(1))
  assert.equal(states.at(-1), 'live')
})

// Writes.

test('a write in the moment when the token ends is not taken back', async () => {
  for (const core of [false, true]) {
    const { wire, clock, todos, client, errors } = await setup('websocket', { core })
    await clock.advance(6 * SECOND)
    const write = todos.put('a', { n: 1 })
    await turns()
    const [{ id, changes }] = wire.socket.writes
    const no = { status: 401, code: 'unauthenticated', detail: 'the credential has expired' }
    await wire.socket.frames({ type: 'error', id, ...no }, expired)
    assert.equal(wire.posts.length, 1)
    assert.deepEqual(wire.post.body.changes, changes, 'under the same id')
    await wire.post.answer(200, {
      cursor: 'aaaa-2',
      results: [{ id: changes[0].id, key: 'a', seq: 2, status: 'ok', value: { n: 1 } }],
    })
    assert.equal((await write).seq, 2)
    assert.deepEqual([[...todos.rows.keys()], client.status.state, errors], [['a'], 'live', []])
  }
})

test('a server that is too busy for writes gets them later, in order, by whatever way they go', async () => {
  for (const transport of TRANSPORTS) {
    const { wire, clock, todos, pass } = await setup(transport)
    const writes = ['a', 'b', 'c'].map((key) => todos.put(key, { key }, { if: 0 }))
    await turns()
    const first = transport === 'websocket' ? wire.socket.writes[0] : wire.post.body
    if (transport === 'websocket') {
      await wire.socket.frames({ type: 'error', id: first.id, status: 429, code: 'too-many', retry: 20_000 })
    } else await wire.post.answer(429, { code: 'too-many', status: 429 }, { 'retry-after': '20' })
    const count = () => wire.posts.length + (wire.socket?.writes.length ?? 0)
    assert.equal(count(), 1)
    await pass(20_000)
    assert.equal(count(), 1, transport)
    await clock.advance(500)
    assert.equal(count(), 2)
    const keys = []
    for (let seq = 2; keys.length < 3; ) {
      const { changes } = wire.post.body
      const results = changes.map((/** @type {any} */ { id, key, value }) => ({
        id,
        key,
        value,
        seq: seq++,
        status: 'ok',
      }))
      keys.push(...results.map((/** @type {any} */ { key }) => key))
      await wire.post.answer(200, { cursor: `aaaa-${seq - 1}`, results })
      if (wire.socket && keys.length < 3) {
        const { id, changes: rest } = wire.socket.writes.at(-1)
        const more = rest.map((/** @type {any} */ one) => ({
          id: one.id,
          key: one.key,
          value: one.value,
          seq: seq++,
          status: 'ok',
        }))
        keys.push(...more.map((/** @type {any} */ { key }) => key))
        await wire.socket.frames({ type: 'written', id, cursor: `aaaa-${seq - 1}`, results: more })
      }
    }
    assert.deepEqual(keys, ['a', 'b', 'c'])
    await Promise.all(writes)
  }
})

test('requests that are refused together ask for one token together', async () => {
  const { wire, clock, todos, tokens } = await setup('poll')
  todos.put('a', { n: 1 })
  await turns()
  const [poll, post] = [wire.poll, wire.post]
  await poll.answer(401, { code: 'unauthenticated' })
  assert.equal(wire.poll.bearer, `Bearer ${tokens.tokens[1]}`)
  await post.answer(401, { code: 'unauthenticated' })
  assert.equal(wire.post.bearer, `Bearer ${tokens.tokens[1]}`)
  assert.equal(tokens.asked.length, 2)
  await clock.advance(1)
})

test('a page that slept past the end of its token asks for the next one before it is refused', async () => {
  const { wire, clock, tokens, client } = await setup('websocket', { life: MINUTE })
  clock.time += HOUR
  await clock.advance(1)
  assert.equal(wire.tickets[1].bearer, `Bearer ${tokens.tokens[1]}`)
  assert.equal(tokens.tokens.length, 2)
  await client.close()
})

// Tickets.

/** A client that follows todos, and is to do so over a WebSocket. Nothing is answered yet. */
async function follow() {
  const wire = new Wire()
  const clock = new FakeClock()
  const { fetch, WebSocket } = wire
  const getToken = () => 'token'
  const options = { url: 'http://tide.test', tenant: 'demo', fetch, WebSocket, clock, getToken }
  const client = createClient({ ...options, transport: 'websocket' })
  client.collection('todos').start()
  await turns()
  return { wire, clock, client }
}

test('a ticket that does not come is not waited for, and holds no connection that the feed needs', async () => {
  const { wire, clock, client } = await follow()
  for (let i = 0; i < 200; i++) {
    if (wire.held.includes('poll')) await wire.poll.reply(open, live(1))
    await clock.advance(SECOND)
    assert.ok(wire.tickets.filter(({ over }) => !over).length <= 1)
  }
  assert.ok(wire.tickets.length > 1 && wire.tickets.length < 20, `${wire.tickets.length}`)
  await client.close()
  assert.ok(wire.tickets.every(({ over }) => over))
})

test('a server whose sockets die again and again is not stormed for tickets', async () => {
  for (const transport of /** @type {const} */ (['websocket', 'auto'])) {
    const { wire, clock } = await setup(transport)
    const begun = clock.now()
    await wire.socket.die()
    for (let i = 0; i < 10_000 && clock.now() < begun + 10 * MINUTE; i++) {
      const asked = wire.tickets.find(({ over }) => !over)
      if (asked) await asked.answer(200, { ticket: 'next' })
      else if (wire.held.includes('poll')) await wire.poll.reply(open, live(1))
      else if (wire.held.includes('websocket')) await wire.socket.die()
      else if (wire.held.includes('sse')) await wire.stream.fail()
      else await clock.advance(Math.max(1, clock.next))
    }
    assert.ok(wire.tickets.length < 120, `${transport}: ${wire.tickets.length}`)
  }
})

test('a ticket that is refused for now is asked for later, and one that nobody knows of leaves the other transports', async () => {
  for (const [status, state] of /** @type {const} */ ([
    [404, 'denied'],
    [503, 'offline'],
    [429, 'offline'],
  ])) {
    const { wire, clock, client } = await follow()
    client.onError(() => {})
    await wire.poll.reply(open, live(1))
    await wire.tickets[0].answer(status, { code: 'x', status }, { 'retry-after': '7' })
    assert.equal(client.status.state, state)
    if (state === 'offline') assert.equal(clock.next, 7250)
    await client.close()
  }
})

// Secrets.

/** A browser around several tabs: its locks, and what they say to each other. @param {import('node:test').TestContext} t */
function browser(t) {
  /** @type {unknown[]} */
  const said = []
  /** @type {Set<Channel>} */
  const channels = new Set()
  class Channel {
    /** @type {any} */
    onmessage
    /** @param {string} name */
    constructor(name) {
      this.name = name
      said.push(name)
      channels.add(this)
    }
    /** @param {any} data */
    postMessage(data) {
      said.push(data)
      for (const other of channels) {
        if (other !== this && other.name === this.name)
          queueMicrotask(() => other.onmessage?.({ data: structuredClone(data) }))
      }
    }
    close() {
      channels.delete(this)
    }
  }
  /** The first of each line holds it. @type {Map<string, {start: () => void}[]>} */
  const lines = new Map()
  const locks = {
    /** @param {string} name @param {any} options @param {any} [fn] */
    request(name, options, fn = options) {
      said.push(name)
      const line = lines.get(name) ?? []
      lines.set(name, line)
      return new Promise((resolve, reject) => {
        const one = {
          start: () => {
            Promise.resolve(fn({})).then(resolve, reject).finally(leave)
          },
        }
        const leave = () => {
          const [first] = line
          if (!line.includes(one)) return
          line.splice(line.indexOf(one), 1)
          if (first === one) line[0]?.start()
        }
        options?.signal?.addEventListener('abort', () => {
          if (line[0] === one) return
          leave()
          reject(new DOMException('aborted', 'AbortError'))
        })
        line.push(one)
        if (line[0] === one) queueMicrotask(one.start)
      })
    },
  }
  /** @type {Map<string, string>} */
  const items = new Map()
  install(t, {
    navigator: { locks },
    BroadcastChannel: Channel,
    localStorage: {
      getItem: (/** @type {string} */ k) => items.get(k) ?? null,
      setItem: (/** @type {string} */ k, /** @type {string} */ v) => items.set(k, v),
    },
  })
  return { said, items }
}

/** A tab with a client that shares. @param {FakeClock} clock @param {Partial<Options>} options */
function tab(clock, options) {
  const wire = new Wire()
  const { fetch, WebSocket } = wire
  const client = createClient({
    url: 'http://tide.test',
    tenant: 'demo',
    transport: 'websocket',
    tabs: true,
    fetch,
    WebSocket,
    clock,
    ...options,
  })
  /** @type {TidemarkError[]} */
  const errors = []
  client.onError((error) => errors.push(error))
  const todos = client.collection('todos')
  todos.start()
  /** Plays the server for whoever asks it, until nobody does. */
  const serve = async () => {
    await turns()
    for (let i = 0; i < 5; i++) {
      if (wire.held.includes('poll')) await wire.poll.reply(open, live(1))
      const ticket = wire.tickets.find(({ over }) => !over)
      if (ticket) {
        await ticket.answer(200, { ticket: 'x' })
        await wire.prove('websocket', 1)
      }
    }
  }
  return { wire, client, errors, todos, serve }
}

test('no token is to be seen in a url, a store, a channel, a lock or an error', async (t) => {
  const { said, items } = browser(t)
  const clock = new FakeClock()
  const tokens = issuer(clock, MINUTE)
  const { getToken } = tokens
  const one = tab(clock, { getToken })
  await one.serve()
  const two = tab(clock, { getToken })
  await two.serve()
  await clock.advance(50 * SECOND)
  one.todos.put('a', { n: 1 }).catch((error) => one.errors.push(error))
  two.todos.put('b', { n: 1 }).catch((error) => two.errors.push(error))
  await turns()
  for (const { wire } of [one, two]) {
    for (const post of wire.posts) await post.answer(403, { code: 'forbidden', detail: 'no', status: 403 })
    for (const { writes } of wire.sockets) {
      for (const { id } of writes)
        await wire.socket.frames({ type: 'error', id, code: 'forbidden', detail: 'no', status: 403 })
    }
  }
  await one.wire.socket.die(4403, 'no')
  await one.serve()
  await clock.advance(SECOND)
  // What fetch itself says of what is no header.
  const fetch = (/** @type {any} */ url, /** @type {any} */ init) => globalThis.fetch(url, init)
  for (const bad of [`${CANARY}\u{1f511}`, `${CANARY}\n${CANARY}`, /** @type {any} */ ({ access_token: CANARY })]) {
    for (const create of [createClient, createCoreClient]) {
      const client = create({
        url: 'http://127.0.0.1:9',
        tenant: 'demo',
        clock,
        fetch,
        tabs: false,
        getToken: () => bad,
      })
      client.onError((error) => one.errors.push(error))
      client.collection('todos').start()
      await turns()
      assert.equal(client.status.state, 'denied', 'and the user is told')
      const write = client.write([{ collection: 'todos', op: 'put', key: 'a', value: {} }])
      write.catch((error) => one.errors.push(error))
      await turns()
      await client.close()
    }
  }
  const urls = [one, two].flatMap(({ wire }) => [...wire.requests, ...wire.sockets].map(({ url }) => url.href))
  const texts = [...urls, ...items.keys(), ...items.values(), ...said.map((what) => JSON.stringify(what))]
  const errors = [...one.errors, ...two.errors].map((error) => `${error} ${error.stack} ${JSON.stringify(error)}`)
  assert.ok(errors.length > 4 && said.length > 10 && items.size > 0 && tokens.tokens.length > 1)
  const seen = [...texts, ...errors].filter(
    (text) => text.includes(CANARY) || tokens.tokens.some((token) => text.includes(token)),
  )
  assert.deepEqual(seen, [])
  // But the server did see it.
  assert.ok(one.wire.tickets[0].bearer?.includes(CANARY))
})

// Tabs.

test('the tab that takes over the connection brings a token of its own, in time, and renews it', async (t) => {
  browser(t)
  const clock = new FakeClock()
  const first = issuer(clock, MINUTE)
  const second = issuer(clock, MINUTE)
  const one = tab(clock, { getToken: first.getToken })
  await one.serve()
  const two = tab(clock, { getToken: second.getToken })
  await two.serve()
  assert.deepEqual([one.wire.held, two.wire.held, two.client.status.state], ['websocket', '', 'live'])
  for (let i = 0; i < 20; i++) {
    await clock.advance(10 * SECOND)
    await one.wire.socket.frames(live(1))
  }
  const auths = (/** @type {typeof one} */ { wire }) => wire.socket.sent.filter(({ type }) => type === 'auth').length
  assert.ok(auths(one) >= 3)
  assert.equal(second.asked.length, 1, 'who does not lead needs no token')
  await one.client.close()
  await two.serve()
  await clock.advance(SECOND)
  await two.serve()
  assert.deepEqual([two.wire.held, two.client.status.state], ['websocket', 'live'])
  assert.equal(two.wire.requests[0].bearer, `Bearer ${second.tokens[1]}`, 'not with one that is over')
  for (let i = 0; i < 20; i++) {
    await clock.advance(10 * SECOND)
    await two.wire.socket.frames(live(1))
  }
  assert.ok(auths(two) >= 3)
  assert.deepEqual([two.errors, two.client.status.state], [[], 'live'])
  await two.client.close()
})

test('a tab whose user changes brings nobody the rows of another', async (t) => {
  const { said } = browser(t)
  const clock = new FakeClock()
  const first = issuer(clock, MINUTE)
  const second = issuer(clock, MINUTE)
  const one = tab(clock, { getToken: first.getToken })
  await one.serve()
  const two = tab(clock, { getToken: second.getToken })
  await two.serve()
  // In one tab somebody else signs in, and the app keeps its client.
  first.sub = 'bob'
  for (let i = 0; i < 5; i++) {
    await clock.advance(10 * SECOND)
    await one.wire.socket.frames(live(1))
  }
  assert.equal(first.tokens.length, 2)
  assert.deepEqual(
    one.wire.socket.sent.filter(({ type }) => type === 'auth'),
    [],
    'not on this connection',
  )
  await one.wire.socket.frames(expired)
  await clock.advance(SECOND)
  await turns()
  assert.deepEqual([one.client.status.state, one.errors.length, one.errors[0]?.code], ['denied', 1, 'forbidden'])
  assert.equal(
    one.wire.requests.some(({ bearer }) => first.tokens.slice(1).some((token) => bearer?.includes(token))),
    false,
  )
  // A third tab that is his has nothing to do with these.
  const before = said.length
  const three = tab(clock, { getToken: issuer(clock, MINUTE).getToken, user: 'bob' })
  await three.serve()
  assert.equal(three.wire.held, 'websocket')
  assert.ok(said.length > before)
  // When he leaves, the other goes on.
  await one.client.close()
  await two.serve()
  await clock.advance(SECOND)
  await two.serve()
  assert.deepEqual([two.wire.held, two.client.status.state], ['websocket', 'live'])
  await two.client.close()
  await three.client.close()
})

test('what getToken throws is told once, however often it is asked', async () => {
  const wire = new Wire()
  const clock = new FakeClock()
  let fails = true
  const getToken = async () => {
    if (fails) throw new Error('no session')
    return 'opaque'
  }
  const client = createClient({
    url: 'http://tide.test',
    tenant: 'demo',
    transport: 'poll',
    fetch: wire.fetch,
    clock,
    getToken,
  })
  /** @type {string[]} */
  const errors = []
  client.onError(({ detail }) => errors.push(detail))
  client.collection('todos').start()
  await clock.advance(60_000)
  assert.deepEqual([errors, wire.polls.length, client.status.state], [['Error: no session'], 0, 'offline'])
  fails = false
  await clock.advance(60_000)
  assert.ok(wire.polls.length > 0)
  assert.equal(errors.length, 1)
  await client.close()
})
