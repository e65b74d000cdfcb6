import { badFrame } from './errors.js'
import { createLines, LIMIT } from './lines.js'

/** @typedef {{event: string, data: string, id: string}} ServerSentEvent id: the last one seen, as the standard has it */

/**
 * A parser of text/event-stream. It knows text, not networks: feed it what comes, in pieces of any size. reset forgets
 * everything, as for a new connection. Throws a `bad-frame` error for an event that does not end (LIMIT).
 * @param {{onEvent: (event: ServerSentEvent) => void, onRetry?: (ms: number) => void}} options
 */
export function createParser({ onEvent, onRetry }) {
  let first = true
  let event = ''
  let data = ''
  let id = ''

  /** @param {string} line */
  const onLine = (line) => {
    if (first) line = line.replace(/^\ufeff/, '')
    first = false
    const [, field, value] = /** @type {string[]} */ (/^([^:]*):? ?(.*)/s.exec(line))
    if (!line) {
      // Without a data line there is no event; with an empty one there is.
      if (data) onEvent({ event: event || 'message', data: data.slice(1), id })
      event = data = ''
    } else if (field === 'data') {
      data += `\n${value}`
      if (data.length > LIMIT) throw badFrame('too long')
    } else if (field === 'event') event = value
    else if (field === 'id' && !value.includes('\0')) id = value
    else if (field === 'retry' && /^\d+$/.test(value)) onRetry?.(+value)
  }
  const lines = createLines(onLine)

  return {
    feed: lines.feed,
    reset() {
      lines.reset()
      first = true
      event = data = id = ''
    },
  }
}
