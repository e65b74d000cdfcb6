/** Time that only moves when a test says so. */
export class FakeClock {
  time = 1_700_000_000_000
  /** What chance gives next; 0.5 unless a test wants otherwise. */
  chance = 0.5
  /** @type {Set<{at: number, fn: () => void}>} */
  timers = new Set()

  now = () => this.time
  random = () => this.chance

  /** @type {import('../src/clock.js').Clock['after']} */
  after = (ms, fn) => {
    const timer = { at: this.time + Math.max(0, ms), fn }
    this.timers.add(timer)
    return () => {
      this.timers.delete(timer)
    }
  }

  /** Fires what is due within ms, in order, each at its time. @param {number} ms */
  async advance(ms) {
    const end = this.time + ms
    for (;;) {
      const [first] = [...this.timers].filter(({ at }) => at <= end).sort((a, b) => a.at - b.at)
      if (!first) break
      this.timers.delete(first)
      this.time = Math.max(this.time, first.at)
      first.fn()
      await turns()
    }
    this.time = end
    await turns()
  }

  /** In how many ms the next timer is due; Infinity for never. */
  get next() {
    return Math.min(...[...this.timers].map(({ at }) => at)) - this.time
  }
}

/** Lets everything that waits for nothing but its turn have it. */
export async function turns() {
  for (let i = 0; i < 12; i++) await new Promise((resolve) => setImmediate(resolve))
}
