/** @typedef {import('../index.js').Client} Client */
/** @typedef {import('../index.js').Status} Status */
/**
 * @template {object} [T=Record<string, any>]
 * @typedef {import('../index.js').Collection<T>} TidemarkCollection
 */

/**
 * What the collection's `utils` hold.
 * @template {object} [T=Record<string, any>]
 * @typedef {object} Utils
 * @property {Client} client
 * @property {TidemarkCollection<T>} collection Tidemark's own, for writes with a ttl or an `if`, and for `seq(key)`
 * @property {() => Status} status how the feed is
 * @property {Client['onStatus']} onStatus returns its undo
 * @property {TidemarkCollection<T>['awaitSeq']} awaitSeq resolves once the rows have come to this sequence. For handlers
 *   of one's own, which write by another way: they must not end before
 * @property {(params: {transaction: {mutations: readonly Mutation[]}}) => Promise<void>} commit writes the mutations of
 *   all of the client's collections as one transaction: the `mutationFn` of `createTransaction`
 */

/**
 * What is read of a PendingMutation. `metadata` may carry `if` and `ttl`:
 * `todos.update(key, { metadata: { if: todos.utils.collection.seq(key) } }, (draft) => …)`.
 * @typedef {object} Mutation
 * @property {'insert' | 'update' | 'delete'} type
 * @property {any} key
 * @property {object} original
 * @property {object} modified
 * @property {unknown} metadata
 * @property {{utils: any}} collection
 */

/** @typedef {import('@tanstack/db').StandardSchema<any>} Schema */
/**
 * @template {object} T
 * @template {Schema} [S=never]
 * @typedef {import('@tanstack/db').BaseCollectionConfig<T, string, S, Utils<T>>} Base
 */
/**
 * @template {object} T
 * @template {Schema} [S=never]
 * @typedef {Omit<Base<T, S>, 'getKey' | 'schema' | 'syncMode' | 'utils'> & {
 *   client: Client,
 *   collection: string | TidemarkCollection<T>,
 *   getKey?: (row: T) => string | number | undefined,
 * }} Options `onInsert`, `onUpdate` and `onDelete` replace the handlers that write to the client
 */

/**
 * @template {object} T
 * @template {Schema} [S=never]
 * @typedef {import('@tanstack/db').CollectionConfig<T, string, S, Utils<T>> & {utils: Utils<T>}} Config
 */

/** The key of a row that does not tell it. JSON leaves it out, so it is never written. */
const KEY = Symbol('key')

/**
 * @template {Schema} S
 * @typedef {import('@tanstack/db').InferSchemaOutput<S>} Output
 */
/**
 * The rows' type comes from the schema, from a collection of Tidemark's, or is given.
 * @typedef {{
 *   <S extends Schema>(options: Options<Output<S>, S> & {schema: S}): Config<Output<S>, S> & {schema: S},
 *   <T extends object = Record<string, any>>(options: Options<T> & {schema?: never}): Config<T> & {schema?: never},
 * }} TidemarkCollectionOptions
 */

/**
 * Options for `createCollection` of TanStack DB: rows come from the feed, and mutations are written to it. A transaction
 * is written whole or not at all. It ends once its rows are here, so that nothing flickers, and rejects with the
 * TidemarkError when it is refused.
 *
 * Keys are Tidemark's, strings. getKey must say the same of a row as the key that it has in Tidemark: by default its
 * `id`, else its `key`; numbers become strings (`todos.get('7')`). Rows of which getKey says nothing (undefined) are
 * found under their Tidemark key all the same, in `$key`; but it takes a getKey that says something to insert.
 *
 * @type {TidemarkCollectionOptions}
 */
export const tidemarkCollectionOptions = (/** @type {Options<any, any>} */ given) => {
  const { client, collection, getKey = (row) => row.id ?? row.key, ...options } = given
  const source = typeof collection === 'string' ? client.collection(collection) : collection

  /** @type {Utils['commit']} */
  const commit = async ({ transaction }) => {
    const ours = transaction.mutations.filter((mutation) => mutation.collection.utils.client === client)
    // The host shows the rows as they will be; and when this resolves, sync has been told of them as they are.
    if (ours.length) await client.write(ours.map(written), { optimistic: false })
  }

  /** @type {import('@tanstack/db').SyncConfig<any, string>['sync']} */
  const sync = ({ begin, write, commit, markReady }) => {
    /** The rows that sync was told of, to know an insert from an update. @type {Map<string, object>} */
    const held = new Map()
    let ready = false

    /** @param {Iterable<string>} keys of rows that may differ from held */
    const bring = (keys) => {
      const changed = [...keys].filter((key) => held.get(key) !== source.rows.get(key))
      if (changed.length) {
        begin()
        for (const key of changed) {
          const row = source.rows.get(key)
          if (row) {
            const value = getKey(row) == null ? { ...row, [KEY]: key } : row
            // Its types know no key here, all versions of it do.
            write(/** @type {any} */ ({ type: held.has(key) ? 'update' : 'insert', key, value }))
            held.set(key, row)
          } else {
            write({ type: 'delete', key })
            held.delete(key)
          }
        }
        commit()
      }
      if (source.ready && !ready) {
        ready = true
        markReady()
      }
    }

    bring(source.rows.keys())
    // A reset too tells only what differs: never a truncate, which would show no rows for a moment.
    return source.subscribe(({ changes }) => bring(changes.map(({ key }) => key)))
  }

  return /** @type {any} */ ({
    onInsert: commit,
    onUpdate: commit,
    onDelete: commit,
    ...options,
    getKey: (/** @type {any} */ row) => {
      const key = getKey(row) ?? row[KEY]
      return key === undefined ? key : `${key}`
    },
    sync: { sync, rowUpdateMode: 'full' },
    utils: {
      client,
      collection: source,
      status: () => client.status,
      onStatus: client.onStatus,
      awaitSeq: source.awaitSeq,
      commit,
    },
  })
}

/**
 * @param {Mutation} mutation
 * @returns {import('../index.js').Write}
 */
function written({ type, key, original, modified, metadata, collection }) {
  const { if: seq, ttl } = /** @type {{if?: number, ttl?: number}} */ (metadata ?? {})
  const target = { collection: collection.utils.collection.name, key, if: seq }
  if (type === 'delete') return { ...target, op: 'remove' }
  if (type === 'insert') return { ...target, op: 'insert', value: plain(modified), ttl }
  const value = plain(modified)
  const patch = difference(plain(original), value)
  return { ...target, op: 'modify', ttl, ...(patch ? { patch } : { value }) }
}

/**
 * A row as the server will see it, without what TanStack DB adds to the rows that it hands out.
 * @param {Record<string, any>} row
 */
const plain = ({ $collectionId, $hasPendingWrites, $key, $origin, $synced, ...row }) => JSON.parse(JSON.stringify(row))

/** @param {unknown} value */
const isObject = (value) => typeof value === 'object' && value !== null && !Array.isArray(value)

/**
 * The patch that turns a into b when it is merged (RFC 7396), or undefined where there is none: in a patch null means
 * removed, so a member can't become null.
 * @param {Record<string, any>} a
 * @param {Record<string, any>} b
 * @returns {object | undefined}
 */
function difference(a, b) {
  /** @type {[string, unknown][]} */
  const members = []
  for (const key of Object.keys(a)) if (!Object.hasOwn(b, key)) members.push([key, null])
  for (const [key, value] of Object.entries(b)) {
    const old = Object.hasOwn(a, key) ? a[key] : undefined
    if (JSON.stringify(old) === JSON.stringify(value)) continue
    if (value === null) return
    const change = isObject(value) ? difference(isObject(old) ? old : {}, value) : value
    if (change === undefined) return
    members.push([key, change])
  }
  // Not by assignment: `__proto__` is a member like any other.
  return Object.fromEntries(members)
}
