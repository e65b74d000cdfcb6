// ws, as its README's "Server broadcast" has it, with what it says of performance: no
// permessage-deflate, which is its default on a server. Channels are paths: a client is told
// what is published to its own. A message to /pub is "CHANNEL TEXT", and is published. It is one process, as
// the README has it; NODE_ENV=production comes from who starts it.
import { createServer } from 'node:http'
import { WebSocket, WebSocketServer } from 'ws'

const channels = new Map()
const server = createServer((_, res) => res.end())
const sockets = new WebSocketServer({ server, perMessageDeflate: false })

sockets.on('connection', (socket, req) => {
	socket.on('error', () => {})
	if (req.url === '/pub') {
		socket.on('message', (data) => {
			const space = data.indexOf(0x20)
			const text = data.subarray(space + 1)
			for (const client of channels.get(data.toString('latin1', 0, space)) ?? []) {
				if (client.readyState === WebSocket.OPEN) client.send(text, { binary: false })
			}
		})
		return
	}
	const name = req.url.slice('/sub/'.length)
	const channel = channels.get(name) ?? new Set()
	channels.set(name, channel.add(socket))
	socket.on('close', () => channel.delete(socket))
})

// The backlog is for followers that come all at once; the default is 511.
server.listen({ host: '127.0.0.1', port: Number(process.argv[2]), backlog: 4096 })
