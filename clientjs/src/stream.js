import { createLines } from './lines.js'
import { request } from './request.js'
import { createParser } from './sse.js'

/**
 * done: settles when nothing more comes. send: where the connection goes both ways.
 * @typedef {{close: () => void, done?: Promise<void>, send?: (text: string) => void}} Connection
 */

/**
 * One answer over HTTP, read as it comes: an event stream, or the lines of a poll. Whole lines count even if the
 * answer is cut off; its unfinished rest never does.
 * @param {typeof globalThis.fetch} fetch
 * @param {string} url
 * @param {boolean} sse
 * @param {(lines: string[]) => void} onLines gets frames, all that came together; some lines may be blank
 * @returns {Connection & {done: Promise<void>}} done rejects if the answer is a problem, or does not come to its end
 */
export function openStream(fetch, url, sse, onLines) {
  const abort = new AbortController()

  const read = async () => {
    const { body } = await request(fetch, url, {
      headers: sse ? { accept: 'text/event-stream' } : {},
      signal: abort.signal,
    })
    /** @type {string[]} */
    let lines = []
    const parser = sse
      ? createParser({ onEvent: ({ data }) => lines.push(data) })
      : createLines((line) => lines.push(line))
    const decoder = new TextDecoder()
    const reader = body?.getReader()
    for (;;) {
      // No body, as of a 204, is one that ends at once.
      const { value } = (await reader?.read()) ?? {}
      if (!value) return
      parser.feed(decoder.decode(value, { stream: true }))
      onLines(lines)
      lines = []
    }
  }

  return {
    close: () => abort.abort(),
    // Nothing more is read then. A body that is left lying would hold its connection.
    done: read().finally(() => abort.abort()),
  }
}
