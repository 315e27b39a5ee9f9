"""Losing a sale, and what a rebuild has to bring back of it."""

from __future__ import annotations

from typing import Any

import redis

from seckill.engine import Engine
from seckill.keys import shard_keys
from seckill.ledger import Ledger
from seckill.ledger.rebuild import Rebuilt, rebuild
from tests.ledger.stories import read_known, read_raws, story_sale, tell
from tests.support import async_client, dump

Step = tuple[str, int, int]

# One of everything that can happen to an order, with buyers who have several.
SCRIPT: list[Step] = [
    *[("many", number, number) for number in range(4)],
    *[("reserve", number, number) for number in range(12)],
    *[("begin_payment", number, 0) for number in range(3, 40, 3)],
    *[("confirm", number, 0) for number in range(2, 40, 2)],
    *[("confirm", 2, 0), ("confirm", 4, 0), ("confirm_again", 4, 0), ("confirm_again", 4, 0)],
    *[("refund", 2 * number, number) for number in range(1, 9)],
    *[("add_stock", 0, 1), ("refund", 20, 0), ("pause", 0, 1), ("release", 7, 0)],
    *[("add_stock", 1, 2), ("expire", 0, 0), ("confirm", 9, 0), ("confirm", 13, 0)],
    *[("resume", 0, 0), *6 * [("add_stock", 0, 1)], ("many", 3, 0), ("reserve", 1, 0)],
    *[("begin_payment", -1, 0), ("reserve", 1, 2), ("begin_payment", -1, 0), ("reserve", 2, 0)],
]


async def keep(engine: Engine, ledger: Ledger, sale: str) -> None:
    """What the ledger's runner does."""
    known = await read_known(engine, sale)
    await ledger.know(known)
    await ledger.write([(known, await read_raws(engine, sale))])


async def lose(engine: Engine, sale: str) -> None:
    async with async_client(engine.url) as client:
        await client.delete(*shard_keys(sale))


def picture(client: redis.Redis, sale: str) -> dict[str, Any]:
    """What a rebuild has to bring back. A queue's entries whose orders have moved on are as good as
    gone, and orders of one moment may stand in any order."""
    found = dump(client, sale)
    orders = found["orders"] or {}
    for name, state in (("holds", b"h"), ("paying", b"p")):
        waiting = [order for order in found[name] or () if orders[order][:1] == state]
        deadlines = [int(orders[order].partition(b"|")[0][8:]) for order in waiting]
        assert deadlines == sorted(deadlines)
        found[name] = sorted(waiting)
    stock = {name: units for name, units in found["stock"].items() if not name.endswith(b"lease")}
    keys = {name: wish for name, wish in found["sale"].items() if name.startswith(b"stock:")}
    kept = ("origin_ms", "hold_ms", "pay_ms", "definition", "definition_id", "clock_jump_ms")
    header = {name: found["sale"][name.encode()] for name in kept}
    return found | {"stock": stock, "sale": header, "operations": keys, "events": None}


async def lost_and_rebuilt(
    engine: Engine, ledger: Ledger, client: redis.Redis, steps: list[Step]
) -> tuple[str, dict[str, Any], Rebuilt]:
    sale = story_sale()
    await tell(engine, sale, steps)
    await keep(engine, ledger, sale.id)
    before = picture(client, sale.id)
    await lose(engine, sale.id)
    done = await rebuild(engine, ledger, sale.id)
    return sale.id, before, done
