import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { backoff, HELD, initial, step } from '../src/machine.js'

/** @typedef {import('../src/machine.js').State} State */
/** @typedef {import('../src/machine.js').Event} Event */
/** @typedef {import('../src/machine.js').Effect} Effect */

const NOW = 1_000_000
const HALF = 0.5

/** @param {Partial<State>} change */
const state = (change) => ({ ...initial('sse', 15, 0), ...change })

/**
 * Every state that behaves in a way of its own.
 * @satisfies {Record<string, State>}
 */
const STATES = {
  idle: state({}),
  waiting: state({ wanted: true, due: NOW + 9000, attempt: 3, reason: 'unavailable' }),
  'waiting, due': state({ wanted: true, due: NOW, attempt: 3, reason: 'unavailable' }),
  'waiting for nobody, due': state({ due: NOW, attempt: 3, reason: 'unavailable' }),
  connecting: state({ phase: 'connecting', wanted: true, due: NOW + 5, attempt: 3, reason: '', asked: NOW - 10 }),
  'connecting, silent': state({ phase: 'connecting', wanted: true, due: NOW, attempt: 3, reason: '', asked: NOW - 10 }),
  'catching-up': state({
    phase: 'catching-up',
    wanted: true,
    due: NOW + 5,
    attempt: 3,
    news: 1,
    reason: '',
    asked: NOW - 10,
  }),
  live: state({ phase: 'live', wanted: true, due: NOW + 5, since: NOW - 60_000, reason: '', asked: NOW - 60_000 }),
  'live, just': state({ phase: 'live', wanted: true, due: NOW + 5, since: NOW - 10, attempt: 3, reason: '' }),
  'live, websocket': state({ phase: 'live', transport: 'websocket', wanted: true, due: NOW + 5, since: 0, reason: '' }),
  'catching-up, poll': state({
    phase: 'catching-up',
    transport: 'poll',
    wanted: true,
    news: 1,
    reason: '',
    asked: NOW - 9,
    attempt: 3,
    due: NOW + 5,
  }),
  'catching-up, poll without news': state({
    phase: 'catching-up',
    transport: 'poll',
    wanted: true,
    reason: '',
    asked: NOW - 9,
    attempt: 3,
    due: NOW + 5,
  }),
  'live, poll with news': state({
    phase: 'live',
    transport: 'poll',
    wanted: true,
    wait: HELD,
    news: 2,
    reason: '',
    since: NOW - 99,
    asked: NOW - 9,
    attempt: 2,
    due: NOW + 5,
  }),
  'live, poll held': state({
    phase: 'live',
    transport: 'poll',
    wanted: true,
    wait: HELD,
    reason: '',
    since: 0,
    asked: NOW - 9000,
    due: NOW + 5,
  }),
  'live, poll at once': state({
    phase: 'live',
    transport: 'poll',
    wanted: true,
    wait: HELD,
    reason: '',
    since: NOW - 99,
    asked: NOW - 9,
    attempt: 2,
    due: NOW + 5,
  }),
  'live, first poll': state({
    phase: 'live',
    transport: 'poll',
    wanted: true,
    wait: 0,
    reason: '',
    since: NOW,
    asked: NOW - 9,
    attempt: 2,
    due: NOW + 5,
  }),
  stopped: state({ phase: 'closed', wanted: true, reason: 'forbidden' }),
  'stopped for nobody': state({ phase: 'closed', reason: 'forbidden' }),
  closed: state({ phase: 'closed', wanted: true, reason: 'closed', final: true }),
}

/** @satisfies {Record<string, Event>} */
const EVENTS = {
  'want more': { type: 'want', wanted: true, changed: true },
  'want the same': { type: 'want', wanted: true, changed: false },
  'want nothing': { type: 'want', wanted: false, changed: false },
  'other transport': { type: 'transport', transport: 'poll' },
  'transport sse': { type: 'transport', transport: 'sse' },
  'heard open': { type: 'heard', heartbeat: 20, live: false, news: 0 },
  'heard changes': { type: 'heard', heartbeat: 0, live: false, news: 2 },
  'heard a reset': { type: 'heard', heartbeat: 0, live: false, news: -Infinity },
  'heard live': { type: 'heard', heartbeat: 0, live: true, news: 0 },
  'answered live': { type: 'answered', last: 'live' },
  'answered next': { type: 'answered', last: 'next' },
  'cut off': { type: 'answered', last: '' },
  lost: { type: 'over', reason: 'unavailable', retry: 0 },
  'asked for peace': { type: 'over', reason: 'draining', retry: 7000 },
  refused: { type: 'over', reason: 'forbidden', retry: null },
  wake: { type: 'wake' },
  close: { type: 'close' },
}

/** @param {State} before @param {{state: State, effects: Effect[]}} after @returns {string} */
function describe(before, { state, effects }) {
  /** @type {string[]} */
  const words = [state.phase]
  if (state.reason !== before.reason) words.push(`(${state.reason || '-'})`)
  if (state.due !== before.due) words.push(state.due === Infinity ? 'never' : `${state.due - NOW}`)
  words.push(...effects)
  const nothing =
    JSON.stringify({ ...state, wanted: 0, attempt: 0 }) === JSON.stringify({ ...before, wanted: 0, attempt: 0 })
  return nothing && !effects.length ? '=' : words.join(' ')
}

const AGAIN = 'connecting 37500 drop open'
const AFTER_ALL = 'connecting (-) 37500 drop open'
const IDLE = 'offline (idle) never drop'
const STOP = 'closed (forbidden) never drop'
const CLOSE = 'closed (closed) never drop'

/** What comes of a connection when there is none. */
const UNHEARD = /** @type {const} */ ({
  'heard open': '=',
  'heard changes': '=',
  'heard a reset': '=',
  'heard live': '=',
  'answered live': '=',
  'answered next': '=',
  'cut off': '=',
  lost: '=',
  'asked for peace': '=',
  refused: '=',
})

/** Frames move the deadline; open says what a heartbeat is. */
const HEARD = /** @type {const} */ ({
  'heard open': 'catching-up 50000',
  'heard changes': 'catching-up 37500',
  'heard a reset': 'catching-up 37500',
  'heard live': 'live 37500',
})
const HEARD_LIVE = /** @type {const} */ ({ ...HEARD, 'heard open': 'live 50000', 'heard changes': 'live 37500' })

/**
 * The connection goes, and the next one comes in so many ms.
 * @param {number} ms
 */
const gone = (ms) => ({
  lost: `offline (unavailable) ${ms} drop`,
  'asked for peace': `offline (draining) ${ms + 7000} drop`,
  refused: STOP,
})

/** Only a poll has an answer; any other stream that comes to its end is lost. @param {number} ms */
const ended = (ms) => ({
  'answered live': `offline (ended) ${ms} drop`,
  'answered next': `offline (ended) ${ms} drop`,
  'cut off': `offline (ended) ${ms} drop`,
  ...gone(ms),
})

const CONNECTED = /** @type {const} */ ({
  'want more': AGAIN,
  'want the same': '=',
  'want nothing': IDLE,
  'other transport': AGAIN,
  'transport sse': '=',
  wake: '=',
  close: CLOSE,
})
const POLLING = /** @type {const} */ ({ ...CONNECTED, 'other transport': '=', 'transport sse': AGAIN })
const WAITING = /** @type {const} */ ({
  ...UNHEARD,
  'want more': '=',
  'want the same': '=',
  'want nothing': '=',
  'other transport': AFTER_ALL,
  'transport sse': '=',
  wake: '=',
  close: CLOSE,
})

/**
 * What is expected: `=` for nothing; else the phase, the reason where it changes, in how many ms the next wake is due
 * where that changes, and the effects. With attempt 3 and half a chance a loss costs 500 * 2^3 / 2 = 2000 ms, after
 * good times 250.
 * @type {Record<keyof typeof STATES, Record<keyof typeof EVENTS, string>>}
 */
const TABLE = {
  idle: {
    ...UNHEARD,
    'want more': AFTER_ALL,
    'want the same': AFTER_ALL,
    'want nothing': '=',
    'other transport': 'offline drop',
    'transport sse': '=',
    wake: '=',
    close: 'closed (closed) drop',
  },
  waiting: WAITING,
  'waiting, due': { ...WAITING, wake: AFTER_ALL },
  'waiting for nobody, due': { ...WAITING, 'other transport': IDLE, wake: IDLE },
  connecting: { ...CONNECTED, ...HEARD, ...ended(2000) },
  'connecting, silent': { ...CONNECTED, ...HEARD, ...ended(2000), wake: 'offline (silent) 2000 drop' },
  'catching-up': { ...CONNECTED, ...HEARD, ...ended(250) },
  live: { ...CONNECTED, ...HEARD_LIVE, ...ended(250) },
  'live, just': { ...CONNECTED, ...HEARD_LIVE, ...ended(2000) },
  'live, websocket': {
    ...CONNECTED,
    ...HEARD_LIVE,
    ...ended(250),
    'want more': 'catching-up',
    'transport sse': AGAIN,
  },
  'catching-up, poll': {
    ...POLLING,
    ...HEARD,
    ...gone(250),
    'answered live': 'live 37500 open',
    'answered next': 'catching-up 37500 open',
    'cut off': 'offline (cut off) 250 drop',
  },
  'catching-up, poll without news': {
    ...POLLING,
    ...HEARD,
    ...gone(2000),
    'answered live': 'live 37500 open',
    'answered next': 'offline (cut off) 2000 drop',
    'cut off': 'offline (cut off) 2000 drop',
  },
  'live, poll with news': {
    ...POLLING,
    ...HEARD_LIVE,
    ...gone(250),
    'answered live': 'live 37500 open',
    'answered next': 'catching-up 37500 open',
    'cut off': 'offline (cut off) 250 drop',
  },
  'live, poll held': {
    ...POLLING,
    ...HEARD_LIVE,
    ...gone(250),
    'answered live': 'live 37500 open',
    'answered next': 'offline (cut off) 250 drop',
    'cut off': 'offline (cut off) 250 drop',
  },
  'live, poll at once': {
    ...POLLING,
    ...HEARD_LIVE,
    ...gone(1000),
    'answered live': 'offline (nothing new) 1000 drop',
    'answered next': 'offline (cut off) 1000 drop',
    'cut off': 'offline (cut off) 1000 drop',
  },
  'live, first poll': {
    ...POLLING,
    ...HEARD_LIVE,
    ...gone(1000),
    'answered live': 'live 37500 open',
    'answered next': 'offline (cut off) 1000 drop',
    'cut off': 'offline (cut off) 1000 drop',
  },
  stopped: {
    ...UNHEARD,
    'want more': AFTER_ALL,
    'want the same': AFTER_ALL,
    'want nothing': '=',
    'other transport': AFTER_ALL,
    'transport sse': AFTER_ALL,
    wake: '=',
    close: 'closed (closed) drop',
  },
  'stopped for nobody': {
    ...UNHEARD,
    'want more': AFTER_ALL,
    'want the same': AFTER_ALL,
    'want nothing': '=',
    'other transport': 'offline (idle) drop',
    'transport sse': 'offline (idle) drop',
    wake: '=',
    close: 'closed (closed) drop',
  },
  closed: {
    ...UNHEARD,
    'want more': '=',
    'want the same': '=',
    'want nothing': '=',
    'other transport': '=',
    'transport sse': '=',
    wake: '=',
    close: '=',
  },
}

test('in any state, whatever happens, the client knows what to do', async (t) => {
  for (const [stateName, row] of Object.entries(TABLE)) {
    await t.test(stateName, () => {
      const before = STATES[/** @type {keyof typeof STATES} */ (stateName)]
      for (const [eventName, expected] of Object.entries(row)) {
        const event = EVENTS[/** @type {keyof typeof EVENTS} */ (eventName)]
        const frozen = Object.freeze({ ...before })
        assert.equal(describe(before, step(frozen, event, NOW, HALF)), expected, `${stateName} + ${eventName}`)
      }
    })
  }
})

/**
 * Lives through half an hour in which every connection goes the same way, and counts how many there were.
 * @param {State} from
 * @param {[delay: number, event: Event][]} story what happens to each connection, and how long after the thing before
 * @param {() => number} random
 */
function connections(from, story, random) {
  let state = from
  let now = 0
  let opened = 0
  /** @param {Event} event */
  const play = (event) => {
    const after = step(state, event, now, random())
    state = after.state
    return after.effects.includes('open')
  }
  let open = play({ type: 'want', wanted: true, changed: true })
  while (now < 1_800_000) {
    if (open) {
      opened++
      open = false
      for (const [delay, event] of story) {
        now += delay
        open = play(event) || open
      }
    } else {
      assert.ok(state.due < Infinity, 'it gave up')
      now = Math.max(now, state.due)
      open = play({ type: 'wake' })
    }
  }
  return opened
}

const heard = (live = false, news = 0) => /** @type {Event} */ ({ type: 'heard', heartbeat: 15, live, news })

/** @type {Record<string, [State, [number, Event][]]>} */
const STORMS = {
  'a server that is down': [state({}), [[1, EVENTS.lost]]],
  'a stream that ends right after open': [
    state({}),
    [
      [1, heard()],
      [0, EVENTS['cut off']],
    ],
  ],
  'a box that kills young WebSockets that were live': [
    state({ transport: 'websocket' }),
    [
      [1, heard()],
      [1, heard(true)],
      [300, EVENTS.lost],
    ],
  ],
  'a cache that answers polls with nothing new': [
    state({ transport: 'poll' }),
    [
      [1, heard(true)],
      [0, EVENTS['answered live']],
    ],
  ],
  'a poll that says next and brings nothing': [
    state({ transport: 'poll' }),
    [
      [1, heard()],
      [0, EVENTS['answered next']],
    ],
  ],
  'a server that resets with each answer': [
    state({ transport: 'poll' }),
    [
      [1, heard(false, -Infinity)],
      [0, heard(true, 5)],
      [0, EVENTS['answered live']],
    ],
  ],
}

test('a page does not storm a server that is in trouble', async (t) => {
  for (const [name, [from, story]] of Object.entries(STORMS)) {
    await t.test(name, () => {
      // Full jitter at 30 s: one in 15 s on average, a poll two. Twice as many for the beginning and for bad luck.
      fc.assert(
        fc.property(fc.infiniteStream(fc.double({ min: 0.05, max: 0.999, noNaN: true })), (chance) => {
          assert.ok(connections(from, story, () => chance.next().value) < 480)
        }),
        { numRuns: 30 },
      )
      assert.ok(connections(from, story, () => 0.5) < 300)
    })
  }
})

test('a link that is cut again and again, but brings something each time, is used at once', () => {
  const story = /** @type {[number, Event][]} */ ([
    [1, heard()],
    [5, heard(false, 3)],
    [10, EVENTS.lost],
  ])
  assert.ok(connections(state({}), story, () => 0.5) > 5000)
})

test('the first try after a good connection comes within half a second, later ones within 30 s', () => {
  assert.equal(backoff(0, 0.999999) < 500, true)
  assert.equal(Math.round(backoff(1, 1)), 1000)
  assert.equal(backoff(6, 1), 30_000)
  assert.equal(backoff(5000, 1), 30_000)
  assert.equal(backoff(7, 0), 0)
})

test('a Retry-After is kept to the end, whatever chance says, also by who follows meanwhile', () => {
  fc.assert(
    fc.property(
      fc.double({ min: 0, max: 0.999, noNaN: true }),
      fc.integer({ min: 0, max: 2 ** 40 }),
      (chance, retry) => {
        let { state: s } = step(STATES.connecting, { type: 'over', reason: 'x', retry }, NOW, chance)
        assert.ok(s.due >= NOW + retry)
        for (const event of [EVENTS['want nothing'], EVENTS['want more'], EVENTS.wake]) {
          const after = step(s, event, NOW + retry - 1, chance)
          assert.deepEqual(after.effects, [])
          s = after.state
        }
        assert.deepEqual(step(s, EVENTS.wake, s.due, chance).effects, ['drop', 'open'])
      },
    ),
  )
})
