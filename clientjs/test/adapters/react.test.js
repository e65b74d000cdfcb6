import assert from 'node:assert/strict'
import { test } from 'node:test'
import { createElement as h } from 'react'
import { renderToString } from 'react-dom/server'
import { useReady, useRow, useRows, useStatus } from '../../src/adapters/react.js'
import { FakeClient } from './fake.js'

// What needs a page is in browser/adapters.test.js.

test('a server renders no rows and follows nothing, whatever the client holds: so the page hydrates without a word', () => {
  const client = new FakeClient()
  const todos = client.collection('todos')
  client.feed({ todos: { a: { title: 'milk' } } })
  client.live('todos')
  client.become({ state: 'live' })
  /** @type {unknown[]} */
  const seen = []
  const App = () => {
    const status = useStatus(/** @type {any} */ (client))
    const rows = useRows(todos, { sort: () => 0, filter: () => true, select: () => ({}) })
    seen.push([status.state, rows, useRow(todos, 'a'), useReady(todos)])
    return h('p', null, rows.length)
  }
  assert.equal(renderToString(h(App)), '<p>0</p>')
  assert.deepEqual(seen, [['offline', [], undefined, false]])
  assert.equal(todos.starts, 0)
})
