import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import './seed.js'
import { backoff, due, HELD, initial, quiet, step } from '../src/machine.js'

/** @typedef {import('../src/machine.js').State} State */
/** @typedef {import('../src/machine.js').Event} Event */
/** @typedef {import('../src/machine.js').Effect} Effect */

const NOW = 10_000_000
const HALF = 0.5

/** @param {Partial<State>} change */
const state = (change) => ({
  ...initial(['websocket', 'sse'], false, 15, 0),
  wanted: true,
  attempt: 3,
  since: NOW - 10,
  reason: '',
  ...change,
})
/** @type {Partial<State>} */
const LIVE = { phase: 'live', since: NOW - 60_000 }
/** @type {Partial<State>} */
const PROVEN = {
  stream: 'websocket',
  proven: true,
  opened: NOW - 60_000,
  heard: NOW - 9000,
  dueStream: NOW + 5,
  tried: ['websocket'],
}
/** @type {Partial<State>} */
const PROBE = {
  stream: 'websocket',
  opened: NOW - 100,
  heard: NOW - 50,
  dueStream: NOW + 2900,
  tried: ['websocket'],
}
/** @type {Partial<State>} */
const POLL = { wait: 0, asked: NOW - 9, duePoll: NOW + 9991 }
/** @type {Partial<State>} */
const HOLD = { wait: HELD, asked: NOW - 9000, duePoll: NOW + 26_000 }

/**
 * Every state that behaves in a way of its own.
 * @satisfies {Record<string, State>}
 */
const STATES = {
  idle: state({ wanted: false, reason: 'idle', attempt: 0 }),
  waiting: state({ dueBack: NOW + 9000, peace: NOW + 5000, reason: 'unavailable' }),
  'waiting, due': state({ dueBack: NOW, reason: 'unavailable' }),
  'connecting, poll': state({ phase: 'connecting', ...POLL }),
  'connecting, poll silent': state({ phase: 'connecting', ...POLL, duePoll: NOW }),
  'connecting, known stream': state({
    phase: 'connecting',
    ...PROBE,
    dueCarry: NOW,
    net: { bad: {}, times: 0, good: 'websocket' },
  }),
  'catching-up, poll with news': state({ phase: 'catching-up', ...POLL, news: 2 }),
  'live, poll done soon': state({ ...LIVE, since: NOW, ...POLL }),
  'live, probe alone': state({ ...LIVE, ...PROBE, dueCarry: NOW + 300 }),
  'live, probe and poll': state({ ...LIVE, ...PROBE, ...HOLD }),
  'live, probe too late': state({ ...LIVE, ...PROBE, ...HOLD, dueStream: NOW }),
  'live, no stream is left': state({ ...LIVE, ...HOLD, tried: ['websocket', 'sse'], dueProbe: NOW + 9000, round: 1 }),
  'live, streams are due': state({ ...LIVE, ...HOLD, tried: ['websocket', 'sse'], dueProbe: NOW, round: 1 }),
  'live, poll at once': state({ ...LIVE, since: NOW - 99, ...HOLD, asked: NOW - 9 }),
  'live, proven': state({ ...LIVE, ...PROVEN }),
  'live, proven silent': state({ ...LIVE, ...PROVEN, dueStream: NOW, heard: NOW - 37_500 }),
  'live, died young twice': state({
    ...LIVE,
    ...PROVEN,
    since: NOW - 900,
    opened: NOW - 900,
    deaths: 2,
    net: { bad: {}, times: 0, good: 'websocket' },
  }),
  'fixed, catching-up': state({ phase: 'catching-up', fixed: true, order: ['sse'], ...POLL, news: 1 }),
  'fixed, live': state({ ...LIVE, fixed: true, order: ['sse'], ...PROVEN, stream: 'sse' }),
  asleep: state({ ...LIVE, ...PROVEN, dueStream: NOW - 3_600_000, heard: NOW - 3_637_500 }),
  denied: state({ phase: 'denied', reason: 'forbidden', dueBack: NOW + 9000 }),
  closed: state({ phase: 'closed', reason: 'closed' }),
}

/** @satisfies {Record<string, Event>} */
const EVENTS = {
  'want more': { type: 'want', wanted: true, changed: true, told: false },
  'want more, told': { type: 'want', wanted: true, changed: true, told: true },
  'want the same': { type: 'want', wanted: true, changed: false, told: false },
  'want nothing': { type: 'want', wanted: false, changed: false, told: false },
  'use sse': { type: 'use', order: ['sse'], fixed: true },
  'other network': { type: 'network', net: { bad: {}, times: 0, good: 'sse' } },
  'poll heard open': { type: 'heard', poll: true, heartbeat: 20, live: false, news: 0, tick: false },
  'poll heard changes': { type: 'heard', poll: true, heartbeat: 0, live: false, news: 2, tick: false },
  'poll heard a reset': { type: 'heard', poll: true, heartbeat: 0, live: false, news: -Infinity, tick: false },
  'poll heard live': { type: 'heard', poll: true, heartbeat: 0, live: true, news: 0, tick: false },
  'poll answered live': { type: 'answered', poll: true, last: 'live' },
  'poll answered next': { type: 'answered', poll: true, last: 'next' },
  'poll cut off': { type: 'answered', poll: true, last: '' },
  'poll lost': { type: 'over', poll: true, reason: 'unavailable', retry: 0 },
  'poll asked for peace': { type: 'over', poll: true, reason: 'unavailable', retry: 7000 },
  'poll refused': { type: 'over', poll: true, reason: 'forbidden', retry: null },
  'stream heard open': { type: 'heard', poll: false, heartbeat: 20, live: false, news: 0, tick: false },
  'stream heard tick': { type: 'heard', poll: false, heartbeat: 0, live: false, news: 0, tick: true },
  'stream heard a reset': { type: 'heard', poll: false, heartbeat: 0, live: false, news: -Infinity, tick: false },
  'stream heard live': { type: 'heard', poll: false, heartbeat: 0, live: true, news: 1, tick: false },
  'stream ended': { type: 'answered', poll: false, last: '' },
  'stream lost': { type: 'over', poll: false, reason: 'unavailable', retry: 0 },
  'stream refused': { type: 'over', poll: false, reason: 'forbidden', retry: null },
  'stream said: drained': { type: 'over', poll: false, reason: 'draining', retry: 2000, said: true },
  'poll said: expired': { type: 'over', poll: true, reason: 'expired', retry: 0, said: true, anew: true },
  'stream said: expired': { type: 'over', poll: false, reason: 'expired', retry: 0, said: true, anew: true },
  'stream said: revoked': { type: 'over', poll: false, reason: 'revoked', retry: null, said: true },
  look: { type: 'look', anew: false },
  'look anew': { type: 'look', anew: true },
  hide: { type: 'hide', reason: 'hidden' },
  stuck: { type: 'stuck' },
  wake: { type: 'wake' },
  close: { type: 'close' },
}

/** @type {Record<'dueStream' | 'duePoll' | 'dueCarry' | 'dueProbe' | 'dueBack', string>} */
const DUES = { dueStream: 'stream', duePoll: 'poll', dueCarry: 'carry', dueProbe: 'probe', dueBack: 'back' }

/** @param {State} before @param {{state: State, effects: Effect[]}} after */
function describe(before, { state, effects }) {
  /** @type {string[]} */
  const words = []
  if (state.phase !== before.phase) words.push(state.phase)
  if (state.reason !== before.reason && state.reason) words.push(`(${state.reason})`)
  if (effects.length)
    words.push(
      `[${effects.map((e) => (e === 'stream' ? state.stream : e === 'poll' ? `poll ${state.wait}` : e)).join(', ')}]`,
    )
  for (const [key, name] of Object.entries(DUES)) {
    const due = /** @type {keyof typeof DUES} */ (key)
    if (state[due] !== before[due] && state[due] < Infinity) words.push(`${name} in ${Math.round(state[due] - NOW)}`)
  }
  if (state.proven && !before.proven) words.push('proven')
  if (state.deaths !== before.deaths) words.push(`deaths ${state.deaths}`)
  for (const key of Object.keys(state.net.bad)) {
    const stream = /** @type {import('../src/machine.js').Stream} */ (key)
    if (state.net.bad[stream] && state.net.bad[stream] !== before.net.bad[stream]) words.push(`${stream} is bad`)
  }
  if (state.net.good && state.net.good !== before.net.good) words.push(`${state.net.good} is good`)
  if (state.net.quiet && state.net.quiet !== before.net.quiet) words.push(`quiet ${state.net.quiet}`)
  return words.join(' ') || '='
}

/** What comes of a connection when there is none. */
const NO_POLL = /** @type {const} */ ({
  'poll heard open': '=',
  'poll heard changes': '=',
  'poll heard a reset': '=',
  'poll heard live': '=',
  'poll answered live': '=',
  'poll answered next': '=',
  'poll cut off': '=',
  'poll lost': '=',
  'poll asked for peace': '=',
  'poll refused': '=',
  'poll said: expired': '=',
})
const NO_STREAM = /** @type {const} */ ({
  'stream heard open': '=',
  'stream heard tick': '=',
  'stream heard a reset': '=',
  'stream heard live': '=',
  'stream ended': '=',
  'stream lost': '=',
  'stream refused': '=',
  'stream said: drained': '=',
  'stream said: expired': '=',
  'stream said: revoked': '=',
})

/**
 * What is expected: `=` for nothing; else the phase and the reason where they change, in brackets what is done (`poll 25`:
 * held for so long), in how many ms what is due where that changes, and what was learned. With attempt 3 and half a
 * chance a loss costs 500 * 2^3 / 2 = 2000 ms, after good times 250.
 * @type {Record<keyof typeof STATES, Record<keyof typeof EVENTS, string>>}
 */
const TABLE = {
  idle: {
    ...NO_POLL,
    ...NO_STREAM,
    'want more': 'connecting [poll 0] poll in 10000',
    'want more, told': 'connecting [poll 0] poll in 10000',
    'want the same': 'connecting [poll 0] poll in 10000',
    'want nothing': '=',
    'use sse': '=',
    'other network': 'sse is good',
    look: '=',
    'look anew': '=',
    hide: '=',
    stuck: '=',
    wake: '=',
    close: 'closed (closed)',
  },
  waiting: {
    ...NO_POLL,
    ...NO_STREAM,
    'want more': '=',
    'want more, told': '=',
    'want the same': '=',
    'want nothing': '=',
    'use sse': '=',
    'other network': 'sse is good',
    look: '=',
    'look anew': '=',
    hide: '=',
    stuck: '=',
    wake: '=',
    close: 'closed (closed)',
  },
  'waiting, due': {
    ...NO_POLL,
    ...NO_STREAM,
    'want more': '=',
    'want more, told': '=',
    'want the same': '=',
    'want nothing': '=',
    'use sse': 'connecting [poll 0] poll in 10000',
    'other network': 'sse is good',
    look: 'connecting [poll 0] poll in 10000',
    'look anew': 'connecting [poll 0] poll in 10000',
    hide: '=',
    stuck: '=',
    wake: 'connecting [poll 0] poll in 10000',
    close: 'closed (closed)',
  },
  'connecting, poll': {
    ...NO_STREAM,
    'want more': '[no poll, poll 0] poll in 10000',
    'want more, told': '[no poll, poll 0] poll in 10000',
    'want the same': '=',
    'want nothing': 'offline (idle) [no poll]',
    'use sse': '[no poll, poll 0] poll in 10000',
    'other network': 'sse is good',
    'poll heard open': 'catching-up poll in 10000',
    'poll heard changes': 'catching-up poll in 10000',
    'poll heard a reset': 'catching-up poll in 10000',
    'poll heard live': 'live poll in 10000',
    'poll answered live': '[websocket] stream in 3000 carry in 400',
    'poll answered next': 'offline (cut off) back in 2000',
    'poll cut off': 'offline (cut off) back in 2000',
    'poll lost': 'offline (unavailable) [no poll] back in 2000',
    'poll asked for peace': 'offline (unavailable) [no poll] back in 9000',
    'poll refused': 'denied (forbidden) [no poll] back in 225000',
    'poll said: expired': '[no poll, poll 0] poll in 10000',
    look: '=',
    'look anew': '[no poll, poll 0] poll in 10000',
    hide: 'offline (hidden) [no poll] back in 30000',
    stuck: '=',
    wake: '=',
    close: 'closed (closed) [no poll]',
  },
  'connecting, poll silent': {
    ...NO_STREAM,
    'want more': '[no poll, poll 0] poll in 10000',
    'want more, told': '[no poll, poll 0] poll in 10000',
    'want the same': '=',
    'want nothing': 'offline (idle) [no poll]',
    'use sse': '[no poll, poll 0] poll in 10000',
    'other network': 'sse is good',
    'poll heard open': 'catching-up poll in 10000',
    'poll heard changes': 'catching-up poll in 10000',
    'poll heard a reset': 'catching-up poll in 10000',
    'poll heard live': 'live poll in 10000',
    'poll answered live': '[websocket] stream in 3000 carry in 400',
    'poll answered next': 'offline (cut off) back in 2000',
    'poll cut off': 'offline (cut off) back in 2000',
    'poll lost': 'offline (unavailable) [no poll] back in 2000',
    'poll asked for peace': 'offline (unavailable) [no poll] back in 9000',
    'poll refused': 'denied (forbidden) [no poll] back in 225000',
    'poll said: expired': '[no poll, poll 0] poll in 10000',
    look: '=',
    'look anew': '[no poll, poll 0] poll in 10000',
    hide: 'offline (hidden) [no poll] back in 30000',
    stuck: '=',
    wake: 'offline (silent) [no poll] back in 2000',
    close: 'closed (closed) [no poll]',
  },
  'connecting, known stream': {
    ...NO_POLL,
    'want more': '[no stream, websocket] stream in 3000 carry in 400',
    'want more, told': '[no stream, websocket] stream in 3000 carry in 400',
    'want the same': '=',
    'want nothing': 'offline (idle) [no stream]',
    'use sse': '[no stream, poll 0] poll in 10000',
    'other network': 'sse is good',
    'stream heard open': 'catching-up',
    'stream heard tick': 'catching-up stream in 37500 proven',
    'stream heard a reset': 'catching-up',
    'stream heard live': 'live',
    'stream ended': '[no stream, poll 0] poll in 10000 deaths 1',
    'stream lost': '[no stream, poll 0] poll in 10000 deaths 1',
    'stream refused': '[no stream, poll 0] poll in 10000 deaths 1',
    'stream said: drained': 'offline (draining) [no stream] back in 4000',
    'stream said: expired': 'offline (expired) [no stream] back in 2000',
    'stream said: revoked': 'denied (revoked) [no stream] back in 225000',
    look: '=',
    'look anew': '[no stream, websocket] stream in 3000 carry in 400',
    hide: 'offline (hidden) [no stream] back in 30000',
    stuck: '=',
    wake: '[poll 0] poll in 10000',
    close: 'closed (closed) [no stream]',
  },
  'catching-up, poll with news': {
    ...NO_STREAM,
    'want more': 'connecting [no poll, poll 0] poll in 10000',
    'want more, told': 'connecting [no poll, poll 0] poll in 10000',
    'want the same': '=',
    'want nothing': 'offline (idle) [no poll]',
    'use sse': 'connecting [no poll, poll 0] poll in 10000',
    'other network': 'sse is good',
    'poll heard open': 'poll in 10000',
    'poll heard changes': 'poll in 10000',
    'poll heard a reset': 'poll in 10000',
    'poll heard live': 'live poll in 10000',
    'poll answered live': '[websocket] stream in 3000 carry in 400',
    'poll answered next': '[poll 0] poll in 10000',
    'poll cut off': '[poll 0] poll in 10000',
    'poll lost': 'offline (unavailable) [no poll] back in 250',
    'poll asked for peace': 'offline (unavailable) [no poll] back in 7250',
    'poll refused': 'denied (forbidden) [no poll] back in 225000',
    'poll said: expired': '[no poll, poll 0] poll in 10000',
    look: '=',
    'look anew': 'connecting [no poll, poll 0] poll in 10000',
    hide: 'offline (hidden) [no poll] back in 30000',
    stuck: '=',
    wake: '=',
    close: 'closed (closed) [no poll]',
  },
  'live, poll done soon': {
    ...NO_STREAM,
    'want more': 'connecting [no poll, poll 0] poll in 10000',
    'want more, told': 'connecting [no poll, poll 0] poll in 10000',
    'want the same': '=',
    'want nothing': 'offline (idle) [no poll]',
    'use sse': 'connecting [no poll, poll 0] poll in 10000',
    'other network': 'sse is good',
    'poll heard open': 'poll in 10000',
    'poll heard changes': 'poll in 10000',
    'poll heard a reset': 'catching-up poll in 10000',
    'poll heard live': 'poll in 10000',
    'poll answered live': '[websocket] stream in 3000 carry in 400',
    'poll answered next': 'offline (cut off) back in 2000',
    'poll cut off': 'offline (cut off) back in 2000',
    'poll lost': 'offline (unavailable) [no poll] back in 2000',
    'poll asked for peace': 'offline (unavailable) [no poll] back in 9000',
    'poll refused': 'denied (forbidden) [no poll] back in 225000',
    'poll said: expired': '[no poll, poll 0] poll in 10000',
    look: '[websocket] stream in 3000',
    'look anew': 'connecting [no poll, poll 0] poll in 10000',
    hide: 'offline (hidden) [no poll] back in 30000',
    stuck: '=',
    wake: '=',
    close: 'closed (closed) [no poll]',
  },
  'live, probe alone': {
    ...NO_POLL,
    'want more': 'connecting [no stream, poll 0] poll in 10000',
    'want more, told': 'connecting [no stream, poll 0] poll in 10000',
    'want the same': '=',
    'want nothing': 'offline (idle) [no stream]',
    'use sse': 'connecting [no stream, poll 0] poll in 10000',
    'other network': 'sse is good',
    'stream heard open': '=',
    'stream heard tick': 'stream in 37500 proven websocket is good',
    'stream heard a reset': 'catching-up',
    'stream heard live': '=',
    'stream ended': '[no stream, sse, poll 25] stream in 3000 poll in 35000',
    'stream lost': '[no stream, sse, poll 25] stream in 3000 poll in 35000',
    'stream refused': '[no stream, sse, poll 25] stream in 3000 poll in 35000',
    'stream said: drained': 'offline (draining) [no stream] back in 2250',
    'stream said: expired': 'offline (expired) [no stream] back in 250',
    'stream said: revoked': 'denied (revoked) [no stream] back in 225000',
    look: '=',
    'look anew': 'connecting [no stream, poll 0] poll in 10000',
    hide: 'offline (hidden) [no stream] back in 30000',
    stuck: '=',
    wake: '=',
    close: 'closed (closed) [no stream]',
  },
  'live, probe and poll': {
    'want more': 'connecting [no stream, no poll, poll 0] poll in 10000',
    'want more, told': 'connecting [no stream, no poll, poll 0] poll in 10000',
    'want the same': '=',
    'want nothing': 'offline (idle) [no stream, no poll]',
    'use sse': 'connecting [no stream, no poll, poll 0] poll in 10000',
    'other network': 'sse is good',
    'poll heard open': 'poll in 35000',
    'poll heard changes': 'poll in 35000',
    'poll heard a reset': 'catching-up [no stream] poll in 35000',
    'poll heard live': 'poll in 35000',
    'poll answered live': 'carry in 300',
    'poll answered next': 'offline (cut off) [no stream] back in 250',
    'poll cut off': 'offline (cut off) [no stream] back in 250',
    'poll lost': 'offline (unavailable) [no stream, no poll] back in 250',
    'poll asked for peace': 'offline (unavailable) [no stream, no poll] back in 7250',
    'poll refused': 'denied (forbidden) [no stream, no poll] back in 225000',
    'poll said: expired': '[no stream, no poll, poll 0] poll in 10000',
    'stream heard open': '=',
    'stream heard tick': '[no poll] stream in 37500 proven websocket is good',
    'stream heard a reset': 'catching-up [no poll]',
    'stream heard live': '=',
    'stream ended': '[no stream, sse] stream in 3000',
    'stream lost': '[no stream, sse] stream in 3000',
    'stream refused': '[no stream, sse] stream in 3000',
    'stream said: drained': 'offline (draining) [no stream, no poll] back in 2250',
    'stream said: expired': 'offline (expired) [no stream, no poll] back in 250',
    'stream said: revoked': 'denied (revoked) [no stream, no poll] back in 225000',
    look: '=',
    'look anew': 'connecting [no stream, no poll, poll 0] poll in 10000',
    hide: 'offline (hidden) [no stream, no poll] back in 30000',
    stuck: '[no poll, poll 16]',
    wake: '=',
    close: 'closed (closed) [no stream, no poll]',
  },
  'live, probe too late': {
    'want more': 'connecting [no stream, no poll, poll 0] poll in 10000',
    'want more, told': 'connecting [no stream, no poll, poll 0] poll in 10000',
    'want the same': '=',
    'want nothing': 'offline (idle) [no stream, no poll]',
    'use sse': 'connecting [no stream, no poll, poll 0] poll in 10000',
    'other network': 'sse is good',
    'poll heard open': 'poll in 35000',
    'poll heard changes': 'poll in 35000',
    'poll heard a reset': 'catching-up [no stream] poll in 35000',
    'poll heard live': 'poll in 35000',
    'poll answered live': 'carry in 300',
    'poll answered next': 'offline (cut off) [no stream] back in 250',
    'poll cut off': 'offline (cut off) [no stream] back in 250',
    'poll lost': 'offline (unavailable) [no stream, no poll] back in 250',
    'poll asked for peace': 'offline (unavailable) [no stream, no poll] back in 7250',
    'poll refused': 'denied (forbidden) [no stream, no poll] back in 225000',
    'poll said: expired': '[no stream, no poll, poll 0] poll in 10000',
    'stream heard open': '=',
    'stream heard tick': '[no poll] stream in 37500 proven websocket is good',
    'stream heard a reset': 'catching-up [no poll]',
    'stream heard live': '=',
    'stream ended': '[no stream, sse] stream in 3000',
    'stream lost': '[no stream, sse] stream in 3000',
    'stream refused': '[no stream, sse] stream in 3000',
    'stream said: drained': 'offline (draining) [no stream, no poll] back in 2250',
    'stream said: expired': 'offline (expired) [no stream, no poll] back in 250',
    'stream said: revoked': 'denied (revoked) [no stream, no poll] back in 225000',
    look: '=',
    'look anew': 'connecting [no stream, no poll, poll 0] poll in 10000',
    hide: 'offline (hidden) [no stream, no poll] back in 30000',
    stuck: '[no poll, poll 16]',
    wake: '[no stream, sse] stream in 3000',
    close: 'closed (closed) [no stream, no poll]',
  },
  'live, no stream is left': {
    ...NO_STREAM,
    'want more': 'connecting [no poll, poll 0] poll in 10000',
    'want more, told': 'connecting [no poll, poll 0] poll in 10000',
    'want the same': '=',
    'want nothing': 'offline (idle) [no poll]',
    'use sse': 'connecting [no poll, poll 0] poll in 10000',
    'other network': 'sse is good',
    'poll heard open': 'poll in 35000 websocket is bad sse is bad',
    'poll heard changes': 'poll in 35000 websocket is bad sse is bad',
    'poll heard a reset': 'catching-up poll in 35000 websocket is bad sse is bad',
    'poll heard live': 'poll in 35000 websocket is bad sse is bad',
    'poll answered live': '[poll 25] poll in 35000',
    'poll answered next': 'offline (cut off) back in 250',
    'poll cut off': 'offline (cut off) back in 250',
    'poll lost': 'offline (unavailable) [no poll] back in 250',
    'poll asked for peace': 'offline (unavailable) [no poll] back in 7250',
    'poll refused': 'denied (forbidden) [no poll] back in 225000',
    'poll said: expired': '[no poll, poll 0] poll in 10000',
    look: '[websocket] stream in 3000',
    'look anew': 'connecting [no poll, poll 0] poll in 10000',
    hide: 'offline (hidden) [no poll] back in 30000',
    stuck: '[no poll, poll 16]',
    wake: '=',
    close: 'closed (closed) [no poll]',
  },
  'live, streams are due': {
    ...NO_STREAM,
    'want more': 'connecting [no poll, poll 0] poll in 10000',
    'want more, told': 'connecting [no poll, poll 0] poll in 10000',
    'want the same': '=',
    'want nothing': 'offline (idle) [no poll]',
    'use sse': 'connecting [no poll, poll 0] poll in 10000',
    'other network': 'sse is good',
    'poll heard open': 'poll in 35000 websocket is bad sse is bad',
    'poll heard changes': 'poll in 35000 websocket is bad sse is bad',
    'poll heard a reset': 'catching-up poll in 35000 websocket is bad sse is bad',
    'poll heard live': 'poll in 35000 websocket is bad sse is bad',
    'poll answered live': '[poll 25] poll in 35000',
    'poll answered next': 'offline (cut off) back in 250',
    'poll cut off': 'offline (cut off) back in 250',
    'poll lost': 'offline (unavailable) [no poll] back in 250',
    'poll asked for peace': 'offline (unavailable) [no poll] back in 7250',
    'poll refused': 'denied (forbidden) [no poll] back in 225000',
    'poll said: expired': '[no poll, poll 0] poll in 10000',
    look: '[websocket] stream in 3000',
    'look anew': 'connecting [no poll, poll 0] poll in 10000',
    hide: 'offline (hidden) [no poll] back in 30000',
    stuck: '[no poll, poll 16]',
    wake: '[websocket] stream in 3000',
    close: 'closed (closed) [no poll]',
  },
  'live, poll at once': {
    ...NO_STREAM,
    'want more': 'connecting [no poll, poll 0] poll in 10000',
    'want more, told': 'connecting [no poll, poll 0] poll in 10000',
    'want the same': '=',
    'want nothing': 'offline (idle) [no poll]',
    'use sse': 'connecting [no poll, poll 0] poll in 10000',
    'other network': 'sse is good',
    'poll heard open': 'poll in 35000',
    'poll heard changes': 'poll in 35000',
    'poll heard a reset': 'catching-up poll in 35000',
    'poll heard live': 'poll in 35000',
    'poll answered live': 'offline (nothing new) back in 2000',
    'poll answered next': 'offline (cut off) back in 2000',
    'poll cut off': 'offline (cut off) back in 2000',
    'poll lost': 'offline (unavailable) [no poll] back in 2000',
    'poll asked for peace': 'offline (unavailable) [no poll] back in 9000',
    'poll refused': 'denied (forbidden) [no poll] back in 225000',
    'poll said: expired': '[no poll, poll 0] poll in 10000',
    look: '[websocket] stream in 3000',
    'look anew': 'connecting [no poll, poll 0] poll in 10000',
    hide: 'offline (hidden) [no poll] back in 30000',
    stuck: '[no poll, poll 16]',
    wake: '=',
    close: 'closed (closed) [no poll]',
  },
  'live, proven': {
    ...NO_POLL,
    'want more': 'connecting [no stream, poll 0] poll in 10000',
    'want more, told': 'catching-up carry in 10000',
    'want the same': '=',
    'want nothing': 'offline (idle) [no stream]',
    'use sse': 'connecting [no stream, poll 0] poll in 10000',
    'other network': 'sse is good',
    'stream heard open': 'stream in 50000',
    'stream heard tick': 'stream in 37500',
    'stream heard a reset': 'catching-up stream in 37500',
    'stream heard live': 'stream in 37500',
    'stream ended': 'offline (ended) [no stream] back in 250',
    'stream lost': 'offline (unavailable) [no stream] back in 250',
    'stream refused': 'offline (forbidden) [no stream] back in 250',
    'stream said: drained': 'offline (draining) [no stream] back in 2250',
    'stream said: expired': '[no stream, poll 0] poll in 10000',
    'stream said: revoked': 'denied (revoked) [no stream] back in 225000',
    look: '=',
    'look anew': 'connecting [no stream, poll 0] poll in 10000',
    hide: 'offline (hidden) [no stream] back in 30000',
    stuck: '=',
    wake: '=',
    close: 'closed (closed) [no stream]',
  },
  'live, proven silent': {
    ...NO_POLL,
    'want more': 'connecting [no stream, poll 0] poll in 10000',
    'want more, told': 'catching-up carry in 10000',
    'want the same': '=',
    'want nothing': 'offline (idle) [no stream]',
    'use sse': 'connecting [no stream, poll 0] poll in 10000',
    'other network': 'sse is good',
    'stream heard open': 'stream in 50000',
    'stream heard tick': 'stream in 37500',
    'stream heard a reset': 'catching-up stream in 37500',
    'stream heard live': 'stream in 37500',
    'stream ended': 'offline (ended) [no stream] back in 250',
    'stream lost': 'offline (unavailable) [no stream] back in 250',
    'stream refused': 'offline (forbidden) [no stream] back in 250',
    'stream said: drained': 'offline (draining) [no stream] back in 2250',
    'stream said: expired': '[no stream, poll 0] poll in 10000',
    'stream said: revoked': 'denied (revoked) [no stream] back in 225000',
    look: 'connecting [no stream, poll 0] poll in 10000',
    'look anew': 'connecting [no stream, poll 0] poll in 10000',
    hide: 'offline (hidden) [no stream] back in 30000',
    stuck: '=',
    wake: 'offline (silent) [no stream] back in 250',
    close: 'closed (closed) [no stream]',
  },
  'live, died young twice': {
    ...NO_POLL,
    'want more': 'connecting [no stream, poll 0] poll in 10000',
    'want more, told': 'catching-up carry in 10000',
    'want the same': '=',
    'want nothing': 'offline (idle) [no stream]',
    'use sse': 'connecting [no stream, poll 0] poll in 10000 deaths 0',
    'other network': 'sse is good',
    'stream heard open': 'stream in 50000',
    'stream heard tick': 'stream in 37500',
    'stream heard a reset': 'catching-up stream in 37500',
    'stream heard live': 'stream in 37500',
    'stream ended': 'offline (ended) [no stream] back in 2000 deaths 0 websocket is bad',
    'stream lost': 'offline (unavailable) [no stream] back in 2000 deaths 0 websocket is bad',
    'stream refused': 'offline (forbidden) [no stream] back in 2000 deaths 0 websocket is bad',
    'stream said: drained': 'offline (draining) [no stream] back in 4000 deaths 0',
    'stream said: expired': 'offline (expired) [no stream] back in 2000 deaths 0',
    'stream said: revoked': 'denied (revoked) [no stream] back in 225000',
    look: '=',
    'look anew': 'connecting [no stream, poll 0] poll in 10000',
    hide: 'offline (hidden) [no stream] back in 30000',
    stuck: '=',
    wake: '=',
    close: 'closed (closed) [no stream]',
  },
  'fixed, catching-up': {
    ...NO_STREAM,
    'want more': 'connecting [no poll, poll 0] poll in 10000',
    'want more, told': 'connecting [no poll, poll 0] poll in 10000',
    'want the same': '=',
    'want nothing': 'offline (idle) [no poll]',
    'use sse': 'connecting [no poll, poll 0] poll in 10000',
    'other network': 'sse is good',
    'poll heard open': 'poll in 10000',
    'poll heard changes': 'poll in 10000',
    'poll heard a reset': 'poll in 10000',
    'poll heard live': 'poll in 10000',
    'poll answered live': '[sse] stream in 37500 carry in 10000',
    'poll answered next': '[poll 0] poll in 10000',
    'poll cut off': '[poll 0] poll in 10000',
    'poll lost': 'offline (unavailable) [no poll] back in 250',
    'poll asked for peace': 'offline (unavailable) [no poll] back in 7250',
    'poll refused': 'denied (forbidden) [no poll] back in 225000',
    'poll said: expired': '[no poll, poll 0] poll in 10000',
    look: '=',
    'look anew': 'connecting [no poll, poll 0] poll in 10000',
    hide: 'offline (hidden) [no poll] back in 30000',
    stuck: '=',
    wake: '=',
    close: 'closed (closed) [no poll]',
  },
  'fixed, live': {
    ...NO_POLL,
    'want more': 'connecting [no stream, poll 0] poll in 10000',
    'want more, told': 'catching-up carry in 10000',
    'want the same': '=',
    'want nothing': 'offline (idle) [no stream]',
    'use sse': 'connecting [no stream, poll 0] poll in 10000',
    'other network': 'sse is good',
    'stream heard open': 'stream in 50000',
    'stream heard tick': 'stream in 37500',
    'stream heard a reset': 'catching-up stream in 37500',
    'stream heard live': 'stream in 37500',
    'stream ended': 'offline (ended) [no stream] back in 250',
    'stream lost': 'offline (unavailable) [no stream] back in 250',
    'stream refused': 'denied (forbidden) [no stream] back in 225000',
    'stream said: drained': 'offline (draining) [no stream] back in 2250',
    'stream said: expired': '[no stream, poll 0] poll in 10000',
    'stream said: revoked': 'denied (revoked) [no stream] back in 225000',
    look: '=',
    'look anew': 'connecting [no stream, poll 0] poll in 10000',
    hide: 'offline (hidden) [no stream] back in 30000',
    stuck: 'connecting [no stream, poll 0] poll in 10000',
    wake: '=',
    close: 'closed (closed) [no stream]',
  },
  asleep: {
    ...NO_POLL,
    'want more': 'connecting [no stream, poll 0] poll in 10000',
    'want more, told': 'catching-up carry in 10000',
    'want the same': '=',
    'want nothing': 'offline (idle) [no stream]',
    'use sse': 'connecting [no stream, poll 0] poll in 10000',
    'other network': 'sse is good',
    'stream heard open': 'stream in 50000',
    'stream heard tick': 'stream in 37500',
    'stream heard a reset': 'catching-up stream in 37500',
    'stream heard live': 'stream in 37500',
    'stream ended': 'offline (ended) [no stream] back in 250',
    'stream lost': 'offline (unavailable) [no stream] back in 250',
    'stream refused': 'offline (forbidden) [no stream] back in 250',
    'stream said: drained': 'offline (draining) [no stream] back in 2250',
    'stream said: expired': '[no stream, poll 0] poll in 10000',
    'stream said: revoked': 'denied (revoked) [no stream] back in 225000',
    look: 'connecting [no stream, poll 0] poll in 10000',
    'look anew': 'connecting [no stream, poll 0] poll in 10000',
    hide: 'offline (hidden) [no stream] back in 30000',
    stuck: '=',
    wake: 'connecting [no stream, poll 0] poll in 10000',
    close: 'closed (closed) [no stream]',
  },
  denied: {
    ...NO_POLL,
    ...NO_STREAM,
    'want more': 'connecting [poll 0] poll in 10000',
    'want more, told': 'connecting [poll 0] poll in 10000',
    'want the same': 'connecting [poll 0] poll in 10000',
    'want nothing': '=',
    'use sse': 'connecting [poll 0] poll in 10000',
    'other network': 'sse is good',
    look: '=',
    'look anew': '=',
    hide: '=',
    stuck: '=',
    wake: '=',
    close: 'closed (closed)',
  },
  closed: {
    ...NO_POLL,
    ...NO_STREAM,
    'want more': '=',
    'want more, told': '=',
    'want the same': '=',
    'want nothing': '=',
    'use sse': '=',
    'other network': '=',
    look: '=',
    'look anew': '=',
    hide: '=',
    stuck: '=',
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
        assert.equal(describe(before, step(frozen, event, true, NOW, HALF)), expected, `${stateName} + ${eventName}`)
      }
    })
  }
})

/** Plays events to a machine, by the names of the table, and says what it does. @param {Partial<State>} [change] */
function machine(change = {}, whole = true) {
  /** @type {State} */
  let current = state({ attempt: 0, phase: 'offline', reason: 'idle', ...change })
  let now = NOW
  return {
    get state() {
      return current
    },
    get now() {
      return now
    },
    /** @param {Event} event @param {number} [after] ms */
    play(event, after = 0, chance = HALF) {
      now += after
      const { state: next, effects } = step(current, event, whole, now, chance)
      current = next
      return effects
    },
    /** Lets time pass until something is due. */
    wake() {
      now = Math.max(now, due(current))
      return this.play(EVENTS.wake)
    },
  }
}

/** From nothing to live by a poll. @param {ReturnType<typeof machine>} m */
function catchUp(m) {
  assert.ok(m.play(EVENTS['want more']).includes('poll'))
  m.play(EVENTS['poll heard live'], 5)
  return m.play(EVENTS['poll answered live'])
}

test('a page is live by a poll before any stream is tried, and the first proven stream takes over', () => {
  const m = machine()
  assert.deepEqual(catchUp(m), ['stream'])
  assert.equal(m.state.phase, 'live')
  assert.deepEqual(m.wake(), ['poll'], 'after 400 ms a poll carries the feed beside it')
  assert.equal(m.state.wait, HELD)
  m.play(EVENTS['stream heard open'])
  assert.deepEqual(m.play(EVENTS['stream heard tick'], 300), ['no poll'])
  assert.equal(m.state.net.good, 'websocket')
})

test('a feed that has another credential goes on at once, as live as it was, on the way that it had', () => {
  /** @param {keyof typeof STATES} name @param {keyof typeof EVENTS} event */
  const after = (name, event) => describe(STATES[name], step(STATES[name], EVENTS[event], true, NOW, HALF))
  assert.equal(after('live, proven', 'stream said: expired'), '[no stream, poll 0] poll in 10000')
  assert.equal(after('fixed, live', 'stream said: expired'), '[no stream, poll 0] poll in 10000')
  assert.equal(after('live, poll at once', 'poll said: expired'), '[no poll, poll 0] poll in 10000')
  assert.equal(after('catching-up, poll with news', 'poll said: expired'), '[no poll, poll 0] poll in 10000')
  // One that ends as soon as it began is lost.
  assert.match(after('live, probe alone', 'stream said: expired'), /^offline \(expired\) \[no stream\] back in/)
  assert.match(after('live, died young twice', 'stream said: expired'), /^offline \(expired\) \[no stream\] back in/)

  const m = machine()
  catchUp(m)
  m.play(EVENTS['stream heard tick'], 300)
  m.play(EVENTS['stream heard live'], 6000)
  assert.deepEqual(m.play(EVENTS['stream said: expired']), ['no stream', 'stream'], 'what is known to work')
  assert.equal(m.state.phase, 'live')
  assert.deepEqual(m.wake(), ['poll'], 'and a poll beside it if it does not')
})

test('on a network that lets no stream through, polls carry from 400 ms on, and streams are tried again ever more rarely', () => {
  const m = machine()
  catchUp(m)
  const begun = m.now
  /** @type {number[]} */
  const tries = []
  let carried = 0
  while (m.now < begun + 3_600_000) {
    let effects
    if (m.state.wait && due(m.state) - m.now > 6000) {
      m.play(EVENTS['poll heard live'], 5000)
      effects = m.play(EVENTS['poll answered live'])
    } else effects = m.wake()
    if (effects.includes('poll') && !carried) carried = m.now - begun
    if (effects.includes('stream')) tries.push(Math.round((m.now - begun) / 1000))
  }
  assert.ok(carried <= 400, `${carried}`)
  // WebSocket and SSE, 3 s each; then again after 1, 5, 15 and 15 minutes.
  assert.ok(tries.length >= 8 && tries.length <= 12, `${tries}`)
  assert.equal(m.state.phase, 'live')
})

test('a stream that was found bad is not tried first on the same network, and the one that worked is', () => {
  const m = machine({ net: { bad: { websocket: NOW + 600_000 }, times: 1 } })
  assert.deepEqual(catchUp(m), ['stream'])
  assert.equal(m.state.stream, 'sse')
  const known = machine({ net: { bad: {}, times: 0, good: 'sse' } })
  assert.deepEqual(known.play(EVENTS['want more']), ['stream'], 'and at once, if there is a cursor to resume by')
  assert.equal(known.state.stream, 'sse')
  assert.deepEqual(known.wake(), ['poll'])
  const fresh = machine({ net: { bad: {}, times: 0, good: 'sse' } }, false)
  assert.deepEqual(fresh.play(EVENTS['want more']), ['poll'], 'but who has nothing gets it by a poll')
})

test('three connections in a row that die young demote a stream; a server that restarts never does', () => {
  const kill = (/** @type {boolean} */ away) => {
    const m = machine()
    catchUp(m)
    for (let i = 0; i < 9 && !m.state.net.bad.websocket; i++) {
      m.play(EVENTS['stream heard tick'], 300)
      m.play(EVENTS['stream lost'], 2000)
      m.wake()
      if (away) {
        m.play(EVENTS['poll lost'], 1)
        m.wake()
      }
      m.play(EVENTS['poll heard live'], 5)
      m.play(EVENTS['poll answered live'])
    }
    return m.state
  }
  assert.equal(kill(false).stream, 'sse')
  assert.ok(!kill(true).net.bad.websocket)
})

test('a stream that was good here gets three tries before another one does', () => {
  const m = machine({ net: { bad: {}, times: 0, good: 'websocket' } }, true)
  m.play(EVENTS['want more'])
  for (let i = 0; i < 2; i++) {
    assert.equal(m.state.stream, 'websocket')
    if (m.state.wait === undefined) m.wake()
    m.play(EVENTS.wake, 3000)
    assert.equal(m.state.stream, '')
    m.play(EVENTS['poll heard live'], 5)
    m.play(EVENTS['poll answered live'])
    assert.deepEqual(m.state.net.bad, {})
  }
  m.play(EVENTS.wake, 3000)
  assert.equal(m.state.stream, 'sse')
})

test('where silent connections are cut, less is kept silent', () => {
  const m = machine()
  catchUp(m)
  for (let i = 0; i < 2; i++) {
    m.play(EVENTS['stream heard tick'], 300)
    m.play(EVENTS['stream lost'], 5050 - i * 90)
    m.wake()
    m.play(EVENTS['poll heard live'], 5)
    m.play(EVENTS['poll answered live'])
  }
  assert.equal(quiet(m.state, 15, 3), 3)
  assert.equal(quiet(m.state, HELD, 1), 2)
})

test('whoever slept connects at once, not after a pause, and blames nobody', () => {
  const m = machine({ ...STATES.asleep, deaths: 2 })
  assert.ok(m.play(EVENTS.wake).includes('poll'))
  assert.equal(m.state.phase, 'connecting')
  assert.equal(m.state.reason, '')
  assert.deepEqual(m.state.net.bad, {})
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
    const after = step(state, event, true, now, random())
    state = after.state
    return after.effects.some((effect) => effect === 'poll' || effect === 'stream')
  }
  let open = play(EVENTS['want more'])
  while (now < 1_800_000) {
    if (open) {
      opened++
      open = false
      for (const [delay, event] of story) {
        now += delay
        open = play(event) || open
        const other = { ...event, poll: !(/** @type {any} */ (event).poll) }
        open = play(/** @type {Event} */ (other)) || open
      }
    } else {
      assert.ok(due(state) < Infinity, 'it gave up')
      now = Math.max(now, due(state))
      open = play(EVENTS.wake)
    }
  }
  return opened
}

const heard = (live = false, news = 0, tick = false) =>
  /** @type {Event} */ ({ type: 'heard', poll: true, heartbeat: 15, live, news, tick })
const fresh = (/** @type {any} */ order, fixed = true) => initial(order, fixed, 15, 0)

/** @type {Record<string, [State, [number, Event][]]>} */
const STORMS = {
  'a server that is down': [fresh(['websocket', 'sse'], false), [[1, EVENTS['poll lost']]]],
  'a server that is down, for who insists': [fresh(['sse']), [[1, EVENTS['poll lost']]]],
  'answers that end right after open': [
    fresh(['sse']),
    [
      [1, heard()],
      [0, EVENTS['poll cut off']],
    ],
  ],
  'a cache that answers polls with nothing new': [
    fresh([]),
    [
      [1, heard(true)],
      [0, EVENTS['poll answered live']],
    ],
  ],
  'a poll that says next and brings nothing': [
    fresh([]),
    [
      [1, heard()],
      [0, EVENTS['poll answered next']],
    ],
  ],
  'a server that resets with each answer': [
    fresh([]),
    [
      [1, heard(false, -Infinity)],
      [0, heard(true, 5)],
      [0, EVENTS['poll answered live']],
    ],
  ],
  'a box that kills each stream once it is proven': [
    fresh(['websocket', 'sse'], false),
    [
      [1, heard(true, 0, true)],
      [1, EVENTS['poll answered live']],
    ],
  ],
  'a server that refuses': [fresh(['websocket', 'sse'], false), [[1, EVENTS['poll refused']]]],
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
    [10, EVENTS['poll cut off']],
  ])
  assert.ok(connections(fresh([]), story, () => 0.5) > 5000)
})

test('the first try after a good connection comes within half a second, later ones within 30 s', () => {
  assert.equal(backoff(0, 0.999999) < 500, true)
  assert.equal(Math.round(backoff(1, 1)), 1000)
  assert.equal(backoff(6, 1), 30_000)
  assert.equal(backoff(5000, 1), 30_000)
  assert.equal(backoff(7, 0), 0)
})

test('a Retry-After is kept to the end, whatever chance says, also by who follows or comes back meanwhile', () => {
  fc.assert(
    fc.property(
      fc.double({ min: 0, max: 0.999, noNaN: true }),
      fc.integer({ min: 1, max: 2 ** 40 }),
      (chance, retry) => {
        const over = /** @type {Event} */ ({ type: 'over', poll: true, reason: 'x', retry })
        let { state: s } = step(STATES['connecting, poll'], over, true, NOW, chance)
        assert.ok(s.dueBack >= NOW + retry)
        for (const event of [
          EVENTS['want nothing'],
          EVENTS['want more'],
          EVENTS.look,
          EVENTS['look anew'],
          EVENTS['use sse'],
          EVENTS.wake,
        ]) {
          const after = step(s, event, true, NOW + retry - 1, chance)
          assert.deepEqual(after.effects, [])
          s = after.state
        }
        assert.deepEqual(step(s, EVENTS.wake, true, s.dueBack, chance).effects, ['poll'])
      },
    ),
  )
})

test('whatever happens, in whatever order, there is always something to wait for, and one connection of a kind', () => {
  const events = Object.values(EVENTS).filter(({ type }) => type !== 'close')
  fc.assert(
    fc.property(
      fc.array(
        fc.record({
          event: fc.constantFrom(...events),
          after: fc.nat(40_000),
          whole: fc.boolean(),
          chance: fc.nat(99),
        }),
        { maxLength: 80 },
      ),
      (steps) => {
        let s = initial(['websocket', 'sse'], false, 15, 0)
        let now = NOW
        let poll = false
        let stream = false
        for (const { event, after, whole, chance } of steps) {
          now += after
          const { state: next, effects } = step(s, event, whole, now, chance / 100)
          for (const effect of effects) {
            // Opened over one that is there: the driver drops the old one first.
            if (effect === 'poll') poll = true
            else if (effect === 'stream') stream = true
            else if (effect === 'no poll') poll = false
            else stream = false
          }
          if (event.type === 'answered' && event.poll && s.wait !== undefined && !effects.includes('poll')) poll = false
          s = next
          assert.equal(s.wait !== undefined, poll, 'the poll that it believes in')
          assert.equal(!!s.stream, stream, 'the stream that it believes in')
          if (s.wanted) assert.ok(due(s) < Infinity, `${s.phase} for ever`)
          else assert.ok(!poll && !stream, 'nobody wants it')
          if (s.phase === 'live' || s.phase === 'catching-up' || s.phase === 'connecting') {
            assert.ok(poll || stream, `${s.phase} without a connection`)
          }
        }
      },
    ),
    { numRuns: 3000 * Number(process.env.RUNS ?? 1) },
  )
})
