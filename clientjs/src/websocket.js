import { problem, unfit } from './errors.js'

/** @typedef {import('./stream.js').Connection} Connection */
/** @typedef {{onopen: any, onmessage: any, onclose: any, onerror: any, readyState: number, send: (text: string) => void, close: () => void}} Socket */

/** What is said of us, not of the connection: the next one would be no better. @type {Record<number, string>} */
const REFUSALS = { 4401: 'unauthenticated', 4403: 'forbidden' }

/**
 * One WebSocket. A message holds frames, a line each.
 * @param {new (url: string) => Socket} WebSocket
 * @param {string} url
 * @param {() => void} onOpen
 * @param {(lines: string[]) => void} onLines
 * @returns {Connection} done rejects
 */
export function openSocket(WebSocket, url, onOpen, onLines) {
  const socket = new WebSocket(url.replace(/^http/, 'ws'))
  /** @type {(cause?: unknown) => void} */
  let end
  /** @type {Promise<void>} */
  const done = new Promise((_, reject) => {
    end = reject
  })
  socket.onopen = onOpen
  // A binary message, which no server sends, is none of our lines.
  socket.onmessage = (/** @type {{data: unknown}} */ { data }) => onLines(`${data}`.split('\n'))
  socket.onclose = (/** @type {{code: number, reason: string}} */ { code, reason }) => {
    const detail = reason || `WebSocket closed: ${code}`
    const refusal = REFUSALS[code]
    end(refusal ? unfit(refusal, detail, null, code - 4000) : problem({ detail }, code === 4400 ? 400 : 0))
  }
  // An error says nothing that the close after it does not; unheard, some implementations throw it.
  socket.onerror = () => {}
  return {
    close() {
      socket.close()
      end()
    },
    // Before it is open it takes nothing.
    get send() {
      return socket.readyState === 1 ? (/** @type {string} */ text) => socket.send(text) : undefined
    },
    done,
  }
}
