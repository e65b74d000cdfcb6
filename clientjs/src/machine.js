/**
 * The life of a feed as a pure function: step(state, event) gives the next state and what to do. Time and chance come
 * in with the event; connections are opened, dropped and read by whoever drives it.
 *
 *     offline -> connecting -> catching-up -> live -+
 *        ^           |              |          |    |
 *        +-----------+-- lost ------+----------+    +-- or any: denied, closed
 *
 * Long poll passes every network, so polls carry the feed: the first ones catch up. Once live, a stream (WebSocket or
 * SSE) may take over. It has to prove itself: its `open` and its `tick`, sent 300 ms later, must both have been parsed,
 * because a box that holds answers back opens them as well as any. Until then it is a probe, and if that takes long, a
 * held poll carries the feed beside it. Both bring the same; cursors make that harmless.
 *
 * offline: nothing is followed (idle), or it waits to connect again. denied: the server refused; it is asked again, but
 * rarely. closed: by the user, for good.
 */

/** @typedef {'websocket' | 'sse'} Stream */
/** @typedef {Stream | 'poll'} Transport */
/** @typedef {'offline' | 'connecting' | 'catching-up' | 'live' | 'denied' | 'closed'} Phase */

/**
 * What is known of a network, to be remembered.
 * @typedef {object} Network
 * @property {Stream} [good] what worked last
 * @property {number} [at] when that was proven, or other things learned
 * @property {Partial<Record<Stream, number>>} bad until when each is not tried by itself
 * @property {number} times how often in a row one was found bad: the next one stays so for longer
 * @property {number} [quiet] s: connections on which nothing is said for longer are cut
 */

/**
 * @typedef {object} State
 * @property {Phase} phase
 * @property {Stream[]} order the streams to try, best first
 * @property {boolean} fixed the first of them, and nothing else: polls only catch up
 * @property {boolean} [wanted] whether anything is followed
 * @property {number} heartbeat s
 * @property {Network} net
 * @property {'' | Stream} stream the one that is open
 * @property {boolean} proven whether the stream is
 * @property {number} opened when it was, and when it was last heard
 * @property {number} heard
 * @property {number} [wait] s: a poll is under way, held for so long at most; undefined: none is
 * @property {number} asked when it was
 * @property {number} news how often something new came since one was opened; -Infinity after a reset, because a server
 *   that can't help resetting has no news
 * @property {number} [limit] of changes in an answer: many once there is something to look at, few after one broke off
 * @property {number} attempt how many losses there were since things last went well
 * @property {number} deaths how many proven streams in a row died young
 * @property {number} idle ms: after how long a silence the last connection was cut
 * @property {Stream[]} tried since the last connect, or the last time for a new try
 * @property {number} round how many of those times there were
 * @property {number} dueStream when it counts as dead, or as not proven
 * @property {number} duePoll when it counts as dead
 * @property {number} dueCarry when a poll is to carry what the stream does not yet; or the stream must, if it can
 * @property {number} dueProbe when streams are tried again
 * @property {number} dueBack when to connect again. Each: Infinity for never
 * @property {number} peace before then the server is not to be bothered
 * @property {number} since when the phase began
 * @property {string} reason why it is offline or denied
 * @property {string} why the last change of transport
 */

/**
 * What happens to a feed.
 *
 * - `want`: what is followed has changed, or somebody wants it to run where it was denied. `wanted`: anything at all;
 *   `changed`: the connections do not carry it; `told`: but the stream is being told.
 * - `use`: these streams, please.
 * - `network`: which it is was said, and this is what is known of it, if anything.
 * - `heard`: frames came together. `heartbeat`: as `open` said, else 0; `live`: there was one, and no reset after it;
 *   `news`: how much they brought, -Infinity with a reset; `tick`: it has passed the test of time, and carries all.
 * - `answered`: the answer came to its end. `last`: a poll's should be `live` or `next`, else it was cut off.
 * - `over`: the connection is. `retry`: how long the server asks to be left alone; null: not to come back unchanged;
 *   `said`: these are its own words, not a proxy's; `anew`: there is another credential to go on with.
 * - `look`: the page is back, or the network. `anew`: connections are dead, whatever they say.
 * - `hide`: the page, or the network, is gone.
 * - `stuck`: a write has no answer for long, perhaps because the feed has the only connection that there is.
 * - `wake`: time has passed.
 *
 * @typedef {{poll?: boolean}} Of whether it is about the poll, not the stream
 * @typedef {{type: 'want', wanted: boolean, changed: boolean, told: boolean}
 *   | {type: 'use', order: Stream[], fixed: boolean}
 *   | {type: 'network', net?: Network}
 *   | {type: 'heard', poll: boolean, heartbeat: number, live: boolean, news: number, tick: boolean}
 *   | {type: 'answered', poll: boolean, last: string}
 *   | {type: 'over', poll?: boolean, reason: string, retry: number | null, said?: boolean, anew?: unknown}
 *   | {type: 'look', anew?: boolean}
 *   | {type: 'hide', reason: string}
 *   | {type: 'stuck'}
 *   | {type: 'wake'}
 *   | {type: 'close'}
 * } Event times in ms; but heartbeat in s
 */

/** poll, stream: open one, for all that is followed. no poll, no stream: drop it. */
/** @typedef {'poll' | 'stream' | 'no poll' | 'no stream'} Effect */

/** A poll is held so long, in seconds, once the client is live. Before that it is answered at once. */
export const HELD = 25
/** So long a probe may be on its own before a poll carries the feed, and before it has failed. */
export const CARRY = 400
export const LIMIT = 3000
/** A stream that lives so long was no mistake. Three that do not are one. */
const YOUNG = 10e3
const DEATHS = 3
/** After a young death this many seconds of silence are enough, so that the next death is seen sooner. */
export const CAREFUL = 4
/** Live for so long and all is well again. */
const STEADY = 5000
/** An answer with nothing new that comes sooner, or a stream that ends sooner: to ask again at once would make a hot loop. */
const QUICK = 1000
/** Where no stream gets through they are tried again after 1, 5 and then every so many minutes. */
const LONGEST = 15
/** A shorter silence than this is no sign of a box that cuts idle connections. */
const IDLE = 2000
const MINUTE = 60e3
/** A network that nothing is known of. @type {Network} */
const UNKNOWN = { bad: {}, times: 0 }

/**
 * @param {Stream[]} order
 * @param {boolean} fixed
 * @param {number} heartbeat s: what the client asks for, until the server says what it is
 * @param {number} now
 * @returns {State}
 */
export const initial = (order, fixed, heartbeat, now) => ({
  phase: 'offline',
  order,
  fixed,
  heartbeat,
  net: UNKNOWN,
  stream: '',
  proven: false,
  opened: 0,
  heard: 0,
  asked: 0,
  news: 0,
  attempt: 0,
  deaths: 0,
  idle: 0,
  tried: [],
  round: 0,
  dueStream: Infinity,
  duePoll: Infinity,
  dueCarry: Infinity,
  dueProbe: Infinity,
  dueBack: Infinity,
  peace: 0,
  since: now,
  reason: 'idle',
  why: '',
})

/** When to wake it. @param {State} state */
export const due = ({ dueStream, duePoll, dueCarry, dueProbe, dueBack }) =>
  Math.min(dueStream, duePoll, dueCarry, dueProbe, dueBack)

/**
 * What a request asks for: shorter silences where long ones are cut.
 * @param {State} state
 * @param {number} most s
 * @param {number} least s
 */
export const quiet = ({ net }, most, least) => Math.max(least, Math.min(most, net.quiet || most))

/**
 * Full jitter: anywhere between nothing and a limit that doubles from 0.5 to 30 s.
 * @param {number} attempt
 * @param {number} random from 0 to below 1
 */
export const backoff = (attempt, random) => random * Math.min(30e3, 500 * 2 ** attempt)

/**
 * @param {State} state
 * @param {Event} event
 * @param {boolean} whole whether all that is followed can be resumed: only then may two connections speak at once,
 *   because one that starts from nothing says nothing of what is gone
 * @param {number} now ms; may start anywhere, but never goes back
 * @param {number} random from 0 to below 1
 * @returns {{state: State, effects: Effect[]}}
 */
export function step(state, event, whole, now, random) {
  const next = { ...state }
  /** @type {Effect[]} */
  const effects = []
  const { phase, fixed, proven } = state
  if (state.news > 0 || (phase === 'live' && now - state.since >= STEADY)) next.attempt = 0

  /**
   * @param {Phase} phase
   * @param {string} [reason]
   */
  const to = (phase, reason = '') => {
    if (phase !== state.phase) next.since = now
    next.phase = phase
    next.reason = reason
  }

  /** Whether it is not to be tried yet. @param {Stream} stream */
  const isBad = (stream) => (next.net.bad[stream] ?? 0) > now

  /** @param {Partial<Network>} change */
  const learn = (change) => {
    next.net = { ...next.net, at: now, ...change }
  }

  const dropStream = () => {
    if (next.stream) effects.push('no stream')
    next.stream = ''
    next.proven = false
    next.dueStream = next.dueCarry = Infinity
  }

  const endPoll = () => {
    next.wait = undefined
    next.duePoll = Infinity
  }

  const dropPoll = () => {
    if (next.wait != null) effects.push('no poll')
    endPoll()
  }

  /** No word for so long and the stream counts as dead. */
  const watch = () => {
    next.heard = now
    next.dueStream = now + 2500 * next.heartbeat
  }

  /** @param {Stream} stream */
  const open = (stream) => {
    watch()
    next.stream = stream
    next.news = 0
    next.opened = now
    next.tried = [...next.tried, stream]
    if (fixed) next.dueCarry = now + YOUNG
    else next.dueStream = now + LIMIT
    effects.push('stream')
  }

  /**
   * A first frame gets 10 s at least.
   * @param {number} wait s
   */
  const poll = (wait) => {
    next.wait = wait
    next.asked = now
    next.news = 0
    next.duePoll = now + 1000 * (wait + 10)
    next.dueCarry = Infinity
    effects.push('poll')
  }

  /** A poll that is held while there is nothing new; at once as long as there is. */
  const carry = () => poll(next.phase === 'live' ? quiet(next, HELD, 1) : 0)

  /** Tries the next stream: what worked last before the others, and none that was bad. */
  const probe = () => {
    const left = next.order.filter((s) => !next.tried.includes(s) && (fixed || !isBad(s)))
    const stream = left.find((s) => s === next.net.good) ?? left[0]
    next.dueProbe = Infinity
    if (stream) open(stream)
    else if (next.order.length) next.dueProbe = now + Math.min(LONGEST, 5 ** next.round++) * MINUTE
  }

  /** Time for a new try, also of what was bad. */
  const reprobe = () => {
    next.tried = []
    learn({ bad: {} })
    probe()
  }

  /**
   * @param {Phase} phase
   * @param {string} reason
   * @param {number} back
   */
  const rest = (phase, reason, back = Infinity) => {
    dropStream()
    dropPoll()
    to(phase, reason)
    next.tried = []
    next.news = 0
    next.dueProbe = Infinity
    next.dueBack = back
  }

  /** @param {Phase} [phase] */
  const connect = (phase = 'connecting') => {
    if (!next.wanted) return rest('offline', 'idle')
    rest(phase, '')
    const { good } = next.net
    // What is known to work resumes at once. A poll is beside it soon if it does not.
    if (good && whole && !next.deaths && next.order.includes(good)) {
      open(good)
      if (!fixed) next.dueCarry = now + CARRY
    } else poll(0)
  }

  /** @param {string} reason @param {any} [retry] ms */
  const lose = (reason, retry) => {
    const pause = retry > 0 ? retry : 0
    next.peace = now + pause
    rest('offline', reason, now + pause + backoff(next.attempt++, random))
  }

  /** Whatever failed may have failed because the server, or the whole network, was away: no transport is to blame. */
  const away = (/** @type {string} */ reason, /** @type {any} */ retry = 0) => {
    next.deaths = 0
    lose(reason, retry)
  }

  /**
   * A poll's answer broke off: the next one is to be shorter. As long as each brings something, there is an end to it.
   */
  const broke = () => {
    if (state.wait) cut(state.asked)
    next.limit = (state.limit ?? 1000) >> 5 || 1
    if (state.news > 0) poll(state.wait ?? 0)
    else away('cut off')
  }

  /** A connection ended while it was silent, twice after about the same time: something cuts those. */
  const cut = (/** @type {number} */ from) => {
    const idle = now - from
    if (idle < IDLE) return
    if (Math.abs(idle - state.idle) < 0.2 * idle) learn({ quiet: Math.floor(idle * 0.0006) || 1 })
    next.idle = idle
  }

  /** @param {Stream} stream */
  const bad = (stream) => {
    const until = now + Math.min(60, 10 * 2 ** next.net.times) * MINUTE
    learn({
      good: next.net.good === stream ? undefined : next.net.good,
      bad: { ...next.net.bad, [stream]: until },
      times: next.net.times + 1,
    })
  }

  /**
   * @param {string} reason
   * @param {any} [retry] ms
   */
  const streamLost = (reason, retry) => {
    const stream = /** @type {Stream} */ (state.stream)
    next.why = `${stream}: ${reason}`
    if (proven || fixed) {
      // One that fell silent has lived no longer than it spoke.
      const end = reason === 'silent' ? state.heard : now
      if (end === now) cut(state.heard)
      next.deaths = end - state.opened < YOUNG ? state.deaths + 1 : 0
      if (next.deaths >= DEATHS && !fixed) {
        bad(stream)
        next.deaths = 0
      }
      return lose(reason, retry)
    }
    dropStream()
    // A poll carries from here on, and says whether the server is there at all. If so, this way is no way; but one that
    // was good here may only be slow, as when everybody comes back to a server at once.
    if (state.net.good === stream && state.deaths < DEATHS - 1) {
      next.deaths++
      next.tried = []
    } else if (phase === 'live' && whole) probe()
    if (next.wait == null) carry()
  }

  const { type } = event
  const apart = phase === 'offline' || phase === 'denied'
  if (phase === 'closed') {
    // Nothing brings it back.
  } else if (type === 'want') {
    next.wanted = event.wanted
    if (apart) {
      // Waiting goes on: who follows next must not come sooner than the server asked for.
      if (event.wanted && (state.dueBack === Infinity || phase === 'denied')) connect()
    } else if (!event.wanted || (event.changed && !(event.told && proven))) connect()
    else if (event.changed) {
      dropPoll()
      to('catching-up')
      next.dueCarry = now + YOUNG
    }
  } else if (type === 'use') {
    next.order = event.order
    next.fixed = event.fixed
    next.deaths = 0
    // Also where it was denied, or waits; but not sooner than the server asked for.
    if (now >= state.peace) connect()
  } else if (type === 'network') {
    next.net = event.net ?? UNKNOWN
  } else if (type === 'close') {
    rest('closed', 'closed')
  } else if (type === 'hide') {
    if (!apart) rest('offline', event.reason, now + 30e3)
  } else if (type === 'look') {
    next.round = 0
    if (apart) {
      if (now >= state.peace && phase === 'offline') {
        next.attempt = 0
        connect()
      }
    } else if (event.anew || (proven && now - state.heard > 1200 * state.heartbeat)) connect()
    else if (phase === 'live' && !state.stream && whole && now - state.opened > YOUNG) reprobe()
  } else if (type === 'stuck') {
    if (proven && state.stream === 'sse') connect()
    else if (state.wait) {
      // The write is in line before the next poll, which is held for what is left of this one: silence does not last
      // longer by it.
      dropPoll()
      poll(Math.max(0, ((state.duePoll - now) / 1000 - 10) | 0))
    }
  } else if (type === 'wake') {
    if (now < due(state)) {
      // Too early.
    } else if (apart || now - due(state) > YOUNG) {
      // So late that we must have slept: what was open is not, and nobody is to blame.
      connect()
    } else if (now >= state.duePoll) away('silent')
    else if (now >= state.dueStream) streamLost(proven ? 'silent' : 'not proven')
    else {
      // Whoever hears us not, for all that it says, is no way to follow more.
      if (now < state.dueCarry) {
        // It carries what it can.
      } else if (proven || fixed) streamLost('mute')
      else {
        // What starts from nothing can't be overtaken.
        if (!whole) {
          dropStream()
          next.tried = []
        }
        carry()
      }
      if (now >= state.dueProbe) reprobe()
    }
  } else if (apart || (event.poll ? state.wait == null : !state.stream)) {
    // The rest is about a connection, and that one is gone.
  } else if (type === 'heard') {
    next.heartbeat = event.heartbeat || state.heartbeat
    next.news += event.news
    if (event.poll) {
      next.duePoll = now + 1000 * ((state.wait ?? 0) + 10)
      // The server is there, so what failed before it answered failed by itself.
      for (const stream of state.tried) {
        if (stream !== state.stream && !isBad(stream) && !fixed) bad(stream)
      }
    } else {
      next.heard = now
      if (event.tick || proven || fixed) watch()
      if (event.tick) next.dueCarry = Infinity
      if (event.tick && !proven) {
        next.proven = true
        const stream = /** @type {Stream} */ (state.stream)
        learn({ good: stream, bad: { ...state.net.bad, [stream]: 0 } })
        next.round = 0
        next.why = `${stream}: proven`
        next.dueProbe = Infinity
        dropPoll()
      }
    }
    if (event.news < 0) {
      // Whoever brings a reset brings it alone.
      if (event.poll) dropStream()
      else dropPoll()
      next.tried = []
    }
    if (event.live && !(fixed && event.poll && next.order.length)) to('live')
    else if (event.news < 0 || phase === 'connecting') to('catching-up')
  } else if (type === 'over') {
    const { reason, retry, said } = event
    if (event.anew && (event.poll || now - state.opened >= QUICK)) {
      // What is shown is no older for it. A stream that ends so soon after it began is a loss like any other.
      connect(phase)
    } else if (!event.poll && !said && (!fixed || retry !== null)) streamLost(reason, retry)
    else if (retry === null) {
      // Half of it for sure: a crowd of refused clients is a crowd too.
      rest('denied', reason, now + (0.5 + random / 2) * 5 * MINUTE)
    } else if (event.poll && reason === 'cut off') broke()
    else {
      if (event.poll && state.wait) cut(state.asked)
      away(reason, retry)
    }
  } else if (!event.poll) streamLost('ended')
  else {
    const { wait = 0, news, asked } = state
    endPoll()
    if (event.last === 'next' && news > 0) {
      // Whoever has seen the first page can wait a little for the second.
      next.limit = Math.min(1e4, 2 * (state.limit ?? 1e4))
      poll(0)
    } else if (event.last !== 'live') {
      broke()
    } else if (!wait || news > 0 || now - asked >= QUICK) {
      next.limit = undefined
      // The first answer may well be empty at once: it was asked not to wait. The later ones are asked to.
      if (!state.stream && (whole || fixed) && state.dueProbe === Infinity) probe()
      if (!next.stream || (!fixed && now - next.opened >= CARRY)) carry()
      else if (!fixed) next.dueCarry = next.opened + CARRY
    } else away('nothing new')
  }
  return { state: next, effects }
}
