import { problem } from './errors.js'

/**
 * Fetches, and throws a TidemarkError for an answer that is not ok. Retry-After counts in seconds; as a date, which no
 * Tidemark sends, it is left to the ordinary backoff.
 * @param {typeof globalThis.fetch} fetch
 * @param {string} url
 * @param {RequestInit} init
 */
export async function request(fetch, url, init) {
  const response = await fetch(url, { cache: 'no-store', ...init })
  if (response.ok) return response
  const retry = 1000 * /** @type {any} */ (response.headers.get('retry-after')) || 0
  throw problem(await response.json().catch(() => ({})), response.status, retry)
}
