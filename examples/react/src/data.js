import { createCollection, createTransaction } from '@tanstack/react-db'
import { createClient } from 'tidemark'
import { tidemarkCollectionOptions } from 'tidemark/tanstack-db'

/** Who you are, until you close the tab. */
export const me = `guest ${Math.floor(Math.random() * 900 + 100)}`

export const client = createClient({
  url: import.meta.env.VITE_TIDEMARK_URL ?? 'http://127.0.0.1:7333',
  tenant: 'demo',
  client: me,
})

export const projects = createCollection(tidemarkCollectionOptions({ client, collection: 'react/projects' }))
export const todos = createCollection(tidemarkCollectionOptions({ client, collection: 'react/todos' }))
/** Who is here. Rows go by themselves when nobody renews them. */
export const people = createCollection(tidemarkCollectionOptions({ client, collection: 'react/people' }))

const newId = () => crypto.randomUUID()

export function addTodo(project, title) {
  return todos.insert({ id: newId(), project, title, done: false, by: me, at: Date.now() })
}

/** A project and its first todo, as one transaction: nobody sees the one without the other. */
export function addProject(name) {
  const id = newId()
  const transaction = createTransaction({ mutationFn: todos.utils.commit })
  transaction.mutate(() => {
    projects.insert({ id, name, at: Date.now() })
    addTodo(id, `Plan “${name}”`)
  })
  return { id, transaction }
}

/** A project goes with its todos, or stays with all of them. */
export function removeProject(id) {
  const transaction = createTransaction({ mutationFn: todos.utils.commit })
  const gone = todos.toArray.filter((todo) => todo.project === id).map((todo) => todo.id)
  transaction.mutate(() => {
    if (gone.length) todos.delete(gone)
    projects.delete(id)
  })
  return transaction
}

/** Says that you are here, and where; again every 10 s, for 30 s at most. Returns its undo. */
export function comeHere(project) {
  const source = people.utils.collection
  // Not through TanStack DB: nobody waits for it, and a row that has gone comes back by itself.
  const say = () => source.put(me, { id: me, project, at: Date.now() }, { ttl: 30 }).catch(() => {})
  say()
  const timer = setInterval(say, 10_000)
  return () => clearInterval(timer)
}
