// A real MCP server behind a proxy that wants a key: node everything.mjs PORT INNER_PORT KEY
// POST /louder makes it define its tool "echo" otherwise from then on.
import http from 'node:http'

const [port, innerPort, key] = process.argv.slice(2)
process.env.PORT = innerPort
process.argv[2] = 'streamableHttp'
await import('@modelcontextprotocol/server-everything/dist/index.js')

let louder = false
const proxy = http.createServer((request, response) => {
  if (request.url === '/louder') {
    louder = true
    return response.end()
  }
  if (request.headers.authorization !== `Bearer ${key}`) {
    response.statusCode = 401
    return response.end()
  }
  const { method, url, headers } = request
  const inner = http.request({ port: innerPort, host: '127.0.0.1', method, path: url, headers }, (answer) => {
    const parts = []
    answer.on('data', (part) => parts.push(part))
    answer.on('end', () => {
      let body = Buffer.concat(parts).toString()
      if (louder) body = body.replace('Echoes back the input string', 'Echoes it, louder')
      delete answer.headers['content-length']
      delete answer.headers['transfer-encoding']
      response.writeHead(answer.statusCode, answer.headers)
      response.end(body)
    })
  })
  inner.on('error', () => {
    response.statusCode = 502
    response.end()
  })
  request.pipe(inner)
})

const reachable = () => new Promise((resolve) => {
  http.get({ port: innerPort, host: '127.0.0.1', path: '/' }, (answer) => {
    answer.resume()
    resolve(true)
  }).on('error', () => resolve(false))
})
while (!(await reachable())) await new Promise((resolve) => setTimeout(resolve, 50))
proxy.listen(Number(port), '127.0.0.1', () => console.log('serving'))
