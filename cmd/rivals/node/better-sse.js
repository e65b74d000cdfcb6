// better-sse as its documentation's "Channels" has it, on node:http. Text is sent as it is, instead
// of as JSON of it. Channels are paths; a POST to /pub/CHANNEL publishes. NODE_ENV=production comes from
// who starts it.
import { createServer } from 'node:http'
import { createChannel, createSession } from 'better-sse'

const channels = new Map()

function channelOf(name) {
	let channel = channels.get(name)
	if (!channel) channels.set(name, (channel = createChannel()))
	return channel
}

const server = createServer(async (req, res) => {
	const [, what, name] = req.url.split('/')
	if (what === 'sub') {
		channelOf(name).register(await createSession(req, res, { serializer: String }))
	} else if (what === 'pub') {
		let text = ''
		req.setEncoding('utf8')
		for await (const piece of req) text += piece
		channelOf(name).broadcast(text)
		res.writeHead(204).end()
	} else {
		res.end()
	}
})
// The publisher's one connection sends more requests than any limit on them.
server.maxRequestsPerSocket = 0
server.listen({ host: '127.0.0.1', port: Number(process.argv[2]), backlog: 4096 })
