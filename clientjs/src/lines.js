import { badFrame } from './errors.js'

/** The longest line, or event, that is waited for, in characters. A stranger's stream must not fill the memory. */
export const LIMIT = 1 << 24

/**
 * Cuts text that comes in pieces into lines, which end in CR, LF or CRLF. What follows the last line end is held until
 * its line is whole, and forgotten by reset. Throws a `bad-frame` error for a line that does not end (LIMIT).
 * @param {(line: string) => void} onLine
 */
export function createLines(onLine) {
  let held = ''
  let cr = false
  return {
    /** @param {string} text */
    feed(text) {
      if (!text) return
      // Only the new piece is searched, while the held text grows as a rope: searching the whole each time would be
      // O(N²) for a line that spans many pieces.
      const parts = (cr ? text.replace(/^\n/, '') : text).split(/\r\n?|\n/)
      cr = text.endsWith('\r')
      const rest = /** @type {string} */ (parts.pop())
      for (const part of parts) {
        onLine(held + part)
        held = ''
      }
      held += rest
      if (held.length > LIMIT) throw badFrame('too long')
    },
    reset() {
      held = ''
      cr = false
    },
  }
}
