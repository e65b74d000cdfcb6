import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { TidemarkError } from '../src/errors.js'
import { createLines } from '../src/lines.js'
import { createParser } from '../src/sse.js'

/** @param {string[]} pieces */
function events(pieces) {
  /** @type {unknown[]} */
  const seen = []
  const parser = createParser({ onEvent: (event) => seen.push(event), onRetry: (ms) => seen.push(ms) })
  for (const piece of pieces) parser.feed(piece)
  return seen
}

/** @param {string[]} pieces */
function lines(pieces) {
  /** @type {string[]} */
  const seen = []
  const parser = createLines((line) => seen.push(line))
  for (const piece of pieces) parser.feed(piece)
  return seen
}

/** The rules of the standard once more, for a whole text, in the most pedestrian way. @param {string} text */
function eventsByTheBook(text) {
  const seen = []
  let event = ''
  let data = ''
  let id = ''
  const all = text
    .replace(/^\ufeff/, '')
    .replace(/\r\n|\r/g, '\n')
    .split('\n')
  all.pop()
  for (const line of all) {
    if (line === '') {
      if (data !== '') seen.push({ event: event === '' ? 'message' : event, data: data.slice(0, -1), id })
      event = ''
      data = ''
      continue
    }
    if (line.startsWith(':')) continue
    let [field, value] = [line, '']
    if (line.includes(':')) {
      field = line.slice(0, line.indexOf(':'))
      value = line.slice(line.indexOf(':') + 1)
      if (value.startsWith(' ')) value = value.slice(1)
    }
    if (field === 'event') event = value
    if (field === 'data') data += `${value}\n`
    if (field === 'id' && !value.includes('\u0000')) id = value
    if (field === 'retry' && value !== '' && [...value].every((c) => c >= '0' && c <= '9')) seen.push(Number(value))
  }
  return seen
}

// Text that is mostly made of what a parser trips over.
const scrap = fc.constantFrom('\n', '\r', '\r\n', '\n\n', ':', ' ', 'data', 'data:', 'data: x', 'event:e', 'id: 7', 'id:\0',
  'retry: 10', 'retry: 1x', '\ufeff', 'ünï', '🌊', '{"a":1}', '\u2028', 'x') // biome-ignore format: one list
const stream = fc.array(scrap, { maxLength: 40 }).map((parts) => parts.join(''))

/** A text, and the same text cut at any places, in the middle of surrogates and line ends too, and into nothing. */
const cut = stream.chain((text) =>
  fc.tuple(fc.constant(text), fc.array(fc.nat(text.length), { maxLength: 12 })).map(([text, places]) => {
    const at = [0, ...places.sort((a, b) => a - b), text.length]
    return { text, pieces: at.slice(1).map((end, i) => text.slice(at[i], end)) }
  }),
)

test('an event stream means the same however the network cuts it', () => {
  fc.assert(
    fc.property(cut, ({ text, pieces }) => {
      assert.deepEqual(events(pieces), eventsByTheBook(text))
      assert.deepEqual(events([text]), eventsByTheBook(text))
    }),
    { numRuns: 2000 },
  )
})

test('an event is there as soon as its blank line is, whatever ends lines', () => {
  for (const end of ['\n', '\r', '\r\n']) {
    assert.deepEqual(events([`data: x${end}${end}`]), [{ event: 'message', data: 'x', id: '' }])
  }
})

test('a data line without anything is an event without anything, and a block without data is none', () => {
  assert.deepEqual(events(['data\n\nevent: x\n\n: comment\n\n']), [{ event: 'message', data: '', id: '' }])
})

test('an event that is cut off by the end of the stream never happened', () => {
  assert.deepEqual(events(['data: 1\n\ndata: 2\n']), [{ event: 'message', data: '1', id: '' }])
})

test('after reset nothing of the last connection is left', () => {
  /** @type {unknown[]} */
  const seen = []
  const parser = createParser({ onEvent: (event) => seen.push(event) })
  parser.feed('id: 3\nevent: e\ndata: half\nda')
  parser.reset()
  parser.feed('\ufeffdata: whole\n\n')
  assert.deepEqual(seen, [{ event: 'message', data: 'whole', id: '' }])
})

test('a stream that never ends its line or its event does not fill the memory', () => {
  const tooLong = (/** @type {unknown} */ error) => error instanceof TidemarkError && error.code === 'bad-frame'
  const piece = 'x'.repeat(1 << 20)
  const parser = () => createParser({ onEvent: () => {} })
  for (const [make, text] of /** @type {const} */ ([
    [parser, piece],
    [parser, `data: ${piece}\n`],
    [() => createLines(() => {}), piece],
  ])) {
    const { feed } = make()
    for (let i = 0; i < 15; i++) feed(text)
    assert.throws(() => {
      feed(text)
      feed(text)
    }, tooLong)
  }
})

test('a line that comes in a hundred thousand pieces costs no more than its length', () => {
  const began = performance.now()
  const pieces = Array.from({ length: 100_000 }, () => '0123456789'.repeat(10))
  assert.equal(lines([...pieces, '\n'])[0].length, 10_000_000)
  // Searching or copying what is held for each piece would be 5e11 steps, which is minutes.
  assert.ok(performance.now() - began < 5000)
})

test('lines mean the same however the network cuts them, and the unfinished rest never counts', () => {
  fc.assert(
    fc.property(cut, ({ text, pieces }) => {
      const whole = text
        .replace(/\r\n|\r/g, '\n')
        .split('\n')
        .slice(0, -1)
      assert.deepEqual(lines(pieces), whole)
    }),
    { numRuns: 1000 },
  )
})

test('forgetting the held rest of a line keeps it out of the next answer', () => {
  /** @type {string[]} */
  const seen = []
  const parser = createLines((line) => seen.push(line))
  parser.feed('{"half\r')
  parser.feed('{"cut')
  parser.reset()
  parser.feed('\n{}\n')
  assert.deepEqual(seen, ['{"half', '', '{}'])
})
