import { known } from './errors.js'
import { createLines } from './lines.js'

/**
 * One answer over HTTP, read as it comes: an event stream, or the lines of a poll. Whole lines count even if the
 * answer is cut off; its unfinished rest never does. Of an event stream only the data matter, which are one line each:
 * frames say themselves what they are.
 * @param {(path: string, init: RequestInit) => Promise<Response>} request
 * @param {string} path
 * @param {boolean} sse
 * @param {AbortController} abort ends it
 * @param {(lines: string[]) => void} onLines gets frames, all that came together; some lines may be blank
 * @returns {Promise<void>} settles when nothing more comes; rejects if the answer is a problem, or does not come to its end
 */
export async function openStream(request, path, sse, abort, onLines) {
  try {
    const { body } = await request(path, {
      headers: sse ? { accept: 'text/event-stream' } : {},
      signal: abort.signal,
    })
    const prefix = sse ? 'data:' : ''
    /** @type {string[]} */
    let lines = []
    const feed = createLines((line) => {
      if (line.startsWith(prefix)) lines.push(line.slice(prefix.length))
    })
    const decoder = new TextDecoder()
    const reader = body?.getReader()
    // Node never settles a read under way where the body ends at the moment of an abort.
    abort.signal.addEventListener('abort', () => reader?.cancel().catch(() => {}))
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
  } finally {
    // Nothing more is read then. A body that is left lying would hold its connection.
    abort.abort()
  }
}
