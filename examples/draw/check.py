"""Recomputes one buyer's place in a draw, by docs/fair-draw.md. Any Python 3.8 or newer, alone:

python3 check.py draw.json tickets.txt BUYER SALT
"""

import hashlib
import hmac
import json
import sys
from pathlib import Path


def check(draw, tickets, buyer, salt):
    """The buyer's place (from 1), as (place, tickets). Raises ValueError where something is wrong.

    draw is draw.json as a dict, tickets the bytes of tickets.txt, salt 32 hex digits.
    """
    seed = bytes.fromhex(draw["seed"] or "")
    if hashlib.sha256(b"seckill draw 1 seed\n" + seed).hexdigest() != draw["commitment"]:
        raise ValueError("the seed is not the one that was committed to, or not revealed yet")
    definition = hashlib.sha256(draw["definition"].encode()).hexdigest()
    if definition[:16] != draw["definition_id"]:
        raise ValueError("the definition is not the one the sale was created with")
    digest = hashlib.sha256(tickets)
    if digest.hexdigest() != draw["digest"]:
        raise ValueError("the list is not the one that was closed")
    public = (draw["public_value"] or "").encode()
    mix = hashlib.sha256(b"seckill draw 1 mix\n" + seed + digest.digest() + public).digest()
    first, *lines = tickets.decode().splitlines()
    if first != "seckill draw 1 {sale} {definition_id}".format(**draw):
        raise ValueError("the list is of another sale")
    if len(lines) != draw["tickets"]:
        raise ValueError("the list has another number of tickets")
    holder = hashlib.sha256(bytes.fromhex(salt) + buyer.encode()).hexdigest()
    ranked, mine = [], None
    for number, weight, name in map(str.split, lines):
        lots = (f"{number} {lot}".encode() for lot in range(int(weight)))
        score = min(hmac.new(mix, lot, hashlib.sha256).digest() for lot in lots)
        ranked.append((score, int(number)))
        mine = ranked[-1] if name == holder else mine
    if mine is None:
        raise ValueError("this buyer is not in the list, or the salt is another")
    return sum(one <= mine for one in ranked), len(ranked)


if __name__ == "__main__":
    draw = json.loads(Path(sys.argv[1]).read_bytes())
    print("the commitment, as noted when the sale was created:", draw["commitment"])
    print("the digest, as noted when the list was closed:     ", draw["digest"])
    place, count = check(draw, Path(sys.argv[2]).read_bytes(), *sys.argv[3:5])
    print(f"place {place} of {count}")
