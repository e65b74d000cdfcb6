import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import './seed.js'
import { TidemarkError } from '../src/errors.js'
import { confirm, createFeed, fold } from '../src/feed.js'
import { createRows, same } from '../src/rows.js'
import { change, live, next, open } from './wire.js'

/** @typedef {import('../src/rows.js').Rows} Rows */
/** @typedef {import('../src/rows.js').Change} Change */

/** Connections, one after the other, over the same rows. @param {(name: string) => Rows | undefined} find */
function connections(find) {
  /** @type {ReturnType<typeof createFeed>} */
  let feed
  return {
    get asked() {
      return feed.asked
    },
    /** @param {string[]} names */
    begin(names) {
      feed = createFeed((fact) => fold(fact, find))
      for (const name of names) feed.asked.set(name, '')
    },
    /** @param {any} frame */
    take: (frame) => feed.take(frame),
    /** @param {string} cursor @param {any[]} writes @param {any[]} results */
    wrote: (cursor, writes, results) => confirm(cursor, writes, results, find),
  }
}

/** A feed over some collections, all asked for from the start. @param {string[]} names */
function setup(names = ['todos']) {
  const all = new Map(names.map((name) => [name, createRows()]))
  const feed = connections((name) => all.get(name))
  feed.begin(names)
  const rows = /** @type {Rows} */ (all.get(names[0]))
  // As the client does it: subscribers are told once for all frames that came together.
  const take = (/** @type {object[]} */ ...frames) => {
    try {
      for (const frame of frames) feed.take(/** @type {any} */ (frame))
    } finally {
      for (const rows of all.values()) tell(rows)
    }
  }
  const wrote = (
    /** @type {number} */ seq,
    /** @type {string} */ key,
    /** @type {object | null} */ value,
    epoch = 'aaaa',
  ) => {
    feed.wrote(
      `${epoch}-${seq}`,
      [{ collection: names[0], op: value ? 'put' : 'remove' }],
      [{ status: 'ok', key, seq, value: value ?? undefined }],
    )
    tell(rows)
  }
  return { all, feed, rows, take, wrote }
}

/** @param {Rows} rows */
const shown = (rows) => Object.fromEntries(rows.values)

/** @type {WeakMap<Rows, Change[]>} */
const news = new WeakMap()

/** @param {Rows} rows */
const tell = (rows) => news.set(rows, [...(news.get(rows) ?? []), ...(rows.take()?.changes ?? [])])

/** @param {Rows} rows */
function told(rows) {
  const changes = news.get(rows) ?? []
  news.delete(rows)
  return changes.map(({ op, key, seq }) => `${op} ${key} ${seq}`)
}

const reset = { type: 'reset', collections: ['todos'], reason: 'expired' }

test('rows are as the feed says: put is put, whatever it is called, and remove is delete if there', () => {
  const { rows, take } = setup()
  take(open, { ...change(1, 'a', { n: 1 }), op: 'insert' }, change(2, 'b', { n: 2 }), change(3, 'gone', null))
  take({ ...change(4, 'a', { n: 4 }), op: 'insert' }, change(5, 'b', null))
  assert.deepEqual(shown(rows), { a: { n: 4 } })
  assert.deepEqual(told(rows), ['insert a 1', 'insert b 2', 'modify a 4', 'remove b 5'])
  assert.equal(rows.seq('a'), 4)
  assert.equal(rows.cursor, 'aaaa-5')
})

test('a key called __proto__ is a key, and a member called __proto__ is a member', () => {
  const { rows, take } = setup()
  take(
    open,
    JSON.parse(
      '{"type":"change","seq":1,"collection":"todos","op":"insert","key":"__proto__","value":{"__proto__":{"x":1}}}',
    ),
  )
  assert.deepEqual([...rows.values.keys()], ['__proto__'])
  assert.equal(/** @type {any} */ ({}).x, undefined)
  assert.equal(same(JSON.parse('{"__proto__":{"x":1}}'), JSON.parse('{"__proto__":{"x":2}}')), false)
  assert.equal(same(JSON.parse('{"__proto__":{}}'), JSON.parse('{"a":{}}')), false)
})

test('a transaction shows all at once or not at all, and the cursor never points into it', () => {
  const { all, rows, take } = setup(['todos', 'projects/7/todos'])
  const others = /** @type {Rows} */ (all.get('projects/7/todos'))
  take(open, change(1, 'a', { n: 1 }))
  told(rows)
  take(
    change(2, 'a', { n: 2 }, { more: true }),
    change(3, 'x', { n: 3 }, { more: true, collection: 'projects/7/todos' }),
  )
  assert.deepEqual(shown(rows), { a: { n: 1 } })
  assert.deepEqual([rows.cursor, others.cursor], ['aaaa-1', undefined])
  assert.deepEqual([told(rows), told(others)], [[], []])
  take(change(4, 'b', { n: 4 }))
  assert.deepEqual(shown(rows), { a: { n: 2 }, b: { n: 4 } })
  assert.deepEqual(shown(others), { x: { n: 3 } })
  assert.deepEqual([rows.cursor, others.cursor], ['aaaa-4', 'aaaa-4'])
})

test('a transaction that was cut off in the middle leaves nothing behind', () => {
  const { feed, rows, take } = setup()
  take(open, change(1, 'a', { n: 1 }, { more: true }))
  feed.begin(['todos'])
  take(open, change(5, 'b', { n: 5 }))
  assert.deepEqual(shown(rows), { b: { n: 5 } })
})

test('a change that comes twice is told once', () => {
  const { feed, rows, take } = setup()
  const all = [
    change(1, 'a', { n: 1 }),
    change(2, 'a', { n: 2 }),
    change(3, 'gone', { n: 3 }),
    change(4, 'gone', null),
    change(5, 'c', { n: 5 }),
  ]
  take(open, ...all)
  told(rows)
  feed.begin(['todos'])
  take(open, ...all, live(5))
  assert.deepEqual(told(rows), [])
  assert.deepEqual(shown(rows), { a: { n: 2 }, c: { n: 5 } })
})

test('the echo of an own write is told once, whichever comes first', () => {
  for (const order of ['answer', 'echo']) {
    const { rows, take, wrote } = setup()
    take(open, live(1))
    const deliver = [() => wrote(2, 'a', { n: 2 }), () => take(change(2, 'a', { n: 2 }))]
    if (order === 'echo') deliver.reverse()
    for (const step of deliver) step()
    take(live(3))
    wrote(2, 'a', { n: 2 })
    assert.deepEqual(told(rows), ['insert a 2'], order)
    assert.deepEqual(shown(rows), { a: { n: 2 } })
  }
})

test('a row that one has removed does not come back for a moment when the feed brings older news of it', () => {
  const { rows, take, wrote } = setup()
  take(open, change(1, 'a', { n: 1 }), live(1))
  wrote(12, 'a', null)
  take(change(10, 'a', { n: 10 }))
  assert.deepEqual(shown(rows), {})
  take(change(12, 'a', null), live(12))
  assert.deepEqual(told(rows), ['insert a 1', 'remove a 12'])
})

test('the late answer of a retried write does not bring back a row that is gone', () => {
  const { rows, take, wrote } = setup()
  take(open, change(5, 'a', { n: 5 }))
  take(change(9, 'a', null))
  wrote(5, 'a', { n: 5 })
  assert.deepEqual(shown(rows), {})
  assert.deepEqual(told(rows), ['insert a 5', 'remove a 9'])
})

test('answers that come in another order than the writes leave the newest state', () => {
  const { rows, take, wrote } = setup()
  take(open, live(1))
  wrote(3, 'a', { n: 3 })
  wrote(2, 'a', { n: 2 })
  wrote(5, 'b', null)
  wrote(4, 'b', { n: 4 })
  assert.deepEqual(shown(rows), { a: { n: 3 } })
})

test('an own row that somebody removed before the first load does not stay for ever', () => {
  const { rows, take, wrote } = setup()
  take(open)
  wrote(7, 'a', { n: 7 })
  // The snapshot was taken at 9, after the row had gone: it says nothing of it.
  take(change(3, 'b', { n: 3 }))
  assert.deepEqual(Object.keys(shown(rows)), ['a', 'b'])
  take(live(9))
  assert.deepEqual(shown(rows), { b: { n: 3 } })
  assert.deepEqual(told(rows), ['insert a 7', 'insert b 3', 'remove a 9'])
})

test('an own row that a later change has moved on does not flicker before that change comes', () => {
  const { rows, take, wrote } = setup()
  take(open)
  wrote(7, 'a', { n: 7 })
  take(change(8, 'b', { n: 8 }), change(12, 'a', { n: 12 }), live(12))
  assert.deepEqual(told(rows), ['insert a 7', 'insert b 8', 'modify a 12'])
})

test('a reset never empties the page: it shows the old rows until live, and then tells what really differs', () => {
  const { feed, rows, take } = setup()
  take(
    open,
    change(1, 'same', { n: 1, deep: [1, { x: null }] }),
    change(2, 'other', { n: 2 }),
    change(3, 'gone', { n: 3 }),
    live(3),
  )
  told(rows)
  const before = rows.values
  const value = rows.values.get('same')
  take(
    reset,
    change(9, 'new', { n: 9 }),
    change(10, 'same', { deep: [1, { x: null }], n: 1 }),
    change(11, 'other', { n: 11 }),
  )
  assert.equal(rows.values, before)
  assert.deepEqual([...rows.values.keys()], ['same', 'other', 'gone'])
  assert.deepEqual(told(rows), [])
  feed.take(live(12))
  const batch = rows.take()
  assert.deepEqual(shown(rows), { new: { n: 9 }, same: { n: 1, deep: [1, { x: null }] }, other: { n: 11 } })
  assert.equal(rows.values.get('same'), value, 'an equal row keeps its identity')
  assert.equal(batch?.reset, true)
  assert.deepEqual(
    batch?.changes.map(({ op, key, seq }) => `${op} ${key} ${seq}`),
    ['modify other 11', 'remove gone 12', 'insert new 9'],
  )
  assert.equal(rows.seq('same'), 10)
  assert.equal(rows.cursor, 'aaaa-12')
})

test('a reset goes on where it was when the connection was lost in the middle of it', () => {
  const { feed, rows, take } = setup()
  take(open, change(1, 'a', { n: 1 }), change(2, 'b', { n: 2 }), live(2))
  take(reset, change(8, 'b', { n: 8 }))
  assert.equal(rows.cursor, 'aaaa-8')
  feed.begin(['todos'])
  take(open, change(9, 'c', { n: 9 }))
  assert.deepEqual(shown(rows), { a: { n: 1 }, b: { n: 2 } })
  take(live(9))
  assert.deepEqual(shown(rows), { b: { n: 8 }, c: { n: 9 } })
})

test('a second reset in the middle of one forgets what the first one brought', () => {
  const { rows, take } = setup()
  take(
    open,
    change(1, 'a', { n: 1 }),
    live(1),
    reset,
    change(5, 'half', { n: 5 }),
    reset,
    change(7, 'a', { n: 7 }),
    live(7),
  )
  assert.deepEqual(shown(rows), { a: { n: 7 } })
})

test('another epoch is another log: its small sequences count, and nothing of the old log stays', () => {
  const { feed, rows, take } = setup()
  take(open, change(900, 'a', { n: 900 }), change(901, 'b', { n: 901 }), live(901))
  feed.begin(['todos'])
  take({ ...open, epoch: 'bbbb' }, { ...reset, reason: 'epoch' }, change(2, 'a', { n: 2 }))
  assert.deepEqual(shown(rows), { a: { n: 900 }, b: { n: 901 } })
  take(live(3, 'bbbb'))
  assert.deepEqual(shown(rows), { a: { n: 2 } })
  assert.equal(rows.cursor, 'bbbb-3')
})

test('another epoch is seen even where no cursor was sent that the server could have refused', () => {
  const { feed, rows, take, wrote } = setup()
  take(open)
  wrote(500, 'ghost', { n: 500 })
  feed.begin(['todos'])
  take({ ...open, epoch: 'bbbb' }, change(2, 'a', { n: 2 }), live(2, 'bbbb'))
  assert.deepEqual(shown(rows), { a: { n: 2 } })
})

test('an own write during a reset shows at once, and is still there when the reset is over', () => {
  for (const epoch of ['aaaa', 'bbbb']) {
    const { feed, rows, take, wrote } = setup()
    take(open, change(1, 'a', { n: 1 }), change(2, 'b', { n: 2 }), live(2))
    feed.begin(['todos'])
    take({ ...open, epoch }, reset)
    wrote(60, 'a', { n: 60 }, epoch)
    wrote(61, 'b', null, epoch)
    wrote(62, 'c', { n: 62 }, epoch)
    assert.deepEqual(shown(rows), { a: { n: 60 }, c: { n: 62 } })
    // The feed may go live before it has come to these writes, and may still bring what was before them.
    take(change(50, 'a', { n: 50 }), change(51, 'b', { n: 51 }), live(55, epoch))
    assert.deepEqual(shown(rows), { a: { n: 60 }, c: { n: 62 } })
    take(change(60, 'a', { n: 60 }), change(61, 'b', null), change(62, 'c', { n: 62 }), live(62, epoch))
    assert.deepEqual(shown(rows), { a: { n: 60 }, c: { n: 62 } })
    assert.deepEqual(told(rows), ['insert a 1', 'insert b 2', 'modify a 60', 'remove b 61', 'insert c 62'])
  }
})

test('an own write that was confirmed before a reset outlives it', () => {
  const { rows, take, wrote } = setup()
  take(open, live(2))
  wrote(9, 'a', { n: 9 })
  wrote(8, 'b', null)
  take(reset, change(7, 'b', { n: 7 }), live(7))
  assert.deepEqual(shown(rows), { a: { n: 9 } })
})

test('an own write whose echo came first during a reset shows at once all the same', () => {
  const { rows, take, wrote } = setup()
  take(open, change(1, 'a', { n: 1 }), live(1), reset, change(5, 'a', { n: 5 }))
  told(rows)
  wrote(5, 'a', { n: 5 })
  assert.deepEqual(shown(rows), { a: { n: 5 } })
  take(live(6))
  assert.deepEqual(told(rows), ['modify a 5'])
})

test('the late answer to an own write during a reset does not take the page back', () => {
  const { rows, take, wrote } = setup()
  take(open, change(5, 'gone', { n: 5 }), change(9, 'gone', null), change(10, 'a', { n: 10 }), live(10), reset)
  told(rows)
  wrote(5, 'gone', { n: 5 })
  wrote(7, 'a', { n: 7 })
  assert.deepEqual(shown(rows), { a: { n: 10 } })
  take(change(12, 'b', { n: 12 }))
  wrote(11, 'b', { n: 11 })
  assert.deepEqual(shown(rows), { a: { n: 10 }, b: { n: 12 } }, 'the feed knows better already')
  take(change(13, 'a', { n: 10 }), live(13))
  assert.deepEqual(told(rows), ['insert b 12'])
})

test('a row that one removed during a reset does not come back with the late answer to an older write of it', () => {
  const { rows, take, wrote } = setup()
  take(open, live(0), reset)
  wrote(3, 'b', null)
  take(change(3, 'b', null))
  wrote(1, 'b', { n: 1 })
  assert.deepEqual(shown(rows), {})
  take(reset)
  take(change(4, 'a', { n: 4 }), live(4))
  assert.deepEqual(shown(rows), { a: { n: 4 } })
})

test('rows are equal when they say the same, and only then', () => {
  const rows = [
    null,
    0,
    '',
    1,
    'x',
    [],
    {},
    [1],
    { 0: 1 },
    [[]],
    [{}],
    { a: 1 },
    { a: 1, b: 2 },
    { a: { b: [1, 2] } },
    { a: { b: [2, 1] } },
    { b: null },
  ]
  for (const [i, a] of rows.entries()) {
    for (const [j, b] of rows.entries()) {
      const [one, other] = JSON.parse(JSON.stringify([a, b]))
      assert.equal(same({ x: one }, { x: other }), i === j, `${JSON.stringify(a)} ${JSON.stringify(b)}`)
    }
  }
  assert.equal(same({ a: 1, b: { c: 2, d: 3 } }, { b: { d: 3, c: 2 }, a: 1 }), true)
})

test('the late answer from a log that was left changes nothing', () => {
  const { feed, rows, take, wrote } = setup()
  take(open, live(1))
  feed.begin(['todos'])
  take({ ...open, epoch: 'bbbb' }, live(4, 'bbbb'))
  wrote(77, 'a', { n: 77 }, 'aaaa')
  assert.deepEqual(shown(rows), {})
})

test('a live that was sent before the server knew of a new collection does not make it complete', () => {
  const { all, feed, rows, take } = setup(['todos', 'late'])
  const late = /** @type {Rows} */ (all.get('late'))
  feed.begin(['todos'])
  take(open, live(10))
  feed.asked.set('late', '7')
  take(live(20), change(21, 'x', { n: 21 }, { collection: 'late' }))
  assert.deepEqual([rows.cursor, late.cursor], ['aaaa-20', undefined])
  assert.deepEqual(shown(late), {})
  take(
    { type: 'done', id: 'other' },
    live(22),
    { type: 'done', id: '7' },
    change(5, 'x', { n: 5 }, { collection: 'late' }),
  )
  assert.deepEqual(shown(late), { x: { n: 5 } })
  assert.deepEqual([rows.cursor, late.cursor], ['aaaa-22', 'aaaa-5'])
  take(live(23))
  assert.equal(late.cursor, 'aaaa-23')
})

test('changes of a collection that was left do not count, so that nothing is missed when it is followed again', () => {
  const { feed, rows, take } = setup()
  take(open, change(1, 'a', { n: 1 }))
  feed.asked.delete('todos')
  take(change(2, 'b', { n: 2 }), live(2))
  assert.equal(rows.cursor, 'aaaa-1')
  assert.deepEqual(shown(rows), { a: { n: 1 } })
})

test('a cursor never goes back', () => {
  const { feed, rows, take } = setup()
  take(open, live(10))
  feed.begin(['todos'])
  take(open, next(7), live(6))
  assert.equal(rows.cursor, 'aaaa-10')
})

test('only what moves a cursor by changes is news', () => {
  const { feed } = setup()
  const news = [
    open,
    change(1, 'a', { n: 1 }),
    change(1, 'a', { n: 1 }),
    live(5),
    next(4),
    next(6),
    { type: 'tick' },
    reset,
  ]
  assert.deepEqual(
    news.map((frame) => feed.take(/** @type {any} */ (frame))),
    [false, true, false, false, false, true, false, false],
  )
})

test('nonsense on the wire is an error that can be told from others, and the rows before it stay', () => {
  const bad = [
    change(1, 'a', { n: 1 }),
    { ...change(0, 'a', { n: 1 }) },
    { ...change(2, 'a', { n: 1 }), key: 7 },
    { ...change(2, 'a', { n: 1 }), value: null },
    { ...change(2, 'a', { n: 1 }), value: 'text' },
    { ...change(2, 'a', { n: 1 }), seq: 'x' },
    { type: 'live' },
    { type: 'live', cursor: 'bbbb-3' },
    { type: 'live', cursor: 'aaaa-x' },
  ]
  for (const [i, frame] of bad.entries()) {
    const { rows, take } = setup()
    if (i) take(open, change(1, 'a', { n: 1 }))
    assert.throws(
      () => take(frame),
      (error) => error instanceof TidemarkError && error.code === 'bad-frame',
      JSON.stringify(frame),
    )
    assert.deepEqual(shown(rows), i ? { a: { n: 1 } } : {})
  }
})

test('frames of a kind that nobody knows, and fields that nobody knows, are nothing to worry about', () => {
  const { rows, take } = setup()
  take(open, { type: 'sparkle', seq: 9 }, {}, { ...change(1, 'a', { n: 1 }), glitter: true }, { ...live(1), extra: [] })
  assert.deepEqual(shown(rows), { a: { n: 1 } })
})

test('refused changes of a request that was not atomic are not shown', () => {
  const { feed, rows, take } = setup()
  take(open, change(1, 'a', { n: 1 }), live(1))
  const writes = ['remove', 'put', 'insert', 'remove', 'put'].map((op) => ({ collection: 'todos', op }))
  feed.wrote('aaaa-9', writes, [
    { status: 'conflict', key: 'a', seq: 5, value: { n: 5 } },
    { status: 'ok', key: 'b', seq: 8, value: { n: 8 } },
    { status: 'exists', key: 'a', seq: 5, value: { n: 5 } },
    // Gone already, so there is no change that would have a sequence.
    /** @type {any} */ ({ status: 'ok', key: 'c' }),
  ])
  take()
  assert.deepEqual(shown(rows), { a: { n: 1 }, b: { n: 8 } })
})

// Everything at once, against a plain model of a server.

const KEYS = ['a', 'b', '__proto__']

/** A log as the protocol has it: the newest change of each key, sorted by sequence, is what a feed brings. */
class Log {
  number = 0
  seq = 0
  /** @type {Map<string, {key: string, seq: number, txn: number, value: object | null}>} */
  entries = new Map()
  /** @type {Map<string, {seq: number, value: object | null}[]>} */
  history = new Map()

  get epoch() {
    return `epoch${this.number}`
  }

  /** @param {string} key @param {boolean} removed @param {number} txn */
  write(key, removed, txn) {
    this.seq++
    const value = removed ? null : { n: this.seq, by: this.epoch }
    this.entries.set(key, { key, seq: this.seq, txn, value })
    this.history.set(key, [...(this.history.get(key) ?? []), { seq: this.seq, value }])
    return { key, seq: this.seq, value, epoch: this.epoch }
  }

  /**
   * @param {number} seq
   * @param {number} silent up to there nothing is said of rows that are gone, as for who starts from the beginning
   */
  after(seq, silent) {
    return [...this.entries.values()]
      .filter((e) => e.seq > seq && (e.value || e.seq > silent))
      .sort((a, b) => a.seq - b.seq)
  }

  get rows() {
    return new Map([...this.entries.values()].flatMap(({ key, value }) => (value ? [[key, value]] : [])))
  }

  /** The log is lost in part and made anew: other numbers, some rows as they were, some gone. @param {number} keep */
  renew(keep) {
    const rows = [...this.rows].slice(0, keep)
    this.number++
    this.seq = 0
    this.entries.clear()
    this.history.clear()
    for (const [key, value] of rows) {
      this.write(key, false, -this.seq)
      const entry = this.entries.get(key)
      if (entry) entry.value = value
      this.history.set(key, [{ seq: this.seq, value }])
    }
  }
}

const key = fc.constantFrom(...KEYS)
const instruction = fc.oneof(
  {
    weight: 4,
    arbitrary: fc.record({
      do: fc.constant('others'),
      keys: fc.uniqueArray(key, { minLength: 1, maxLength: 3 }),
      removed: fc.boolean(),
    }),
  },
  { weight: 3, arbitrary: fc.record({ do: fc.constant('own'), keys: fc.tuple(key), removed: fc.boolean() }) },
  { weight: 2, arbitrary: fc.record({ do: fc.constant('guess'), keys: fc.tuple(key), removed: fc.boolean() }) },
  { weight: 2, arbitrary: fc.record({ do: fc.constant('refuse'), n: fc.nat(9) }) },
  { weight: 4, arbitrary: fc.record({ do: fc.constant('answer'), n: fc.nat(9), again: fc.boolean() }) },
  {
    weight: 6,
    arbitrary: fc.record({ do: fc.constant('feed'), n: fc.integer({ min: 1, max: 4 }), other: fc.boolean() }),
  },
  { weight: 4, arbitrary: fc.record({ do: fc.constant('again'), n: fc.nat(5), other: fc.boolean() }) },
  { weight: 4, arbitrary: fc.record({ do: fc.constant('live'), other: fc.boolean() }) },
  { weight: 3, arbitrary: fc.record({ do: fc.constant('second'), n: fc.nat(3) }) },
  { weight: 2, arbitrary: fc.record({ do: fc.constant('drop'), other: fc.boolean() }) },
  { weight: 3, arbitrary: fc.record({ do: fc.constant('reconnect'), n: fc.nat(3) }) },
  { weight: 2, arbitrary: fc.record({ do: fc.constant('expire') }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('renew'), n: fc.nat(5) }) },
)

test('whatever comes twice, late, in pieces, twofold or anew, a page ends up with the rows of the server and was told so', () => {
  fc.assert(
    fc.property(fc.array(instruction, { maxLength: 60 }), (instructions) => {
      const log = new Log()
      const rows = createRows()
      let txn = 0
      /** What subscribers believe. @type {Map<string, object>} */
      const believed = new Map()
      /** @type {Set<string>} */
      const toldOf = new Set()
      /** @type {ReturnType<Log['write']>[]} */
      const answers = []
      /** What own writes that came before the feed have promised to show from then on. @type {Map<string, number>} */
      const promised = new Map()
      /** Writes that are shown before they have an answer, and the rows that ever were. @type {string[]} */
      const guesses = []
      const guessed = new Set()

      /**
       * A connection from a cursor on. A server may begin earlier than it was asked to. It says nothing of rows that
       * are gone to whoever starts from nothing.
       */
      class Link {
        feed = createFeed((fact) => fold(fact, () => rows))
        /** @type {object[]} */
        sent = []
        at
        silent

        /** @param {number} back */
        constructor(back) {
          const [epoch, seq] = rows.cursor?.split('-') ?? []
          const known = epoch === log.epoch
          this.at = known ? Math.max(0, Number(seq) - back) : 0
          this.silent = known ? 0 : log.seq
          this.feed.asked.set('todos', '')
          this.take({ ...open, epoch: log.epoch })
          if (epoch && !known) this.take({ ...reset, reason: 'epoch' })
        }

        take(/** @type {object[]} */ ...frames) {
          for (const frame of frames) this.feed.take(/** @type {any} */ (frame))
        }

        deliver(/** @type {number} */ count) {
          const list = log.after(this.at, this.silent)
          // A transaction is not split.
          while (list[count] && list[count].txn === list[count - 1].txn) count++
          const batch = list.slice(0, count)
          for (const [i, e] of batch.entries()) {
            const frame = change(e.seq, e.key, e.value, { more: batch[i + 1]?.txn === e.txn })
            this.sent.push({ ...frame, more: undefined })
            this.take(frame)
            this.at = e.seq
          }
        }

        live() {
          this.deliver(Infinity)
          this.take(live(log.seq, log.epoch))
        }
      }

      let link = new Link(0)
      /** Beside the first one, as when one transport tries to take over from another. @type {Link | undefined} */
      let second
      const connect = (/** @type {number} */ back) => {
        second = undefined
        link = new Link(back)
      }
      const check = () => {
        const batch = rows.take()
        for (const { op, key, value } of batch?.changes ?? []) {
          assert.equal(op !== 'insert', believed.has(key), `${op} of ${key}`)
          const what = `${key} ${JSON.stringify(value)}`
          if (value) {
            assert.ok(guessed.has(key) || !toldOf.has(what), `told twice of ${what}`)
            toldOf.add(what)
            believed.set(key, value)
          } else believed.delete(key)
        }
        assert.deepEqual(rows.values, believed)
        // A row never falls back behind an own write that was confirmed.
        for (const [key, seq] of promised) {
          const now = rows.values.get(key)
          const states = log.history.get(key)?.filter((h) => h.seq >= seq) ?? []
          assert.ok(
            guessed.has(key) || states.some(({ value }) => (value ? now && same(value, now) : !now)),
            `own write of ${key} was lost from view`,
          )
        }
      }

      for (const step of instructions) {
        const { n, keys, removed, again, other } = /** @type {any} */ (step)
        const one = (other && second) || link
        if (step.do === 'others') {
          txn++
          for (const key of keys) log.write(key, removed, txn)
        } else if (step.do === 'own') answers.push(log.write(keys[0], removed, ++txn))
        else if (step.do === 'guess') {
          guesses.push(`m${guesses.length}`)
          guessed.add(keys[0])
          rows.guess(`m${guesses.length - 1}`, { key: keys[0], op: removed ? 'remove' : 'put', value: { guess: txn } })
        } else if (step.do === 'refuse') rows.unguess(guesses[n % guesses.length] ?? '')
        else if (step.do === 'answer' && answers.length) {
          const answer = answers[n % answers.length]
          if (!again) answers.splice(n % answers.length, 1)
          const { epoch, key, seq, value } = answer
          // What the feed has passed it has brought, or will bring in a newer state, or it is gone.
          const passed = Number(rows.cursor?.split('-')[1] ?? 0)
          confirm(
            `${epoch}-${seq}`,
            [{ collection: 'todos', op: value ? 'put' : 'remove' }],
            [{ status: 'ok', key, seq, value: value ?? undefined }],
            () => rows,
          )
          if (epoch === log.epoch && seq > passed) promised.set(key, Math.max(seq, promised.get(key) ?? 0))
        } else if (step.do === 'feed') one.deliver(n)
        else if (step.do === 'again' && one.sent.length) one.take(one.sent[n % one.sent.length])
        else if (step.do === 'live') {
          one.live()
          check()
          for (const id of guesses) rows.unguess(id)
          check()
          assert.deepEqual(rows.values, log.rows)
        } else if (step.do === 'reconnect') connect(n)
        else if (step.do === 'second' && rows.cursor && !rows.staged) second = new Link(n)
        else if (step.do === 'drop' && second) {
          if (other) link = second
          second = undefined
        } else if (step.do === 'expire') {
          // Whoever brings a reset is the only one from then on.
          second = undefined
          link.take(reset)
          link.at = 0
          link.silent = log.seq
          link.sent = []
        } else if (step.do === 'renew') {
          log.renew(n)
          promised.clear()
          toldOf.clear()
          connect(0)
        }
        check()
      }
      link.live()
      for (const id of guesses) rows.unguess(id)
      check()
      assert.deepEqual(rows.values, log.rows)
    }),
    { numRuns: 3000 * Number(process.env.RUNS ?? 1) },
  )
})
