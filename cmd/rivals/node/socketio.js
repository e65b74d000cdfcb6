// Socket.IO as its documentation's "Server options" and "Performance tuning" have it: no
// permessage-deflate (the default), no client files to serve, a backlog as for any server, and the initial
// HTTP request let go (it is kept in memory otherwise). Channels are rooms. The event "pub" publishes.
// NODE_ENV=production comes from who starts it. A compiled bufferutil is not there: it helps with
// what clients send alone, which is nothing here.
import { createServer } from 'node:http'
import { Server } from 'socket.io'

const server = createServer()
const io = new Server(server, { serveClient: false, perMessageDeflate: false, transports: ['polling', 'websocket'] })

io.engine.on('connection', (socket) => {
	socket.request = null
})

io.on('connection', (socket) => {
	const { c } = socket.handshake.auth
	if (c) socket.join(c)
	else socket.on('pub', (channel, text) => io.to(channel).emit('m', text))
})

server.listen({ host: '127.0.0.1', port: Number(process.argv[2]), backlog: 4096 })
