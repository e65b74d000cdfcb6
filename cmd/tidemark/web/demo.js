// The demo: a todo list that everybody who opens this page shares. It is an ordinary app on the client library; nothing
// here knows how the changes travel.
import { createClient } from '/client.js'

const $ = id => document.getElementById(id)
const remember = (key, value) => { try { localStorage.setItem(key, value) } catch { /* private mode: not remembered */ } }
const recall = key => { try { return localStorage.getItem(key) } catch { return null } }

const chosen = new URLSearchParams(location.search).get('transport') ?? recall('tidemark-demo-transport')
let transport = ['auto', 'websocket', 'sse', 'poll'].includes(chosen) ? chosen : 'auto'
// A connection for each window, where others would share one: so that each can be on a transport of its own.
const client = createClient({ url: '/', tenant: 'demo', transport, tabs: false })
const todos = client.collection('todos')

// Who am I: a name for this tab, so that two windows are two people.
const animals = ['Otter', 'Heron', 'Seal', 'Puffin', 'Crab', 'Gull', 'Whelk', 'Eel']
$('name').value = sessionStorage.getItem('name') ?? animals[Math.floor(Math.random() * animals.length)]
$('name').oninput = () => sessionStorage.setItem('name', $('name').value)
const me = () => $('name').value.trim() || 'Somebody'

// The rows, as elements that are kept and changed in place: what one is typing in is never replaced.
const items = new Map() // key -> {li, check, text, who}

function item(key) {
  const li = document.createElement('li')
  const check = Object.assign(document.createElement('input'), { type: 'checkbox' })
  const text = Object.assign(document.createElement('input'), { className: 'text', maxLength: 200 })
  const who = Object.assign(document.createElement('span'), { className: 'who' })
  const gone = Object.assign(document.createElement('button'), { className: 'gone', textContent: '✕', title: 'Remove' })
  gone.setAttribute('aria-label', 'Remove')
  check.setAttribute('aria-label', 'Done')
  text.setAttribute('aria-label', 'Todo')
  check.onchange = () => attempt(todos.modify(key, { done: check.checked, by: me() }))
  text.onchange = () => {
    const title = text.value.trim()
    if (title) attempt(todos.modify(key, { title, by: me() }))
    else show(key)
  }
  text.onkeydown = event => { if (event.key === 'Enter') text.blur() }
  gone.onclick = () => attempt(todos.remove(key))
  li.append(check, text, who, gone)
  const parts = { li, check, text, who }
  items.set(key, parts)
  return parts
}

function show(key) {
  const value = todos.rows.get(key)
  if (value === undefined) {
    items.get(key)?.li.remove()
    items.delete(key)
    return
  }
  const { li, check, text, who } = items.get(key) ?? item(key)
  check.checked = value.done === true
  if (document.activeElement !== text) text.value = String(value.title ?? key)
  who.textContent = value.by ?? ''
  li.classList.toggle('done', check.checked)
  // In the order of their making; what comes from a terminal has no time and goes last.
  const order = Number(value.made ?? Infinity)
  li.dataset.order = order
  if (!li.isConnected) {
    const after = [...$('list').children].find(other => Number(other.dataset.order) > order)
    $('list').insertBefore(li, after ?? null)
  }
}

function flash(element) {
  element.classList.remove('flash')
  void element.offsetWidth // starts the animation anew
  element.classList.add('flash')
}

let first = true
const newest = [] // the last changes, newest first

todos.subscribe(({ changes }) => {
  for (const { op, key, value, seq } of changes) {
    show(key)
    if (!first && items.has(key)) flash(items.get(key).li)
    newest.unshift({ op, key, value, seq, fresh: !first })
  }
  first = false
  list()
  count()
})

function list() {
  // An own change has no sequence until the server has confirmed it.
  for (const change of newest) change.seq ||= todos.seq(change.key)
  newest.sort((a, b) => (b.seq || Infinity) - (a.seq || Infinity) || 0)
  newest.length = Math.min(newest.length, 8)
  $('changes').replaceChildren(...newest.map(change => {
    const li = document.createElement('li')
    const cell = (text, name) => li.append(Object.assign(document.createElement('span'), { textContent: text, className: name }))
    cell(change.seq || '…', 'seq')
    cell(change.op, `op ${change.op}`)
    cell(change.value ? `${change.value.title ?? change.key}${change.value.by ? ` · ${change.value.by}` : ''}` : change.key, 'what')
    if (change.fresh) li.classList.add('flash')
    change.fresh = false
    return li
  }))
}

function count() {
  const rows = [...todos.rows.values()]
  $('count').textContent = rows.length ? `${rows.filter(row => row.done !== true).length} of ${rows.length} open` : ''
  $('rows').textContent = rows.length
  $('empty').hidden = rows.length > 0 || client.status.state !== 'live'
}

$('add').onsubmit = event => {
  event.preventDefault()
  const title = $('title').value.trim()
  if (!title) return
  $('title').value = ''
  attempt(todos.insert({ title, done: false, by: me(), made: Date.now() }))
}

let clearing
function attempt(promise) {
  promise.catch(error => say(error.detail ?? String(error)))
}
function say(text) {
  $('error').textContent = text
  $('error').hidden = false
  clearTimeout(clearing)
  clearing = setTimeout(() => { $('error').hidden = true }, 6000)
}
client.onError(error => say(error.detail ?? String(error)))

// The state of the feed.
const words = { connecting: 'connecting', 'catching-up': 'catching up', live: 'live', offline: 'offline', denied: 'denied' }
function state() {
  const { state, transport: carrier, reason, why } = client.status
  const name = document.querySelector(`[value=${carrier}] + span`).textContent
  $('dot').className = `dot ${state}`
  $('state').textContent = words[state] ?? state
  $('reason').textContent = state === 'live' ? `by ${name}` : reason ?? ''
  $('carrier').textContent = why ? `${name} (${why})` : name
  document.querySelector(`[name=transport][value=${transport}]`).checked = true
  count()
}
client.onStatus(state)
state()
setInterval(() => {
  $('cursor').textContent = client.cursor('todos') ?? '–'
  if (newest.some(change => !change.seq)) list()
}, 200)

$('transports').onchange = event => {
  transport = event.target.value
  remember('tidemark-demo-transport', transport)
  client.setTransport(transport)
}

$('curl').textContent = `curl '${location.origin}/v1/demo/rows/todos' -d '{"title":"milk","done":false}'`
