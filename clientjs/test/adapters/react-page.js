// A page for browser/adapters.test.js, which bundles it with one React or another.
import { createElement as h, memo, StrictMode, useState, version } from 'react'
import { flushSync } from 'react-dom'
import { createRoot } from 'react-dom/client'
import { useReady, useRow, useRows, useStatus } from '../../src/adapters/react.js'
import { createClient } from '../../src/index.js'
import { FakeClient } from './fake.js'

/** @typedef {import('../../src/index.js').Client} Client */

/** What the list rendered, one line each time; and what each item did. @type {string[]} */
const frames = []
/** @type {Map<string, number>} */
const renders = new Map()
/** @type {(filter: string) => void} */
let setFilter = () => {}

const byTitle = (/** @type {any} */ a, /** @type {any} */ b) => a.title.localeCompare(b.title)
const withKey = (/** @type {any} */ row, /** @type {string} */ key) => ({ ...row, key })

const Item = memo((/** @type {{row: any}} */ { row }) => {
  renders.set(row.key, (renders.get(row.key) ?? 0) + 1)
  return h('li', { id: row.key }, row.title)
})

/** @param {{client: Client}} props */
function List({ client }) {
  const [filter, set] = useState('')
  setFilter = set
  const todos = client.collection('todos')
  const rows = useRows(todos, {
    filter: (/** @type {any} */ { title }) => title.includes(filter),
    sort: byTitle,
    select: withKey,
  })
  const first = useRow(todos, 'a')
  const ready = useReady(todos)
  const { state } = useStatus(client)
  frames.push(`${ready} ${state} ${first?.title}: ${rows.map(({ key, title }) => `${key}=${title}`).join(' ')}`)
  return h(
    'ul',
    null,
    rows.map((row) => h(Item, { key: row.key, row })),
  )
}

/**
 * The list of a client, in StrictMode: mounted, unmounted and mounted again. It has rendered once when this returns,
 * which a busy machine would else leave for after what the test does next.
 * @param {Client} client
 */
function mount(client) {
  const root = createRoot(/** @type {Element} */ (document.querySelector('#app')))
  flushSync(() => root.render(h(StrictMode, null, h(List, { client }))))
  return () => root.unmount()
}

Object.assign(window, {
  page: {
    version,
    frames,
    renders,
    mount,
    createClient,
    FakeClient,
    setFilter: (/** @type {string} */ filter) => setFilter(filter),
    /** Lets React render what it has heard of. */
    painted: () => new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve))),
  },
})
