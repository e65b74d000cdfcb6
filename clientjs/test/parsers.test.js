import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import './seed.js'
import { TidemarkError } from '../src/errors.js'
import { createLines } from '../src/lines.js'
import { openStream } from '../src/stream.js'
import { turns } from './clock.js'
import { Wire } from './wire.js'

/** Blank lines say nothing. @param {string[]} lines */
const notBlank = (lines) => lines.filter((line) => line !== '')

/** @param {string[]} pieces */
function lines(pieces) {
  /** @type {string[]} */
  const seen = []
  const feed = createLines((line) => seen.push(line))
  for (const piece of pieces) feed(piece)
  return notBlank(seen)
}

/**
 * Begins to read one answer.
 * @param {(path: string, init: any) => Promise<Response>} request
 * @param {boolean} sse
 * @param {(lines: string[]) => void} onLines
 */
function begin(request, sse, onLines) {
  const abort = new AbortController()
  return { done: openStream(request, 'http://tide.test/feed', sse, abort, onLines), close: () => abort.abort() }
}

/**
 * What an answer comes to that arrives in these pieces.
 * @param {boolean} sse
 * @param {(string | Uint8Array)[]} pieces
 */
async function frames(sse, pieces) {
  const bytes = pieces.map((piece) => (typeof piece === 'string' ? new TextEncoder().encode(piece) : piece))
  // An empty piece is none, and no stream may enqueue it.
  const body = new ReadableStream({
    start(controller) {
      for (const piece of bytes) if (piece.length) controller.enqueue(piece)
      controller.close()
    },
  })
  /** @type {string[]} */
  const seen = []
  await begin(
    async () => new Response(body),
    sse,
    (lines) => seen.push(...lines),
  ).done
  return notBlank(seen)
}

/** The whole lines of a text, in the most pedestrian way. @param {string} text */
const wholeLines = (text) =>
  notBlank(
    text
      .replace(/\r\n|\r/g, '\n')
      .split('\n')
      .slice(0, -1),
  )

// Text that is mostly made of what a parser trips over.
const scrap = fc.constantFrom('\n', '\r', '\r\n', '\n\n', ':', ' ', 'data', 'data:', 'data: x', 'event:e', 'id: 7', 'id:\0',
  'retry: 10', 'retry: 1x', '\ufeff', 'ünï', '🌊', '{"a":1}', '\u2028', 'x') // biome-ignore format: one list
const stream = fc.array(scrap, { maxLength: 40 }).map((parts) => parts.join(''))

/**
 * The same cut at any places, and into nothing.
 * @template {{length: number, slice: (from: number, to: number) => any}} T
 * @param {T} whole
 * @returns {import('fast-check').Arbitrary<T[]>}
 */
const cuts = (whole) =>
  fc.array(fc.nat(whole.length), { maxLength: 12 }).map((places) => {
    const at = [0, ...places.sort((a, b) => a - b), whole.length]
    return at.slice(1).map((end, i) => whole.slice(at[i], end))
  })

/** A text in pieces, cut in the middle of surrogates and line ends too. */
const cut = stream.chain((text) => fc.record({ text: fc.constant(text), pieces: cuts(text) }))

/** A text in pieces of bytes, cut in the middle of letters too. */
const cutBytes = stream.chain((text) =>
  fc.record({ text: fc.constant(text), pieces: cuts(new TextEncoder().encode(text)) }),
)

test('lines mean the same however the network cuts them, and the unfinished rest never counts', () => {
  fc.assert(
    fc.property(cut, ({ text, pieces }) => {
      assert.deepEqual(lines(pieces), wholeLines(text))
    }),
    { numRuns: 1000 },
  )
})

test('an answer means the same however the network cuts it, and of an event stream only the data count', async () => {
  await fc.assert(
    fc.asyncProperty(cutBytes, async ({ text, pieces }) => {
      const whole = wholeLines(text.replace(/^\ufeff/, ''))
      assert.deepEqual(await frames(false, pieces), whole)
      assert.deepEqual(
        await frames(true, pieces),
        notBlank(whole.filter((line) => line.startsWith('data:')).map((line) => line.slice('data:'.length))),
      )
    }),
    { numRuns: 1000 },
  )
})

test('a frame is there as soon as its line is, whatever ends lines, and all that came together come together', async () => {
  for (const end of ['\n', '\r', '\r\n']) {
    const wire = new Wire()
    /** @type {string[][]} */
    const seen = []
    const stream = begin(wire.fetch, true, (lines) => seen.push(lines))
    await turns()
    assert.equal(wire.feed.sse, true)
    await wire.feed.write(`event: change${end}data: {"a":1}${end}id: 7${end}${end}data:{"b":2}${end}`)
    await wire.feed.write(`: still here${end}${end}data: {"cut`)
    await wire.feed.write(`":3}${end}`)
    const all = seen.filter((lines) => lines.length).map((lines) => lines.map((line) => JSON.parse(line)))
    assert.deepEqual(all, [[{ a: 1 }, { b: 2 }], [{ cut: 3 }]])
    stream.close()
    await assert.rejects(stream.done)
    assert.equal(wire.feed.aborted, true)
  }
})

test('an answer without a body is one that ends at once', async () => {
  const answer = async () => new Response(null, { status: 204 })
  await begin(answer, false, () => assert.fail()).done
})

test('an answer that breaks off is told from one that ends, and what is over holds no connection', async () => {
  const wire = new Wire()
  /** @type {string[]} */
  const seen = []
  const open = () => begin(wire.fetch, false, (lines) => seen.push(...lines))
  const broken = open()
  await wire.feed.write('1\n2\n3')
  broken.done.catch(() => {})
  await wire.feed.fail(new TypeError('terminated'))
  await assert.rejects(broken.done, /terminated/)
  const refused = open()
  refused.done.catch(() => {})
  await wire.feed.fail()
  await assert.rejects(refused.done, /fetch failed/)
  const over = open()
  await wire.feed.write('4\n5')
  await wire.feed.end()
  await over.done
  assert.deepEqual(seen, ['1', '2', '4'])
  assert.ok(wire.feeds.every(({ init }) => init.signal?.aborted))
})

test('who can not read a line lets go of its connection', async () => {
  const wire = new Wire()
  const stream = begin(wire.fetch, false, () => {
    throw new TidemarkError('bad-frame', 'no')
  })
  stream.done.catch(() => {})
  await wire.feed.write('1\n')
  await assert.rejects(stream.done, { code: 'bad-frame' })
  assert.equal(wire.feed.aborted, true)
})

test('a stream that never ends its line does not fill the memory', async () => {
  const tooLong = (/** @type {unknown} */ error) => error instanceof TidemarkError && error.code === 'bad-frame'
  const piece = 'x'.repeat(1 << 20)
  const feed = createLines(() => {})
  for (let i = 0; i < 15; i++) feed(piece)
  assert.throws(() => {
    feed(piece)
    feed(piece)
  }, tooLong)
  for (const sse of [true, false]) {
    const bytes = new TextEncoder().encode(piece)
    await assert.rejects(frames(sse, ['data:', ...Array.from({ length: 17 }, () => bytes)]), tooLong)
  }
})

test('a line that comes in a hundred thousand pieces costs no more than its length', () => {
  const began = performance.now()
  const pieces = Array.from({ length: 100_000 }, () => '0123456789'.repeat(10))
  assert.equal(lines([...pieces, '\n'])[0].length, 10_000_000)
  // Searching or copying what is held for each piece would be 5e11 steps, which is minutes.
  assert.ok(performance.now() - began < 5000)
})
