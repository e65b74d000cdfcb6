/**
 * Resolves with what tells apart those who must not share.
 * @param {import('./client.js').Host} host
 */
export async function scope(host) {
  const { base, options, clock, bearer } = host
  for (;;) {
    try {
      return JSON.stringify([`${base}`, options.user ?? '', who(await bearer())])
    } catch (error) {
      // Without a network there may be no credential yet.
      if (host.status.reason === 'closed') throw error
      await new Promise((resolve) => clock.after(1000, () => resolve(0)))
    }
  }
}

/**
 * Who a token is for, and what it allows, as far as it says so: tabs with tokens that allow different things share
 * nothing. What changes with each token does not count.
 * @param {string} [token] a JWT; anything else says nothing
 */
function who(token) {
  try {
    const { exp, iat, nbf, jti, ...claims } = JSON.parse(
      atob(`${token}`.split('.')[1].replace(/-/g, '+').replace(/_/g, '/')),
    )
    return JSON.stringify(claims)
  } catch {
    return ''
  }
}
