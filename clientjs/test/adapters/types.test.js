import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { mkdtemp, rm, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'

const root = fileURLToPath(new URL('../../', import.meta.url))

/** What somebody writes who uses it from TypeScript. */
const APP = `
import { createCollection, createTransaction } from '@tanstack/db'
import { QueryClient } from '@tanstack/query-core'
import type { StandardSchemaV1 } from '@standard-schema/spec'
import { createClient } from 'tidemark'
import { useReady, useRow, useRows, useStatus } from 'tidemark/react'
import { tidemarkCollectionOptions } from 'tidemark/tanstack-db'
import { bindQueryData, invalidateOnChange } from 'tidemark/tanstack-query'

type Todo = { id: string; title: string; done?: boolean }
declare const schema: StandardSchemaV1<{ id: string; title?: string }, Todo>
const client = createClient({ url: '/', tenant: 'demo' })
const source = client.collection<Todo>('todos')

const given = createCollection(tidemarkCollectionOptions<Todo>({ client, collection: 'todos', gcTime: 5 }))
export const todo: Todo | undefined = given.get('x')
given.insert({ id: 'x', title: 'y' })
// @ts-expect-error it has no title
given.insert({ id: 'x' })
given.update('x', { metadata: { if: given.utils.collection.seq('x') } }, (draft) => { draft.done = true })
export const state: 'connecting' | 'catching-up' | 'live' | 'offline' | 'denied' = given.utils.status().state
createTransaction({ mutationFn: given.utils.commit })

const known = createCollection(tidemarkCollectionOptions({ client, collection: source, getKey: ({ id }) => id }))
export const title: string = known.toArray[0].title
const checked = createCollection(tidemarkCollectionOptions({ client, collection: 'todos', schema }))
checked.insert({ id: 'x' })
export const done: boolean | undefined = checked.toArray[0].done
createCollection(tidemarkCollectionOptions({ client, collection: 'anything' })).insert({ at: 1 })

export const rows: Todo[] = useRows(source)
export const titles: string[] = useRows(source, {
  filter: ({ done }) => done,
  sort: (a, b) => a.title.localeCompare(b.title),
  select: ({ title }, key) => title + key,
})
export const one: Todo | undefined = useRow(source, 'x')
export const badge: [string, boolean] = [useStatus(client).transport, useReady(source)]

const queries = new QueryClient()
export const undo: () => void = invalidateOnChange(queries, [source, client.collection('lists')], { queryKey: ['x'] })
invalidateOnChange(queries, source, { queryKeys: ({ changes }) => changes.map(({ key }) => ['todo', key]) })
bindQueryData(queries, source, ['todos'], { select: (all) => all.filter(({ done }) => done) })
`

test('an editor knows the rows, whichever TanStack DB is installed', async (t) => {
  const dir = await mkdtemp(join(tmpdir(), 'tidemark-types-'))
  t.after(() => rm(dir, { recursive: true }))
  const tsc = (/** @type {string[]} */ ...args) =>
    spawnSync(process.execPath, [join(root, 'node_modules/typescript/bin/tsc'), ...args], { encoding: 'utf8' })
  // Whether the sources are in order is for `npm run check` to say; here it is what comes out.
  tsc('-p', join(root, 'tsconfig.build.json'), '--outDir', join(dir, 'types'))
  await symlink(join(root, 'node_modules'), join(dir, 'node_modules'))
  await writeFile(join(dir, 'package.json'), '{"type":"module"}')
  await writeFile(join(dir, 'app.ts'), APP)
  for (const version of ['tanstack-db-0.6', 'tanstack-db-0.9', '@tanstack/db']) {
    const paths = {
      '@tanstack/db': [`./node_modules/${version}/dist/esm/index.d.ts`],
      tidemark: ['./types/index.d.ts'],
      'tidemark/*': ['./types/adapters/*.d.ts'],
    }
    const compilerOptions = {
      lib: ['es2023', 'dom'],
      module: 'nodenext',
      noEmit: true,
      paths,
      skipLibCheck: true,
      strict: true,
      target: 'es2022',
      types: [],
    }
    await writeFile(join(dir, 'tsconfig.json'), JSON.stringify({ compilerOptions, files: ['app.ts'] }))
    const { status, stdout } = tsc('-p', dir)
    assert.equal(status, 0, `${version}:\n${stdout}`)
  }
})
