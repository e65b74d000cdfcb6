import { badFrame } from './errors.js'

/** The longest line, or event, that is waited for, in characters. A stranger's stream must not fill the memory. */
export const LIMIT = 1 << 24

/**
 * Cuts text that comes in pieces into lines, which end in CR, LF or CRLF; blank ones may be missing, for they say
 * nothing here. What follows the last line end is held until its line is whole. Throws a `bad-frame` error for a line
 * that does not end (LIMIT).
 * @param {(line: string) => void} onLine
 * @returns {(text: string) => void}
 */
export function createLines(onLine) {
  let held = ''
  return (text) => {
    // Only the new piece is searched, while the held text grows as a rope: searching the whole each time would be O(N²)
    // for a line that spans many pieces.
    const [rest, ...begun] = text.split(/[\r\n]+/)
    held += rest
    for (const line of begun) {
      onLine(held)
      held = line
    }
    if (held.length > LIMIT) throw badFrame('too long')
  }
}
