// Follows a collection and prints its rows whenever they change, over whatever the network lets through: WebSocket where
// the platform has one (Node 22), else Server-Sent Events or long poll.
//
//   node examples/follow.mjs [collection] [url] [tenant]
//
// A server with credentials wants a token: TIDEMARK_TOKEN=$(tidemark token …) node examples/follow.mjs
import { createClient } from '../clientjs/src/index.js'

const [collection = 'todos', url = 'http://127.0.0.1:7333', tenant = 'demo'] = process.argv.slice(2)
const token = process.env.TIDEMARK_TOKEN
const client = createClient({ url, tenant, ...(token && { getToken: () => token }) })
client.onStatus((status) => console.error(`${status.state} by ${status.transport} ${status.cursor ?? ''}`))
client.onError((error) => console.error(String(error)))
const rows = client.collection(collection)
rows.subscribe(({ changes }) => {
  for (const { op, key, value } of changes) console.log(op.padEnd(6), key, value === undefined ? '' : JSON.stringify(value))
})
process.on('SIGINT', () => client.close().then(() => process.exit(0)))
