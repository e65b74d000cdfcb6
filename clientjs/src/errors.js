/**
 * What a caller can act on. `code` is one of the protocol's (`bad-request`, `bad-name`, `too-large`, `too-many`,
 * `unauthenticated`, `forbidden`, `not-found`, `conflict`, `exists`, `missing`, `id-reused`, `upgrade-required`,
 * `unavailable`, `internal`) or one of the client's own: `bad-frame` (the wire carried what nobody can read),
 * `refused` (an answer that no Tidemark server gives), `unknown` (a write that was sent long ago, and may or may not
 * have happened), `closed` (the client was closed), or an `end` frame's reason.
 */
export class TidemarkError extends Error {
  name = 'TidemarkError'

  /** The HTTP status; 0 where there was no answer. */
  status = 0
  /** Of a refused write: the sequence of the row as it stands, if there is one. @type {number | undefined} */
  seq
  /** Of a refused write: the row as it stands. @type {any} */
  value
  /** In how many ms the same may succeed, at the soonest; null: not before somebody changes something. @type {number | null} */
  retry = null
  /** Which limit of the tenant it was: `sessions`, `subscriptions`, `writes`, `bytes`, `rows`, `size`, `row-size`. @type {string | undefined} */
  limit
  /** Whether these were a feed's last words. @type {boolean | undefined} */
  said

  /**
   * @param {string} code
   * @param {string} detail what happened, and what to do about it
   * @param {{status?: number, seq?: number, value?: any, retry?: number | null, limit?: string, said?: boolean}} [more]
   */
  constructor(code, detail, more) {
    super(detail)
    Object.assign(this, more)
    this.code = code
    this.detail = detail
  }
}

/** Whether nothing is wrong with a change, by its status in an answer; `aborted`: but with another one of its transaction. */
export const FINE = /^(ok|duplicate|aborted)$/

/** Limits that do not pass by themselves. */
const FULL = /^(rows|size)$/

/**
 * The change for which a transaction was refused.
 * @param {any} body
 */
export const refusal = (body) => body.results?.find?.((/** @type {any} */ { status }) => !FINE.test(status))

/**
 * The error that an answer stands for: a problem (RFC 9457), the results of a refused transaction, or whatever a proxy
 * says in a server's place.
 * @param {any} body
 * @param {number} [status] 0: there was no answer
 * @param {number} [retry] ms, as an error frame says it itself
 */
export function problem(body, status = body.status ?? 0, retry = body.retry ?? 0) {
  const culprit = refusal(body)
  const { seq, value } = culprit ?? body
  // Of the 4xx only these may go away by themselves; all else is somebody's bad day.
  const transient = !/^4(?!08|25|29)/.test(`${status}`)
  const code = culprit?.status ?? body.code ?? (transient ? 'unavailable' : 'refused')
  return new TidemarkError(code, body.detail ?? `${code}: HTTP ${status}`, {
    status,
    seq,
    value,
    limit: body.limit,
    // What is full stays so until somebody removes something.
    retry: transient && !FULL.test(body.limit) ? retry : null,
  })
}

/**
 * What went wrong, where it may be anything: what is not ours yet becomes it.
 * @param {unknown} cause
 * @param {string} [code] by default it was the network
 */
export const known = (cause, code = 'unavailable') =>
  cause instanceof TidemarkError ? cause : new TidemarkError(code, `${cause}`, { retry: 0 })

/**
 * Only the connection suffers from it: the next one starts anew.
 * @param {string} detail
 */
export const badFrame = (detail) => known(detail, 'bad-frame')

/**
 * What the feed ends with for good, unless something changes or there is a time to come back.
 * @param {string} code
 * @param {string} detail
 * @param {number | null} [retry] ms
 * @param {number} [status]
 */
export const unfit = (code, detail, retry = null, status = 0) =>
  new TidemarkError(code, detail, { status, retry, said: true })

export const closed = () => new TidemarkError('closed', 'the client was closed')
