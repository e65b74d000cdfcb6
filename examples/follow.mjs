// Follows a collection and prints its rows whenever they change. Node 20 has no global WebSocket, so this takes
// Server-Sent Events; Node 22 and browsers can say transport: 'websocket'.
//
//   node examples/follow.mjs [collection] [url] [tenant]
import { createClient } from '../clientjs/src/index.js'

const [collection = 'todos', url = 'http://127.0.0.1:7333', tenant = 'demo'] = process.argv.slice(2)
const client = createClient({ url, tenant, transport: 'sse' })
client.onStatus((status) => console.error(`${status.state} ${status.cursor ?? ''}`))
client.onError((error) => console.error(String(error)))
const rows = client.collection(collection)
rows.subscribe(({ changes }) => {
  for (const { op, key, value } of changes) console.log(op.padEnd(6), key, value === undefined ? '' : JSON.stringify(value))
})
process.on('SIGINT', () => client.close().then(() => process.exit(0)))
