/**
 * The life of a feed as a pure function: step(state, event) gives the next state and what to do. Time and chance come
 * in with the event; connections are opened, dropped and read by whoever drives it.
 *
 *     offline -> connecting -> catching-up -> live -+
 *        ^           |              |          |    |
 *        +-----------+-- lost ------+----------+    +-- or any: closed
 *
 * offline: either nothing is followed (idle), or it waits to connect again, until due. closed: the server said not to
 * come back unchanged (stopped), or the user closed it, for good (final).
 */

/** @typedef {'websocket' | 'sse' | 'poll'} Transport */
/** @typedef {'offline' | 'connecting' | 'catching-up' | 'live' | 'closed'} Phase as users see it */

/**
 * @typedef {object} State
 * @property {Phase} phase
 * @property {Transport} transport
 * @property {boolean} [wanted] whether anything is followed
 * @property {number} heartbeat s
 * @property {number} [wait] s: how long the poll under way may be held
 * @property {number} [asked] when the connection, or the poll, was opened
 * @property {number} due when a wake is due: Infinity for never
 * @property {number} attempt how many losses there were since things last went well
 * @property {number} [news] how often this connection, or poll, brought something new; -Infinity after a reset, because
 *   a server that can't help resetting has no news
 * @property {number} since when the phase began
 * @property {boolean} [final] whether closed is for good
 * @property {string} reason why it is offline or closed
 */

/**
 * What happens to a feed.
 *
 * - `want`: what is followed has changed, or somebody wants it to run where the server had ended it. `wanted`: anything
 *   at all; `changed`: the connection under way does not carry it (a WebSocket: not all of it, and it is being told).
 * - `transport`: another one, please.
 * - `heard`: frames came together. `heartbeat`: as `open` said; `live`: there was one, and no reset after it; `news`: how
 *   much they brought, -Infinity with a reset.
 * - `answered`: the stream came to its end. `last`: a poll's should be `live` or `next`, else it was cut off.
 * - `over`: the connection is. `retry`: how long the server asks to be left alone; null: it said not to come back.
 * - `wake`: time has passed.
 *
 * @typedef {{type: 'want', wanted: boolean, changed: boolean}
 *   | {type: 'transport', transport: Transport}
 *   | {type: 'heard', heartbeat: number, live: boolean, news: number}
 *   | {type: 'answered', last: string}
 *   | {type: 'over', reason: string, retry: number | null}
 *   | {type: 'wake'}
 *   | {type: 'close'}
 * } Event times in ms; but heartbeat in s, 0 where it was not said
 */

/**
 * open: a connection on state.transport, for all that is followed (a poll: held for state.wait). drop: the connection,
 * if there is one.
 * @typedef {'open' | 'drop'} Effect
 */

/** A poll is held so long, in seconds, once the client is live. Before that it is answered at once. */
export const HELD = 25
/** Live for so long and a connection was good: boxes that kill young ones do so within a second. */
const STEADY = 5000
/** An answer with nothing new that comes sooner was not held: asking again at once would make a hot loop. */
const QUICK = 1000

/**
 * @param {Transport} transport
 * @param {number} heartbeat s: what the client asks for, until the server says what it is
 * @param {number} now
 * @returns {State}
 */
export const initial = (transport, heartbeat, now) => ({
  phase: 'offline',
  transport,
  heartbeat,
  due: Infinity,
  attempt: 0,
  since: now,
  reason: 'idle',
})

/**
 * Full jitter: anywhere between nothing and a limit that doubles from 0.5 to 30 s.
 * @param {number} attempt
 * @param {number} random from 0 to below 1
 */
export const backoff = (attempt, random) => random * Math.min(30e3, 500 * 2 ** attempt)

/**
 * @param {State} state
 * @param {Event} event
 * @param {number} now ms; may start anywhere, but never goes back
 * @param {number} random from 0 to below 1
 * @returns {{state: State, effects: Effect[]}}
 */
export function step(state, event, now, random) {
  const next = { ...state }
  /** @type {Effect[]} */
  const effects = []
  const { phase, transport, wait = 0, asked = 0, news = 0 } = state
  if (news > 0 || (phase === 'live' && now - state.since >= STEADY)) next.attempt = 0

  /**
   * @param {Phase} phase
   * @param {string} [reason]
   */
  const to = (phase, reason = '') => {
    if (phase !== state.phase) next.since = now
    next.phase = phase
    next.reason = reason
  }

  /**
   * No frame for so long and the connection counts as dead. A poll says nothing while it is held.
   * @param {number} least s
   */
  const watch = (least) => {
    next.due = now + 1000 * Math.max(2.5 * next.heartbeat, least)
  }

  /**
   * @param {Phase} phase
   * @param {number} wait s
   */
  const open = (phase, wait) => {
    to(phase)
    next.wait = wait
    next.asked = now
    next.news = 0
    // A first frame gets 10 s at least.
    watch(wait + 10)
    effects.push('open')
  }

  /**
   * @param {Phase} phase
   * @param {string} [reason]
   */
  const rest = (phase, reason = phase) => {
    effects.push('drop')
    to(phase, reason)
    next.due = Infinity
    next.news = 0
  }

  const connect = () => {
    rest('offline', 'idle')
    if (next.wanted) open('connecting', 0)
  }

  /**
   * @param {string} reason
   * @param {number} [retry] ms
   */
  const lose = (reason, retry = 0) => {
    rest('offline', reason)
    next.due = now + backoff(next.attempt++, random) + (Math.max(retry, 0) || 0)
  }

  const { type } = event
  const apart = phase === 'offline' || phase === 'closed'
  if (state.final) {
    // Nothing brings it back.
  } else if (type === 'want') {
    next.wanted = event.wanted
    if (apart) {
      // Waiting goes on: who follows next must not come sooner than the server asked for.
      if (event.wanted && state.due === Infinity) connect()
    } else if (!event.wanted || (event.changed && transport !== 'websocket')) connect()
    else if (event.changed && phase === 'live') to('catching-up')
  } else if (type === 'transport') {
    next.transport = event.transport
    if (event.transport !== transport || phase === 'closed') connect()
  } else if (type === 'close') {
    rest('closed')
    next.final = true
  } else if (type === 'wake') {
    if (now < state.due) {
      // Too early.
    } else if (phase === 'offline') connect()
    else lose('silent')
  } else if (apart) {
    // The rest is about a connection.
  } else if (type === 'heard') {
    next.heartbeat = event.heartbeat || state.heartbeat
    next.news = news + event.news
    if (event.live) to('live')
    else if (event.news < 0 || phase === 'connecting') to('catching-up')
    watch(transport === 'poll' ? wait + 10 : 0)
  } else if (type === 'over') {
    if (event.retry === null) rest('closed', event.reason)
    else lose(event.reason, event.retry)
  } else if (transport !== 'poll') lose('ended')
  else if (event.last === 'next' && news > 0) open('catching-up', 0)
  else if (event.last !== 'live') lose('cut off')
  // The first answer may well be empty at once: it was asked not to wait. The later ones are asked to.
  else if (!wait || news > 0 || now - asked >= QUICK) open('live', HELD)
  else lose('nothing new')
  return { state: next, effects }
}
