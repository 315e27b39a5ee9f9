// User tokens: JWT, HS256. One that was verified is remembered, by the whole header.

import { createHmac, timingSafeEqual } from 'node:crypto'
import { refuse } from './problems.js'

const REMEMBERED_MAX = 50_000
const CHARS_MAX = 4_096
const LEEWAY_S = 10
const AHEAD_MAX_S = 10 * 365 * 86_400
const OPAQUE = /^[!-+\--{}~]{1,64}$/
const TOKEN = /^Bearer ([\w-]+)\.([\w-]+)\.([\w-]+)$/i

export class BuyerTokens {
  #secret
  // Two generations: memory is bounded without a list of who came last.
  #young = new Map()
  #old = new Map()

  constructor(secret) {
    this.#secret = secret
  }

  buyerOf(header) {
    if (header === undefined) refuse('unauthenticated')
    let known = this.#young.get(header)
    if (known === undefined) {
      known = this.#old.get(header) ?? this.#verified(header)
      if (this.#young.size >= REMEMBERED_MAX) {
        this.#old = this.#young
        this.#young = new Map()
      }
      this.#young.set(header, known)
    }
    if (Date.now() >= known.untilMs) refuse('token_expired')
    return known.buyer
  }

  #verified(authorization) {
    const parts = authorization.length <= CHARS_MAX && TOKEN.exec(authorization)
    if (!parts) refuse('unauthenticated')
    const [, head, payload, signature] = parts
    const { alg, crit } = decoded(head)
    if (alg !== 'HS256' || crit !== undefined) refuse('unauthenticated')
    const expected = createHmac('sha256', this.#secret).update(`${head}.${payload}`).digest()
    const given = Buffer.from(signature, 'base64url')
    if (given.length !== expected.length || !timingSafeEqual(given, expected)) {
      refuse('unauthenticated')
    }
    return checked(decoded(payload))
  }
}

function checked({ sub, exp, nbf, aud }) {
  const nowS = Date.now() / 1000
  if (typeof exp !== 'number' || exp > nowS + AHEAD_MAX_S) refuse('unauthenticated')
  if (nowS >= exp + LEEWAY_S) refuse('token_expired')
  if (nbf !== undefined && !(typeof nbf === 'number' && nbf <= nowS + LEEWAY_S)) {
    refuse('unauthenticated')
  }
  if (aud !== undefined) refuse('unauthenticated')
  const buyer = typeof sub === 'number' ? String(sub) : sub
  if (typeof buyer !== 'string' || !OPAQUE.test(buyer)) refuse('unauthenticated')
  return { buyer, untilMs: (exp + LEEWAY_S) * 1000 }
}

function decoded(part) {
  try {
    const found = JSON.parse(Buffer.from(part, 'base64url').toString())
    if (found !== null && typeof found === 'object') return found
  } catch {
    // It is no JSON.
  }
  return refuse('unauthenticated')
}
