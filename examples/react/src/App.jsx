import { eq, useLiveQuery } from '@tanstack/react-db'
import { useEffect, useState } from 'react'
import { useStatus } from 'tidemark/react'
import { addProject, addTodo, client, comeHere, me, people, projects, removeProject, todos } from './data.js'

const FILTERS = { all: 'All', open: 'Open', done: 'Done' }
const TRANSPORTS = { auto: 'Automatic', websocket: 'WebSocket', sse: 'Server-Sent Events', poll: 'Long poll' }

export function App() {
  const [chosen, choose] = useState()
  const [error, setError] = useState('')
  const { data: all, isReady } = useLiveQuery((q) => q.from({ project: projects }).orderBy(({ project }) => project.at))
  const project = all.find(({ id }) => id === chosen) ?? all[0]

  useEffect(() => client.onError((error) => setError(error.message)), [])
  useEffect(() => comeHere(project?.id ?? ''), [project?.id])

  /** A change that the server refuses is taken back by itself; here somebody is told. */
  const tell = (transaction) => {
    setError('')
    transaction.isPersisted.promise.catch((error) => setError(`Not saved: ${error.message}`))
  }

  return (
    <>
      <header>
        <svg className="mark" viewBox="0 0 32 32" aria-hidden="true">
          <rect width="32" height="32" rx="9" />
          <path d="M5 13q5.5-6 11 0t11 0M5 20q5.5-6 11 0t11 0" />
        </svg>
        <h1>Tidemark and React</h1>
        <Connection />
      </header>
      {error && (
        <p className="error" role="alert">
          {error}{' '}
          <button type="button" onClick={() => setError('')}>
            Dismiss
          </button>
        </p>
      )}
      <main>
        <nav className="card">
          <h2>Projects</h2>
          <ul>
            {all.map(({ id, name }) => (
              <Project key={id} id={id} name={name} current={id === project?.id} choose={choose} />
            ))}
          </ul>
          <Add
            label="New project"
            add={(name) => {
              const { id, transaction } = addProject(name)
              choose(id)
              tell(transaction)
            }}
          />
        </nav>
        {project ? (
          <Todos key={project.id} project={project} tell={tell} />
        ) : (
          <section className="card muted">{isReady ? 'Make a project, and open this page twice.' : 'Loading…'}</section>
        )}
      </main>
    </>
  )
}

function Connection() {
  const { state, transport, reason } = useStatus(client)
  return (
    <p className="status">
      <span className={`dot ${state}`} />
      {state} <span className="muted">{reason || `by ${TRANSPORTS[transport]}`}</span>
      <select defaultValue="auto" onChange={({ target }) => client.setTransport(target.value)} aria-label="Transport">
        {Object.entries(TRANSPORTS).map(([value, label]) => (
          <option key={value} value={value}>
            {label}
          </option>
        ))}
      </select>
    </p>
  )
}

function Project({ id, name, current, choose }) {
  const { data: open } = useLiveQuery((q) =>
    q
      .from({ todo: todos })
      .where(({ todo }) => eq(todo.project, id))
      .where(({ todo }) => eq(todo.done, false)),
  )
  return (
    <li>
      <button type="button" className={current ? 'current' : ''} onClick={() => choose(id)}>
        <span className="name">{name}</span>
        <span className="count">{open.length}</span>
      </button>
    </li>
  )
}

function Todos({ project, tell }) {
  const [filter, setFilter] = useState('all')
  const { data } = useLiveQuery((q) => {
    const ours = q.from({ todo: todos }).where(({ todo }) => eq(todo.project, project.id))
    const some = filter === 'all' ? ours : ours.where(({ todo }) => eq(todo.done, filter === 'done'))
    return some.orderBy(({ todo }) => todo.at)
  })
  const { data: here } = useLiveQuery((q) =>
    q.from({ person: people }).where(({ person }) => eq(person.project, project.id)),
  )
  const done = data.filter((todo) => todo.done)
  return (
    <section className="card">
      <div className="bar">
        <h2>{project.name}</h2>
        <span className="people">
          {here.map(({ id }) => (
            <span key={id} className={id === me ? 'person me' : 'person'}>
              {id === me ? `${id} (you)` : id}
            </span>
          ))}
        </span>
      </div>
      <Add label="What is to be done?" add={(title) => tell(addTodo(project.id, title))} />
      <fieldset>
        <legend className="hidden">Show</legend>
        {Object.entries(FILTERS).map(([value, label]) => (
          <label key={value}>
            <input type="radio" name="filter" checked={filter === value} onChange={() => setFilter(value)} />
            <span>{label}</span>
          </label>
        ))}
      </fieldset>
      <ul className="todos">
        {data.map((todo) => (
          <Todo key={todo.id} todo={todo} tell={tell} />
        ))}
      </ul>
      <div className="bar foot">
        <button type="button" disabled={!done.length} onClick={() => tell(todos.delete(done.map(({ id }) => id)))}>
          Clear {done.length} done
        </button>
        <button type="button" className="danger" onClick={() => tell(removeProject(project.id))}>
          Remove project
        </button>
      </div>
    </section>
  )
}

function Todo({ todo, tell }) {
  const change = (members) => tell(todos.update(todo.id, (draft) => void Object.assign(draft, members)))
  return (
    <li className={todo.done ? 'done' : ''}>
      <input
        type="checkbox"
        checked={todo.done}
        aria-label={todo.title}
        onChange={({ target }) => change({ done: target.checked })}
      />
      <input
        className="text"
        // The row may change while nobody types in it.
        key={todo.title}
        defaultValue={todo.title}
        aria-label="Title"
        onKeyDown={({ key, target }) => key === 'Enter' && target.blur()}
        onBlur={({ target }) => target.value !== todo.title && change({ title: target.value })}
      />
      <span className="muted">{todo.by}</span>
      <button type="button" className="gone" aria-label="Remove" onClick={() => tell(todos.delete(todo.id))}>
        ×
      </button>
    </li>
  )
}

function Add({ label, add }) {
  const submit = (event) => {
    event.preventDefault()
    const { value } = event.target.elements.text
    if (!value.trim()) return
    add(value.trim())
    event.target.reset()
  }
  return (
    <form onSubmit={submit}>
      <input name="text" placeholder={label} aria-label={label} autoComplete="off" />
      <button type="submit">Add</button>
    </form>
  )
}
