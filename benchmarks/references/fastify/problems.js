// Refusals: RFC 9457 problem documents with the codes of the intake, each encoded once.

export class Refused extends Error {
  constructor(code) {
    super(code)
    this.code = code
  }
}

// What is refused is answered, not debugged.
Error.stackTraceLimit = 0

export function refuse(code) {
  throw new Refused(code)
}

const encoded = new Map()

export function problemOf(start, code) {
  let found = encoded.get(code)
  if (found === undefined) {
    const { http, title } = start.problems[code]
    const type = `urn:seckill:problem:${code}`
    found = { http, body: JSON.stringify({ type, title, status: http, code }) }
    encoded.set(code, found)
  }
  return found
}
