/* Recomputes one buyer's place in a draw, by docs/fair-draw.md. Node 18 or newer, alone:
 *
 *     node check.mjs draw.json tickets.txt BUYER SALT
 */
import { createHash, createHmac } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { pathToFileURL } from 'node:url'

const sha256 = (...parts) => parts.reduce((hash, part) => hash.update(part), createHash('sha256')).digest()

class Wrong extends Error {}
const need = (right, said) => {
  if (!right) throw new Wrong(said)
}

/* The buyer's place (from 1), as [place, tickets]. draw is draw.json as an object, tickets a Buffer
 * of tickets.txt, salt 32 hex digits. Throws Wrong where something is wrong. */
export function check(draw, tickets, buyer, salt) {
  const seed = Buffer.from(draw.seed, 'hex')
  const commitment = sha256('seckill draw 1 seed\n', seed).toString('hex')
  need(commitment === draw.commitment, 'the seed is not the one that was committed to')
  const ownId = sha256(draw.definition).toString('hex').slice(0, 16)
  need(ownId === draw.definition_id, 'the definition is not the one of the sale')
  const named = JSON.parse(draw.definition).admission.public_value ?? null
  need((named === null) === (draw.public_value === null), 'the definition and the public value do not fit')
  const digest = sha256(tickets)
  need(digest.toString('hex') === draw.digest, 'the list is not the one that was closed')
  const mix = sha256('seckill draw 1 mix\n', seed, digest, draw.public_value ?? '')
  const [first, ...lines] = tickets.toString().trimEnd().split('\n')
  need(first === `seckill draw 1 ${draw.sale} ${draw.definition_id}`, 'the list is of another sale')
  need(lines.length === draw.tickets, 'the list has another number of tickets')
  if (!/^[0-9a-f]{32}$/i.test(salt)) throw new Error(`${salt} is not 32 digits of 0-9 a-f`)
  const holder = sha256(Buffer.from(salt, 'hex'), buyer).toString('hex')
  let mine = null
  const ranked = lines.map((line) => {
    const [number, weight, name] = line.split(' ')
    const lot = (_, i) => createHmac('sha256', mix).update(`${number} ${i}`).digest('hex')
    const score = Array.from({ length: Number(weight) }, lot).sort()[0]
    const entry = { score, number: Number(number) }
    if (name === holder) mine = entry
    return entry
  })
  need(mine, 'this buyer is not in the list, or the salt is another')
  const before = (one) => one.score < mine.score || (one.score === mine.score && one.number < mine.number)
  return [ranked.filter(before).length + 1, ranked.length]
}

/* What is to be said, and the exit code: 0 a place, 1 something is wrong, 2 nobody can tell. */
function main(words) {
  if (words.length !== 4) return ['usage: node check.mjs draw.json tickets.txt BUYER SALT', 2]
  try {
    const [draw, tickets] = [JSON.parse(readFileSync(words[0], 'utf8')), readFileSync(words[1])]
    console.log('the commitment, as noted when the sale was created:', draw.commitment)
    console.log('the digest, as noted when the list was closed:     ', draw.digest)
    if (draw.public_value !== null)
      console.log('the public value, as its source has it:            ', draw.public_value, '(look it up there)')
    if (draw.seed === null) return ['the seed is not revealed yet', 2]
    const [place, count] = check(draw, tickets, words[2], words[3])
    return [`place ${place} of ${count}`, 0]
  } catch (error) {
    return error instanceof Wrong ? [error.message, 1] : [`a file or the salt is of no use: ${error.message}`, 2]
  }
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) {
  const [said, code] = main(process.argv.slice(2))
  code ? console.error(said) : console.log(said)
  process.exitCode = code
}
