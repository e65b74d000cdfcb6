import { badFrame } from './errors.js'

/** The longest line, or event, that is waited for, in characters. A stranger's stream must not fill the memory. */
export const LIMIT = 1 << 24

/**
 * Cuts text that comes in pieces into lines, which end in CR, LF or CRLF. What follows the last line end is held until
 * its line is whole, and forgotten by reset. Throws a `bad-frame` error beyond `limit` characters without a line end.
 * @param {(line: string) => void} onLine
 * @param {number} [limit] 16 Mi by default
 */
export function createLines(onLine, limit = LIMIT) {
  let held = ''
  let cr = false
  return {
    /** @param {string} text */
    feed(text) {
      if (!text) return
      // Only the new piece is searched, while the held text grows as a rope: searching the whole each time would be
      // O(N²) for a line that spans many pieces.
      const parts = (cr && text[0] === '\n' ? text.slice(1) : text).split(/\r\n?|\n/)
      cr = text.endsWith('\r')
      const rest = /** @type {string} */ (parts.pop())
      for (const part of parts) {
        const line = held + part
        held = ''
        onLine(line)
      }
      held += rest
      if (held.length > limit) throw badFrame('too long')
    },
    reset() {
      held = ''
      cr = false
    },
  }
}
