import { badFrame, problem } from './errors.js'

/** @typedef {import('./stream.js').Connection} Connection */
/** @typedef {{onmessage: any, onclose: any, onerror: any, send: (text: string) => void, close: () => void}} Socket */

/**
 * One WebSocket. A message holds frames, a line each; a binary message is told as odd and otherwise ignored.
 * @param {new (url: string) => Socket} WebSocket
 * @param {string} url
 * @param {(lines: string[]) => void} onLines
 * @param {(error: import('./errors.js').TidemarkError) => void} onOdd
 * @param {(error: import('./errors.js').TidemarkError) => void} onClose
 * @returns {Connection}
 */
export function openSocket(WebSocket, url, onLines, onOdd, onClose) {
  const socket = new WebSocket(url.replace(/^http/, 'ws'))
  socket.onmessage = (/** @type {{data: unknown}} */ { data }) => {
    if (typeof data === 'string') onLines(data.split('\n'))
    else onOdd(badFrame('a binary message'))
  }
  socket.onclose = (/** @type {{code: number, reason: string}} */ { code, reason }) => {
    // 4400, 4401 and 4403 mean what 400, 401 and 403 do in HTTP; after all others the next one may live.
    onClose(problem({ detail: reason || `WebSocket closed: ${code}` }, code >= 4400 && code < 4404 ? code - 4000 : 0))
  }
  // An error says nothing that the close after it does not; unheard, some implementations throw it.
  socket.onerror = () => {}
  return { close: () => socket.close(), send: (text) => socket.send(text) }
}
