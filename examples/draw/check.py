"""Recomputes one buyer's place in a draw, by docs/fair-draw.md. Any Python 3.8 or newer, alone:

python3 check.py draw.json tickets.txt BUYER SALT
"""

import hashlib
import hmac
import json
import sys
from pathlib import Path


class Wrong(ValueError):
    """Something does not fit: this is not the draw that was announced."""


def need(right, said):
    if not right:
        raise Wrong(said)


def check(draw, tickets, buyer, salt):
    """The buyer's place (from 1), as (place, tickets). Raises Wrong where something is wrong.

    draw is draw.json as a dict, tickets the bytes of tickets.txt, salt 32 hex digits.
    """
    seed = bytes.fromhex(draw["seed"])
    commitment = hashlib.sha256(b"seckill draw 1 seed\n" + seed).hexdigest()
    need(commitment == draw["commitment"], "the seed is not the one that was committed to")
    own_id = hashlib.sha256(draw["definition"].encode()).hexdigest()[:16]
    need(own_id == draw["definition_id"], "the definition is not the one of the sale")
    named = json.loads(draw["definition"])["admission"].get("public_value")
    need(
        (named is None) == (draw["public_value"] is None),
        "the definition and the public value do not fit",
    )
    digest = hashlib.sha256(tickets)
    need(digest.hexdigest() == draw["digest"], "the list is not the one that was closed")
    public = (draw["public_value"] or "").encode()
    mix = hashlib.sha256(b"seckill draw 1 mix\n" + seed + digest.digest() + public).digest()
    first, *lines = tickets.decode().splitlines()
    head = "seckill draw 1 {sale} {definition_id}".format(**draw)
    need(first == head, "the list is of another sale")
    need(len(lines) == draw["tickets"], "the list has another number of tickets")
    holder = hashlib.sha256(bytes.fromhex(salt) + buyer.encode()).hexdigest()
    ranked, mine = [], None
    for number, weight, name in map(str.split, lines):
        lots = (f"{number} {lot}".encode() for lot in range(int(weight)))
        score = min(hmac.new(mix, lot, hashlib.sha256).digest() for lot in lots)
        ranked.append((score, int(number)))
        mine = ranked[-1] if name == holder else mine
    need(mine is not None, "this buyer is not in the list, or the salt is another")
    return sum(one <= mine for one in ranked), len(ranked)


def main(words):
    """What is to be said, and the exit code: 0 a place, 1 something is wrong, 2 nobody can tell."""
    if len(words) != 4:
        return "usage: python3 check.py draw.json tickets.txt BUYER SALT", 2
    try:
        draw, tickets = json.loads(Path(words[0]).read_bytes()), Path(words[1]).read_bytes()
        public = draw["public_value"]
        print("the commitment, as noted when the sale was created:", draw["commitment"])
        print("the digest, as noted when the list was closed:     ", draw["digest"])
        if public is not None:
            print(
                "the public value, as its source has it:            ", public, "(look it up there)"
            )
        if draw["seed"] is None:
            return "the seed is not revealed yet", 2
        return "place {} of {}".format(*check(draw, tickets, *words[2:])), 0
    except Wrong as error:
        return f"{error}", 1
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        return f"a file or the salt is of no use: {error}", 2


if __name__ == "__main__":
    said, code = main(sys.argv[1:])
    print(said, file=sys.stderr if code else sys.stdout)
    sys.exit(code)
