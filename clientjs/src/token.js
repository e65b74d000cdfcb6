/**
 * What a token says of itself, which only the server verifies.
 * @param {string} [token] a JWT; anything else says nothing
 * @returns {any}
 */
export function claims(token) {
  try {
    return JSON.parse(atob(`${token}`.split('.')[1].replace(/-/g, '+').replace(/_/g, '/'))) ?? ''
  } catch {
    return ''
  }
}
