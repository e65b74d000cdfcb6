import { known } from './errors.js'
import { createLines } from './lines.js'

/**
 * done: settles when nothing more comes. send: where the connection goes both ways.
 * @typedef {{close: () => void, done: Promise<void>, send?: (text: string) => void}} Connection
 */

/**
 * One answer over HTTP, read as it comes: an event stream, or the lines of a poll. Whole lines count even if the
 * answer is cut off; its unfinished rest never does. Of an event stream only the data matter, which are one line each:
 * frames say themselves what they are.
 * @param {(url: string, init: RequestInit) => Promise<Response>} request
 * @param {string} url
 * @param {boolean} sse
 * @param {(lines: string[]) => void} onLines gets frames, all that came together; some lines may be blank
 * @returns {Connection} done rejects if the answer is a problem, or does not come to its end
 */
export function openStream(request, url, sse, onLines) {
  const abort = new AbortController()

  const read = async () => {
    const { body } = await request(url, {
      headers: sse ? { accept: 'text/event-stream' } : {},
      signal: abort.signal,
    })
    /** @type {string[]} */
    let lines = []
    const feed = createLines((line) => {
      if (!sse) lines.push(line)
      else if (line.startsWith('data:')) lines.push(line.slice(5))
    })
    const decoder = new TextDecoder()
    const reader = body?.getReader()
    for (;;) {
      // No body, as of a 204, is one that ends at once.
      const { value } =
        (await reader?.read().catch((cause) => {
          throw known(cause, 'cut off')
        })) ?? {}
      if (!value) return
      feed(decoder.decode(value, { stream: true }))
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
