import assert from 'node:assert/strict'
import { test } from 'node:test'
import { createClient, TidemarkError } from '../src/index.js'
import { FakeClock, turns } from './clock.js'
import { change, live, next, open, Wire } from './wire.js'

/** @typedef {import('../src/client.js').Options} Options */

/**
 * A client whose network and time are in the test's hands.
 * @param {import('../src/machine.js').Transport} transport
 * @param {Partial<Options>} [options]
 */
function setup(transport, options = {}) {
  const wire = new Wire()
  const clock = new FakeClock()
  const { fetch, WebSocket } = wire
  const client = createClient({
    url: 'http://tide.test/base/',
    tenant: 'demo',
    transport,
    fetch,
    WebSocket,
    clock,
    ...options,
  })
  /** @type {TidemarkError[]} */
  const errors = []
  client.onError((error) => errors.push(error))
  /** @type {string[]} */
  const states = []
  client.onStatus(({ state, reason }) => states.push(reason ? `${state}: ${reason}` : state))
  const todos = client.collection('todos')
  /** @type {string[]} */
  const told = []
  const follow = async () => {
    const undo = todos.subscribe(({ changes }) => told.push(changes.map(({ op, key }) => `${op} ${key}`).join(', ')))
    await turns()
    return undo
  }
  return { wire, clock, client, errors, states, todos, told, follow }
}

test('nothing is asked of the network before something is followed, and nothing after it is left', async () => {
  const { wire, client, follow } = setup('sse')
  await turns()
  assert.equal(wire.requests.length, 0)
  assert.deepEqual([client.status.state, client.status.reason], ['offline', 'idle'])
  const undo = await follow()
  const { url, init } = wire.feed
  assert.equal(url.href.split('?')[0], 'http://tide.test/base/v1/demo/feed')
  assert.equal(url.searchParams.get('transport'), 'sse')
  assert.equal(init.cache, 'no-store')
  assert.equal(wire.feed.sse, true)
  assert.equal(wire.unbound, true, 'fetch must not be called as a method')
  undo()
  await turns()
  assert.equal(wire.feed.aborted, true)
  assert.deepEqual([client.status.state, client.status.reason], ['offline', 'idle'])
})

test('a page that mounts, unmounts and mounts again connects once', async () => {
  const { wire, client } = setup('sse')
  const undo = ['a', 'b', 'a', 'projects/7/todos'].map((name) => client.collection(name).subscribe(() => {}))
  undo[0]()
  undo[1]()
  const again = client.collection('b').start()
  await turns()
  assert.equal(wire.feeds.length, 1)
  assert.deepEqual([...wire.feed.asked.keys()].sort(), ['a', 'b', 'projects/7/todos'])
  for (const stop of [undo[1], undo[2], undo[2], undo[3], again]) stop()
  await turns()
  assert.equal(wire.feed.aborted, true)
})

test('a name with slashes is asked for as it is', async () => {
  const { wire, client } = setup('poll')
  client.collection('projects/7/todos').start()
  await turns()
  assert.match(wire.feed.url.search, /c=projects%2F7%2Ftodos(&|$)/)
})

test('the status tells the way to live, on a stream', async () => {
  const { wire, client, clock, states, follow } = setup('sse')
  await follow()
  await wire.feed.send({ ...open, heartbeat: 10 })
  await wire.feed.send(change(1, 'a', { n: 1 }))
  clock.time += 1000
  await wire.feed.send(live(4))
  assert.deepEqual(states, ['connecting', 'catching-up', 'live'])
  assert.deepEqual(
    { ...client.status },
    { state: 'live', transport: 'sse', cursor: 'aaaa-4', since: clock.time, reason: '' },
  )
  const { status } = client
  await wire.feed.send(change(5, 'a', { n: 5 }), live(9))
  assert.equal(client.status, status, 'the same object while nothing but the cursor changes')
  assert.equal(status.cursor, 'aaaa-9')
  assert.equal(client.cursor('todos'), 'aaaa-9')
})

test('subscribers are told once for all that came together, after all rows of all collections are in place', async () => {
  const { wire, client, todos } = setup('sse')
  const lists = client.collection('lists')
  /** @type {string[]} */
  const seen = []
  const look = (/** @type {string} */ who) => () =>
    seen.push(`${who} ${todos.rows.size} ${lists.rows.size} ${client.status.state}`)
  todos.subscribe(look('todos'))
  lists.subscribe(look('lists'))
  client.onStatus(({ state }) => state === 'live' && seen.push(`live ${todos.rows.size} ${lists.rows.size}`))
  await turns()
  await wire.feed.send(
    open,
    change(1, 'a', { n: 1 }),
    change(2, 'b', { n: 2 }, { more: true }),
    change(3, 'x', { n: 3 }, { collection: 'lists' }),
    live(3),
  )
  assert.deepEqual(seen, ['todos 2 1 connecting', 'lists 2 1 connecting', 'live 2 1'])
  assert.equal(todos.version, 1)
})

test('letters that the network cuts in two arrive whole', async () => {
  for (const transport of /** @type {const} */ (['sse', 'poll'])) {
    const { wire, todos, follow } = setup(transport)
    await follow()
    const frames = [open, change(1, 'ключ🌊', { title: 'молоко 🥛' }), live(1)]
    const text = frames
      .map((f) => (transport === 'sse' ? `data: ${JSON.stringify(f)}\r\n\r\n` : `${JSON.stringify(f)}\n`))
      .join('')
    for (const byte of new TextEncoder().encode(text)) wire.feed.write(Uint8Array.of(byte))
    await wire.feed.end()
    await turns()
    assert.deepEqual([...todos.rows], [['ключ🌊', { title: 'молоко 🥛' }]])
  }
})

test('a poll asks again at once after next, waits only when live, and stays live between two answers', async () => {
  const { wire, clock, client, states, follow } = setup('poll')
  await follow()
  assert.equal(wire.feed.url.searchParams.get('wait'), '0')
  await wire.feed.send(open, change(1, 'a', { n: 1 }), next(1))
  await wire.feed.end()
  assert.equal(wire.feeds.length, 2)
  assert.deepEqual([...wire.feed.asked], [['todos', 'aaaa-1']])
  assert.equal(wire.feed.url.searchParams.get('wait'), '0')
  await wire.feed.send(open, change(2, 'b', { n: 2 }), live(2))
  await wire.feed.end()
  assert.equal(wire.feeds.length, 3)
  assert.equal(wire.feed.url.searchParams.get('wait'), '25')
  assert.deepEqual([...wire.feed.asked], [['todos', 'aaaa-2']])
  for (let i = 0; i < 3; i++) {
    await clock.advance(25_000)
    await wire.feed.send(open, live(3 + i))
    await wire.feed.end()
  }
  assert.equal(wire.feeds.length, 6)
  assert.equal(client.cursor('todos'), 'aaaa-5')
  assert.deepEqual(states, ['connecting', 'catching-up', 'live'])
})

test('a poll that is cut off keeps its whole lines, and goes on from there', async () => {
  const { wire, clock, todos, follow } = setup('poll')
  await follow()
  await wire.feed.send(open, change(1, 'a', { n: 1 }))
  await wire.feed.write(JSON.stringify(change(2, 'b', { n: 2 })).slice(0, -1))
  await wire.feed.fail()
  assert.deepEqual([...todos.rows], [['a', { n: 1 }]])
  await clock.advance(500)
  assert.deepEqual([...wire.feed.asked], [['todos', 'aaaa-1']])
  await wire.feed.send(open, change(2, 'b', { n: 2 }))
  await wire.feed.end()
  assert.equal(wire.feeds.length, 2, 'an answer without live or next is a cut-off one')
  assert.deepEqual([...todos.rows.keys()], ['a', 'b'])
})

test('frames that nobody knows yet may follow the last one of a poll', async () => {
  const { wire, client, follow } = setup('poll')
  await follow()
  await wire.feed.send(open, live(1), { type: 'sparkle' })
  await wire.feed.end()
  assert.deepEqual([client.status.state, wire.feeds.length], ['live', 2])
  await wire.feed.write('\n')
  await wire.feed.end()
  assert.equal(client.status.reason, 'cut off', 'what the answer before came to does not count for this one')
})

test('a poll that is answered at once with nothing new is not asked again at once', async () => {
  const { wire, clock, states, follow } = setup('poll')
  await follow()
  for (let i = 1; i < 4; i++) {
    // The third one brings what the second has brought.
    await wire.feed.send(open, change(Math.min(i, 2), 'a', { n: i }), live(Math.min(i, 2)))
    await wire.feed.end()
  }
  assert.equal(wire.feeds.length, 3)
  assert.equal(states.at(-1), 'offline: nothing new')
  assert.ok(clock.next >= 200)
})

test('a connection that says nothing for 2.5 heartbeats is given up, whatever it still claims to be', async () => {
  const { wire, clock, states, follow } = setup('websocket')
  await follow()
  await wire.socket.frames({ ...open, heartbeat: 4 }, live(1))
  for (let i = 0; i < 5; i++) {
    await clock.advance(4000)
    await wire.socket.frames(live(2 + i))
  }
  await clock.advance(9_999)
  assert.equal(wire.sockets.length, 1)
  await clock.advance(1)
  assert.equal(wire.socket.closed, true)
  assert.equal(states.at(-1), 'offline: silent')
  await clock.advance(500)
  assert.equal(wire.sockets.length, 2)
  assert.deepEqual([...wire.socket.asked], [['todos', 'aaaa-6']])
})

test('an event stream that sends only comments is silent', async () => {
  const { wire, clock, client, follow } = setup('sse', { heartbeat: 3 })
  await follow()
  assert.equal(wire.feed.url.searchParams.get('heartbeat'), '3')
  await wire.feed.send({ ...open, heartbeat: 3 })
  await clock.advance(5000)
  await wire.feed.write(': still here\n\n')
  await clock.advance(2500)
  assert.equal(wire.feed.aborted, true)
  assert.equal(client.status.reason, 'silent')
})

test('a held poll is not taken for a dead one', async () => {
  const { wire, clock, client, follow } = setup('poll', { heartbeat: 3 })
  await follow()
  await wire.feed.send({ ...open, heartbeat: 3 }, live(1))
  await wire.feed.end()
  await clock.advance(30_000)
  assert.deepEqual([client.status.state, wire.feed.aborted], ['live', false])
  await clock.advance(5000)
  assert.deepEqual([client.status.state, wire.feeds[1].aborted], ['offline', true])
})

test('after a loss the client comes back by cursor, later each time, and at once after good times', async () => {
  const { wire, clock, client, states, follow } = setup('sse')
  await follow()
  await wire.feed.send(open, change(7, 'a', { n: 7 }), live(8))
  await clock.advance(6000)
  await wire.feed.end()
  assert.deepEqual([states.at(-1), clock.next], ['offline: ended', 250])
  for (const delay of [250, 500, 1000, 2000, 4000, 8000, 15_000, 15_000]) {
    assert.equal(clock.next, delay)
    await clock.advance(delay)
    assert.deepEqual([...wire.feed.asked], [['todos', 'aaaa-8']])
    await wire.feed.fail()
  }
  assert.equal(states.at(-1), 'offline: unavailable')
  await clock.advance(15_000)
  await wire.feed.send(open, live(9))
  assert.equal(client.status.state, 'live')
  await clock.advance(6000)
  await wire.feed.fail()
  assert.equal(clock.next, 250)
})

test('a server that is busy is left alone for as long as it asks', async () => {
  const { wire, clock, errors, states, follow } = setup('sse')
  await follow()
  await wire.feed.answer(503, { code: 'unavailable', detail: 'draining' }, { 'Retry-After': '7' })
  assert.deepEqual([states.at(-1), clock.next], ['offline: unavailable', 7250])
  await clock.advance(7250)
  await wire.feed.answer(429, 'too many', { 'Retry-After': 'Wed, 21 Oct 2026 07:28:00 GMT' })
  assert.equal(clock.next, 500)
  await clock.advance(500)
  await wire.feed.answer(502, '<html>Bad Gateway</html>')
  assert.equal(clock.next, 1000)
  assert.deepEqual(errors, [])
})

test('an answer that will not change ends the feed with an error that says why, and start tries again', async () => {
  const { wire, clock, client, errors, todos, follow } = setup('sse')
  await follow()
  await wire.feed.answer(403, {
    code: 'forbidden',
    detail: 'todos is not covered: ask for a token that covers it',
    status: 403,
  })
  assert.deepEqual([client.status.state, client.status.reason, clock.next], ['closed', 'forbidden', Infinity])
  const [error] = errors
  assert.ok(error instanceof TidemarkError && error instanceof Error)
  assert.deepEqual(
    [error.code, error.status, error.message],
    ['forbidden', 403, 'todos is not covered: ask for a token that covers it'],
  )
  await clock.advance(100_000)
  assert.equal(wire.feeds.length, 1)
  todos.start()
  await turns()
  assert.equal(wire.feeds.length, 2)
  await wire.feed.answer(404, '<html>not here</html>')
  assert.deepEqual([errors[1].code, errors[1].status], ['refused', 404])
  client.setTransport('sse')
  await turns()
  assert.equal(wire.feeds.length, 3)
})

test('the last word of the server is heard: come back then, or not unchanged', async () => {
  const { wire, clock, client, errors, states, follow } = setup('websocket')
  await follow()
  await wire.socket.frames(
    open,
    live(1),
    { type: 'end', reason: 'draining', retry: 3000 },
    change(2, 'after the end', { n: 2 }),
  )
  assert.deepEqual([states.at(-1), clock.next, errors.length], ['offline: draining', 3250, 0])
  assert.equal(client.collection('todos').rows.size, 0)
  await clock.advance(3250)
  await wire.socket.frames(open, { type: 'end', reason: 'expired' })
  assert.deepEqual([states.at(-1), clock.next], ['closed: expired', Infinity])
  assert.equal(errors[0].code, 'expired')
  assert.equal(wire.socket.closed, true)
  await wire.socket.die()
  assert.equal(wire.requests.length, 0, 'a socket that was given up is not asked why')
})

test('what is not JSON on the wire costs one connection and is reported, and the rows before it count', async () => {
  for (const transport of /** @type {const} */ (['sse', 'poll', 'websocket'])) {
    const { wire, clock, errors, states, todos, follow } = setup(transport)
    await follow()
    const good = [JSON.stringify(open), JSON.stringify(change(1, 'a', { n: 1 }))]
    const all = [...good, '{"type":"change","seq":2', JSON.stringify(change(3, 'c', { n: 3 }))]
    if (transport === 'websocket') await wire.socket.message(all.join('\n'))
    else await wire.feed.write(all.map((l) => (transport === 'sse' ? `data: ${l}\n\n` : `${l}\n`)).join(''))
    assert.deepEqual([...todos.rows.keys()], ['a'])
    assert.deepEqual([errors.length, errors[0].code, states.at(-1)], [1, 'bad-frame', 'offline: bad-frame'])
    assert.ok(clock.next <= 250)
    await clock.advance(500)
    assert.deepEqual([...(transport === 'websocket' ? wire.socket : wire.feed).asked], [['todos', 'aaaa-1']])
  }
})

test('a page of a captive portal is no feed', async () => {
  for (const transport of /** @type {const} */ (['sse', 'poll'])) {
    const { wire, clock, client, follow } = setup(transport)
    await follow()
    await wire.feed.answer(200, '<!doctype html>\n<title>Welcome to the hotel</title>\n')
    assert.equal(client.status.state, 'offline')
    assert.ok(clock.next > 0)
    await clock.advance(500)
    await wire.feed.answer(204)
    assert.equal(client.status.state, 'offline')
    assert.ok(clock.next > 0)
  }
})

test('a binary message is reported and otherwise ignored', async () => {
  const { wire, client, errors, follow } = setup('websocket')
  await follow()
  await wire.socket.frames(open, live(1))
  await wire.socket.message(new ArrayBuffer(3))
  assert.equal(errors[0].code, 'bad-frame')
  await wire.socket.frames(change(2, 'a', { n: 2 }))
  assert.deepEqual([client.status.state, client.collection('todos').rows.size], ['live', 1])
})

test('frames of a kind that nobody knows yet are ignored on every transport', async () => {
  const { wire, client, errors, follow } = setup('websocket')
  await follow()
  await wire.socket.frames(open, { type: 'tick' }, { type: 'sparkle', id: '1' }, live(1))
  assert.deepEqual([client.status.state, errors], ['live', []])
})

test('a WebSocket that the server refuses says why, like any other request', async () => {
  const { wire, clock, client, errors, follow } = setup('websocket')
  await follow()
  assert.equal(wire.socket.url.protocol, 'ws:')
  assert.equal(wire.socket.url.searchParams.get('transport'), 'websocket')
  await wire.socket.die()
  assert.equal(wire.feeds.length, 1)
  assert.deepEqual([wire.feed.url.searchParams.get('transport'), wire.feed.url.searchParams.get('wait')], ['poll', '0'])
  await wire.feed.answer(401, { code: 'unauthenticated', detail: 'sign in' })
  assert.deepEqual([client.status.state, errors[0].code, clock.next], ['closed', 'unauthenticated', Infinity])
})

test('a WebSocket that the network swallows is tried again, and the status says that it is the WebSocket', async () => {
  const { wire, clock, client, errors, follow } = setup('websocket')
  await follow()
  await wire.socket.die()
  await wire.feed.send(open, change(1, 'a', { n: 1 }), next(1))
  await wire.feed.end()
  assert.deepEqual([client.status.state, client.status.reason, errors], ['offline', 'no websocket', []])
  assert.equal(clock.next, 250)
  await clock.advance(250)
  await wire.socket.die()
  await wire.feed.fail()
  assert.deepEqual([client.status.reason, wire.sockets.length], ['unavailable', 2])
})

test('a WebSocket that is closed for a reason that stays is not opened again', async () => {
  for (const [code, state] of /** @type {const} */ ([
    [4401, 'closed'],
    [4403, 'closed'],
    [4400, 'closed'],
    [1012, 'offline'],
    [1006, 'offline'],
    [4408, 'offline'],
  ])) {
    const { wire, client, errors, follow } = setup('websocket')
    await follow()
    await wire.socket.frames(open, live(1))
    await wire.socket.die(code, 'because')
    assert.equal(client.status.state, state, `${code}`)
    assert.equal(errors.length, state === 'closed' ? 1 : 0)
    if (errors[0]) assert.deepEqual([errors[0].status, errors[0].message], [code - 4000, 'because'])
  }
})

test('without a WebSocket in this place the error says what to do', async () => {
  const { client, errors, follow } = setup('websocket', { WebSocket: undefined })
  const { WebSocket } = globalThis
  if (WebSocket) return
  await follow()
  assert.equal(client.status.state, 'closed')
  assert.match(errors[0].message, /give a WebSocket/)
  client.setTransport('poll')
  await turns()
  assert.equal(client.status.state, 'connecting')
})

test('on an open WebSocket a collection more or less costs no connection', async () => {
  const { wire, client, states, follow } = setup('websocket')
  const undo = await follow()
  await wire.socket.frames(open, live(5))
  const lists = client.collection('lists')
  const leave = lists.start()
  await turns()
  const [subscribe] = wire.socket.sent
  assert.deepEqual({ ...subscribe, id: 0 }, { type: 'subscribe', id: 0, collections: [{ name: 'lists' }] })
  assert.equal(client.status.state, 'catching-up')
  await wire.socket.frames(live(6))
  assert.equal(client.status.state, 'catching-up', 'a live that was sent before says nothing of the new one')
  await wire.socket.frames({ type: 'done', id: subscribe.id }, change(3, 'x', { n: 3 }, { collection: 'lists' }))
  assert.equal(client.status.state, 'catching-up')
  await wire.socket.frames(live(6))
  assert.equal(client.status.state, 'live')
  assert.deepEqual([...lists.rows.keys()], ['x'])
  leave()
  await turns()
  const unsubscribe = wire.socket.sent.at(-1)
  assert.deepEqual({ ...unsubscribe, id: 0 }, { type: 'unsubscribe', id: 0, collections: ['lists'] })
  lists.start()
  await turns()
  const again = wire.socket.sent.at(-1)
  assert.deepEqual(again.collections, [{ name: 'lists', cursor: 'aaaa-6' }])
  // Still of the first subscription: the second brings it again.
  await wire.socket.frames(change(7, 'y', { n: 7 }, { collection: 'lists' }), { type: 'done', id: unsubscribe.id })
  assert.deepEqual([...lists.rows.keys()], ['x'])
  await wire.socket.frames({ type: 'done', id: again.id }, change(7, 'y', { n: 7 }, { collection: 'lists' }), live(7))
  assert.deepEqual([...lists.rows.keys()], ['x', 'y'])
  assert.deepEqual([wire.sockets.length, states.filter((s) => s.startsWith('connecting')).length], [1, 1])
  undo()
  await turns()
  assert.deepEqual(wire.socket.sent.at(-1).collections, ['todos'])
})

test('what is followed while the WebSocket opens is subscribed as soon as it is open', async () => {
  const { wire, client, follow } = setup('websocket')
  await follow()
  client.collection('lists').start()
  await turns()
  assert.deepEqual([wire.sockets.length, wire.socket.sent], [1, []])
  await wire.socket.frames(open, live(1))
  assert.deepEqual(
    wire.socket.sent.map(({ type, collections }) => [type, collections]),
    [['subscribe', [{ name: 'lists' }]]],
  )
  assert.equal(client.status.state, 'catching-up')
  await wire.socket.frames({ type: 'done', id: wire.socket.sent[0].id }, live(1))
  assert.equal(client.status.state, 'live')
})

test('a collection that may not be followed ends the feed on a WebSocket too, and a busy server is left alone', async () => {
  for (const [status, state] of /** @type {const} */ ([
    [403, 'closed'],
    [503, 'offline'],
  ])) {
    const { wire, client, errors, follow } = setup('websocket')
    await follow()
    await wire.socket.frames(open, live(1))
    client.collection('secrets').start()
    await turns()
    const { id } = wire.socket.sent[0]
    await wire.socket.frames({ type: 'error', id, status, code: 'some-code', detail: 'leave secrets alone' })
    assert.deepEqual([client.status.state, client.status.reason], [state, 'some-code'])
    assert.deepEqual(
      errors.map(({ message }) => message),
      status === 403 ? ['leave secrets alone'] : [],
    )
  }
})

test('an error frame that answers nothing of ours is reported', async () => {
  const { wire, client, errors, follow } = setup('websocket')
  await follow()
  await wire.socket.frames(open, live(1), { type: 'error', status: 400, code: 'bad-request', detail: 'what was that' })
  assert.deepEqual([client.status.state, errors[0].code], ['live', 'bad-request'])
})

test('on a stream or a poll the feed is opened anew with what is followed now, and nothing in between is missed', async () => {
  for (const transport of /** @type {const} */ (['sse', 'poll'])) {
    const { wire, client, follow } = setup(transport)
    await follow()
    await wire.feed.send(open, change(4, 'a', { n: 4 }), live(5))
    const leave = client.collection('lists').start()
    await turns()
    assert.equal(wire.feeds[0].aborted, true)
    assert.deepEqual(
      [...wire.feed.asked],
      [
        ['todos', 'aaaa-5'],
        ['lists', undefined],
      ],
    )
    await wire.feed.send(open, change(2, 'x', { n: 2 }, { collection: 'lists' }), live(6))
    leave()
    await turns()
    assert.deepEqual([...wire.feed.asked], [['todos', 'aaaa-6']])
    client.collection('lists').start()
    await turns()
    assert.deepEqual(
      [...wire.feed.asked],
      [
        ['todos', 'aaaa-6'],
        ['lists', 'aaaa-6'],
      ],
    )
  }
})

test('changing the transport carries the cursor over, also in the middle of a reset', async () => {
  const { wire, client, todos, told, follow } = setup('websocket')
  await follow()
  await wire.socket.frames(open, change(1, 'a', { n: 1 }), change(2, 'b', { n: 2 }), live(2))
  client.setTransport('sse')
  assert.equal(wire.socket.closed, true)
  assert.deepEqual([...wire.feed.asked], [['todos', 'aaaa-2']])
  await wire.feed.send(open, { type: 'reset', collections: ['todos'], reason: 'expired' }, change(8, 'b', { n: 2 }))
  await wire.socket.frames(change(99, 'late', { n: 99 }))
  client.setTransport('poll')
  assert.equal(wire.feeds[0].aborted, true)
  assert.deepEqual([...wire.feed.asked], [['todos', 'aaaa-8']])
  await wire.feed.send(open, change(9, 'c', { n: 9 }), live(9))
  await wire.feed.end()
  assert.deepEqual(
    [...todos.rows],
    [
      ['b', { n: 2 }],
      ['c', { n: 9 }],
    ],
  )
  assert.deepEqual(told, ['insert a, insert b', 'remove a, insert c'])
  assert.equal(client.status.transport, 'poll')
})

test('more than 256 collections are refused where they are asked for, and the feed goes on', async () => {
  const { wire, client } = setup('sse')
  for (let i = 0; i < 256; i++) client.collection(`c${i}`).start()
  const tooMany = (/** @type {unknown} */ error) => error instanceof TidemarkError && error.code === 'too-many'
  assert.throws(() => client.collection('c256').start(), tooMany)
  assert.throws(() => client.collection('c256').subscribe(() => {}), tooMany)
  client.collection('c7').start()
  await turns()
  assert.equal(wire.feed.asked.size, 256)
})

test('a name that no server takes is refused where it is written, before it costs the others their feed', () => {
  const { client } = setup('sse')
  for (const name of ['', '/', 'a/', '/a', 'a//b', 'a b', 'ä', 'a/b/c/d/e/f/g/h/i', 'x'.repeat(65), '..']) {
    assert.throws(
      () => client.collection(name),
      (error) => error instanceof TidemarkError && error.code === 'bad-name',
      name,
    )
  }
  assert.equal(client.collection('a/b/c/d/e/f/g/h'), client.collection('a/b/c/d/e/f/g/h'))
})

test('a subscriber that throws costs neither the other subscribers nor the feed', async () => {
  const { wire, client, todos, told, follow } = setup('sse')
  /** @type {unknown[]} */
  const thrown = []
  const listeners = process.listeners('unhandledRejection')
  process.removeAllListeners('unhandledRejection')
  process.once('unhandledRejection', (error) => thrown.push(error))
  todos.subscribe(() => {
    throw new Error('my bug')
  })
  await follow()
  await wire.feed.send(open, change(1, 'a', { n: 1 }), live(1))
  for (const listener of listeners) process.on('unhandledRejection', listener)
  assert.deepEqual(told, ['insert a'])
  assert.equal(client.status.state, 'live')
  assert.match(String(thrown[0]), /my bug/)
})

test('what a subscriber does in the middle of things is done: leave, follow, change the transport, close', async () => {
  const { wire, client, todos, told, follow } = setup('websocket')
  await follow()
  const undo = todos.subscribe(() => {
    undo()
    client.setTransport('sse')
    client.collection('lists').start()
  })
  await turns()
  await wire.socket.frames(open, change(1, 'a', { n: 1 }), live(1))
  assert.equal(wire.socket.closed, true)
  assert.deepEqual(
    [...wire.feed.asked],
    [
      ['todos', 'aaaa-1'],
      ['lists', undefined],
    ],
  )
  client.onStatus(({ state }) => state === 'live' && client.close())
  await wire.feed.send(open, change(2, 'b', { n: 2 }), live(2))
  assert.deepEqual(told, ['insert a', 'insert b'])
  assert.equal(client.status.state, 'closed')
})

test('a reset that follows live is not live', async () => {
  const { wire, client, follow } = setup('sse')
  await follow()
  await wire.feed.send(open, live(1), { type: 'reset', collections: ['todos'], reason: 'expired' })
  assert.equal(client.status.state, 'catching-up')
})

test('what was wrong with a connection does not cost the one that came after it', async () => {
  const { wire, client, follow } = setup('websocket')
  await follow()
  client.onError(() => client.setTransport('sse'))
  const frames = [open, live(1), { type: 'error', status: 400, code: 'bad-request', detail: 'what was that' }]
  await wire.socket.message(`${frames.map((frame) => JSON.stringify(frame)).join('\n')}\nnonsense`)
  assert.deepEqual([client.status.state, wire.feeds.length, wire.feed.aborted], ['connecting', 1, false])
})

test('who has left is not told, not even of what is just being told', async () => {
  const { wire, todos, told } = setup('sse')
  todos.subscribe(() => undo())
  const undo = todos.subscribe(() => told.push('late'))
  await turns()
  await wire.feed.send(open, change(1, 'a', { n: 1 }))
  assert.deepEqual(told, [])
})

test('a stale undo does not end what somebody else follows', async () => {
  const { wire, todos } = setup('sse')
  const first = todos.subscribe(() => {})
  first()
  first()
  todos.subscribe(() => {})
  first()
  await turns()
  assert.equal(wire.feeds.length, 1)
  assert.equal(wire.feed.aborted, false)
})

test('a closed client lets go of everything, and stays closed', async () => {
  for (const transport of /** @type {const} */ (['sse', 'poll', 'websocket'])) {
    const { wire, clock, client, todos, states, follow } = setup(transport)
    await follow()
    if (transport === 'websocket') await wire.socket.frames(open, live(1))
    else await wire.feed.send(open, live(1))
    await client.close()
    assert.equal(transport === 'websocket' ? wire.socket.closed : wire.feed.aborted, true)
    assert.equal(clock.timers.size, 0)
    assert.equal(states.at(-1), 'closed: closed')
    todos.start()
    client.setTransport('poll')
    await client.close()
    await clock.advance(100_000)
    assert.equal(wire.requests.length + wire.sockets.length, 1)
    await assert.rejects(todos.insert({ n: 1 }), { code: 'closed' })
  }
})

test('an AbortSignal closes the client, also one that was aborted before', async () => {
  const controller = new AbortController()
  const { wire, client, follow } = setup('sse', { signal: controller.signal })
  await follow()
  controller.abort()
  assert.equal(client.status.state, 'closed')
  assert.equal(wire.feed.aborted, true)
  const late = setup('sse', { signal: controller.signal })
  await late.follow()
  assert.equal(late.client.status.state, 'closed')
  assert.equal(late.wire.requests.length, 0)
})

test('an error that nobody listens for is not lost without a word', async (t) => {
  const wire = new Wire()
  const say = t.mock.method(console, 'error', () => {})
  const client = createClient({
    url: 'http://tide.test',
    tenant: 'demo',
    transport: 'sse',
    fetch: wire.fetch,
    clock: new FakeClock(),
  })
  client.collection('todos').start()
  await turns()
  await wire.feed.answer(403, { code: 'forbidden', detail: 'no' })
  assert.equal(say.mock.calls[0].arguments[0].code, 'forbidden')
})
