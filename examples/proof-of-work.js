/*
 * Solves the challenge of a sale: GET /v1/sales/{sale}/challenge.
 *
 * For mini-programs, web pages and Node, without any dependency: copy the file and
 *
 *     const { solve } = require('./proof-of-work.js')
 *     const proof = await solve(challenge, bits)       // the header Seckill-Proof
 *
 * It works in slices of a few milliseconds, so the page stays alive meanwhile. From a shell:
 *
 *     node proof-of-work.js CHALLENGE BITS
 */
'use strict'

/* The constants of FIPS 180-4 are the first 32 bits of the fractions of roots of primes. They are
 * computed here instead of typed: a double holds 53 bits, 3 of which are before the point. */
function fractions(count, root) {
  const words = []
  for (let n = 2; words.length < count; n += 1) {
    let prime = true
    for (let d = 2; d * d <= n; d += 1) if (n % d === 0) prime = false
    if (prime) words.push((Math.pow(n, 1 / root) * 0x100000000) | 0)
  }
  return Int32Array.from(words)
}

const K = fractions(64, 3)
const START = fractions(8, 2)
const W = new Int32Array(64)

/* SHA-256 of one block of 64 bytes, on top of the state of those before it. */
function compress(state, bytes, at) {
  for (let i = 0; i < 16; i += 1) {
    const j = at + 4 * i
    W[i] = (bytes[j] << 24) | (bytes[j + 1] << 16) | (bytes[j + 2] << 8) | bytes[j + 3]
  }
  for (let i = 16; i < 64; i += 1) {
    const x = W[i - 15]
    const y = W[i - 2]
    const s0 = ((x >>> 7) | (x << 25)) ^ ((x >>> 18) | (x << 14)) ^ (x >>> 3)
    const s1 = ((y >>> 17) | (y << 15)) ^ ((y >>> 19) | (y << 13)) ^ (y >>> 10)
    W[i] = (W[i - 16] + s0 + W[i - 7] + s1) | 0
  }
  let [a, b, c, d, e, f, g, h] = state
  for (let i = 0; i < 64; i += 1) {
    const s1 = ((e >>> 6) | (e << 26)) ^ ((e >>> 11) | (e << 21)) ^ ((e >>> 25) | (e << 7))
    const t1 = (h + s1 + ((e & f) ^ (~e & g)) + K[i] + W[i]) | 0
    const s0 = ((a >>> 2) | (a << 30)) ^ ((a >>> 13) | (a << 19)) ^ ((a >>> 22) | (a << 10))
    const t2 = (s0 + ((a & b) ^ (a & c) ^ (b & c))) | 0
    h = g
    g = f
    f = e
    e = (d + t1) | 0
    d = c
    c = b
    b = a
    a = (t1 + t2) | 0
  }
  state[0] += a
  state[1] += b
  state[2] += c
  state[3] += d
  state[4] += e
  state[5] += f
  state[6] += g
  state[7] += h
}

/* Everything in a proof is ASCII. */
function write(bytes, at, text) {
  for (let i = 0; i < text.length; i += 1) bytes[at + i] = text.charCodeAt(i)
  return at + text.length
}

/* A promise of `challenge:suffix`, the whole header. `bits` is 1 to 32, `sliceMs` how long it may
 * compute before it lets others run. */
function solve(challenge, bits, sliceMs = 8) {
  const prefix = challenge + ':'
  // The blocks that never change are hashed once.
  const known = prefix.length - (prefix.length % 64)
  const head = new Uint8Array(known)
  write(head, 0, prefix.slice(0, known))
  const middle = START.slice()
  for (let at = 0; at < known; at += 64) compress(middle, head, at)
  const rest = prefix.slice(known)

  const tail = new Uint8Array(128)
  const state = new Int32Array(8)
  let number = 0

  function found(suffix) {
    let end = write(tail, write(tail, 0, rest), suffix)
    const length = 8 * (known + end)
    tail[end] = 0x80
    end += 1
    const size = end + 8 <= 64 ? 64 : 128
    tail.fill(0, end, size)
    tail[size - 2] = length >>> 8
    tail[size - 1] = length
    state.set(middle)
    for (let at = 0; at < size; at += 64) compress(state, tail, at)
    return state[0] >>> (32 - bits) === 0
  }

  return new Promise((resolve) => {
    function slice() {
      const end = Date.now() + sliceMs
      do {
        for (let i = 0; i < 64; i += 1) {
          const suffix = number.toString(36)
          if (found(suffix)) return resolve(prefix + suffix)
          number += 1
        }
      } while (Date.now() < end)
      setTimeout(slice, 0)
    }
    slice()
  })
}

if (typeof module !== 'undefined') {
  module.exports = { solve }
  if (typeof require !== 'undefined' && require.main === module) {
    const [challenge, bits] = process.argv.slice(2)
    solve(challenge, Number(bits)).then(console.log)
  }
}
