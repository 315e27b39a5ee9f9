/* Recomputes one buyer's place in a draw, by docs/fair-draw.md. Node 18 or newer, alone:
 *
 *     node check.mjs draw.json tickets.txt BUYER SALT
 */
import { createHash, createHmac } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { pathToFileURL } from 'node:url'

const sha256 = (...parts) => parts.reduce((hash, part) => hash.update(part), createHash('sha256')).digest()

/* The buyer's place (from 1), as [place, tickets]. draw is draw.json as an object, tickets a Buffer
 * of tickets.txt, salt 32 hex digits. Throws an Error where something is wrong. */
export function check(draw, tickets, buyer, salt) {
  const seed = Buffer.from(draw.seed ?? '', 'hex')
  if (sha256('seckill draw 1 seed\n', seed).toString('hex') !== draw.commitment)
    throw new Error('the seed is not the one that was committed to, or not revealed yet')
  if (sha256(draw.definition).toString('hex').slice(0, 16) !== draw.definition_id)
    throw new Error('the definition is not the one the sale was created with')
  const digest = sha256(tickets)
  if (digest.toString('hex') !== draw.digest) throw new Error('the list is not the one that was closed')
  const mix = sha256('seckill draw 1 mix\n', seed, digest, draw.public_value ?? '')
  const [first, ...lines] = tickets.toString().trimEnd().split('\n')
  if (first !== `seckill draw 1 ${draw.sale} ${draw.definition_id}`)
    throw new Error('the list is of another sale')
  if (lines.length !== draw.tickets) throw new Error('the list has another number of tickets')
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
  if (mine === null) throw new Error('this buyer is not in the list, or the salt is another')
  const before = (one) => one.score < mine.score || (one.score === mine.score && one.number < mine.number)
  return [ranked.filter(before).length + 1, ranked.length]
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) {
  const [draw, tickets, buyer, salt] = process.argv.slice(2)
  const record = JSON.parse(readFileSync(draw, 'utf8'))
  console.log('the commitment, as noted when the sale was created:', record.commitment)
  console.log('the digest, as noted when the list was closed:     ', record.digest)
  const [place, count] = check(record, readFileSync(tickets), buyer, salt)
  console.log(`place ${place} of ${count}`)
}
