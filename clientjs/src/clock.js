/**
 * Where time and chance come from. Tests hand in their own.
 * @typedef {object} Clock
 * @property {() => number} now ms since 1970, at least about; never goes back, but may stand still while a machine sleeps
 * @property {() => number} [wall] ms since 1970, as the machine has it; now by default
 * @property {() => number} random from 0 to below 1
 * @property {(ms: number, fn: () => void) => () => void} after calls fn once, ms from now; returns its undo
 */

/** @type {Clock} */
export const systemClock = {
  // Not Date.now: a wall clock that is set back would put off every deadline by as much.
  now: () => performance.timeOrigin + performance.now(),
  wall: Date.now,
  random: Math.random,
  after(ms, fn) {
    // Beyond 2^31 ms setTimeout fires at once. Whoever is woken early looks at the clock and waits again.
    const timer = setTimeout(fn, Math.min(ms, 2e9))
    return () => clearTimeout(timer)
  },
}
