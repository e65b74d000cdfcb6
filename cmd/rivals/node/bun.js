// Bun's own WebSocket server with its publish and subscribe, as its documentation's "Pub/Sub" has it
// (bun.com/docs/runtime/http/websockets); perMessageDeflate is off by default. Channels are paths.
// A message to /pub is "CHANNEL TEXT", and is published. NODE_ENV=production comes from who starts it.
const server = Bun.serve({
	hostname: '127.0.0.1',
	port: Number(process.argv[2]),
	development: false,
	fetch(req, server) {
		const { pathname } = new URL(req.url)
		if (server.upgrade(req, { data: { path: pathname } })) return
		return new Response()
	},
	websocket: {
		perMessageDeflate: false,
		open(socket) {
			if (socket.data.path !== '/pub') socket.subscribe(socket.data.path.slice('/sub/'.length))
		},
		message(socket, text) {
			const space = text.indexOf(' ')
			server.publish(text.slice(0, space), text.slice(space + 1))
		},
	},
})
