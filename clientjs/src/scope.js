import { claims } from './token.js'

/**
 * Resolves with what tells apart those who must not share.
 * @param {import('./client.js').Host} host
 */
export async function scope(host) {
  const { base, options, clock, bearer } = host
  for (;;) {
    try {
      const token = await bearer()
      host.subject = claims(token).sub ?? ''
      return JSON.stringify([`${base}`, options.user ?? '', who(token)])
    } catch (error) {
      // Without a network there may be no credential yet.
      if (host.client.status.reason === 'closed') throw error
      await new Promise((resolve) => clock.after(1000, () => resolve(0)))
    }
  }
}

/**
 * Who a token is for, and what it allows, as far as it says so: tabs with tokens that allow different things share
 * nothing. What changes with each token does not count.
 * @param {string} [token]
 */
function who(token) {
  const said = claims(token)
  const { exp, iat, nbf, jti, ...rest } = said
  return said && JSON.stringify(rest)
}
