import { problem, unfit } from './errors.js'

/** @typedef {{onopen: any, onmessage: any, onclose: any, onerror: any, send: (text: string) => void, close: () => void}} Socket */

/** What is said of us, not of the connection: the next one would be no better. @type {Record<number, string>} */
const REFUSALS = { 4401: 'unauthenticated', 4403: 'forbidden' }

/**
 * One WebSocket. A message holds frames, a line each.
 * @param {new (url: string) => Socket} WebSocket
 * @param {string} url
 * @param {AbortSignal} signal ends it
 * @param {(send: (text: string) => void) => void} onOpen is told how to speak to it; before that it takes nothing
 * @param {(lines: string[]) => void} onLines
 * @returns {Promise<void>} rejects when nothing more comes
 */
export const openSocket = (WebSocket, url, signal, onOpen, onLines) =>
  new Promise((_, reject) => {
    const socket = new WebSocket(url.replace(/^http/, 'ws'))
    socket.onopen = () => onOpen((text) => socket.send(text))
    // A binary message, which no server sends, is none of our lines.
    socket.onmessage = (/** @type {{data: unknown}} */ { data }) => onLines(`${data}`.split('\n'))
    socket.onclose = (/** @type {{code: number, reason: string}} */ { code, reason }) => {
      const detail = reason || `WebSocket ${code}`
      const refusal = REFUSALS[code]
      reject(refusal ? unfit(refusal, detail, null, code - 4000) : problem({ detail }, code === 4400 ? 400 : 0))
    }
    // An error says nothing that the close after it does not; unheard, some implementations throw it.
    socket.onerror = () => {}
    signal.onabort = () => {
      socket.close()
      reject()
    }
  })
