"""Does an order cost more when a million are held already, and how bad does it get while Redis
rehashes?

The canonical orders of workload.py, µs of EVALSHA in `INFO commandstats`, without AOF. A hash
doubles when it is full and then moves its entries little by little, with every access. Whether one
does is asked of `DEBUG HTSTATS-KEY`, which then tells of two tables, for the two hashes that grow
with the orders, buyers and orders; a comparison that met a doubling ends in an error.

1. One sale is filled with 1,000,000 orders through reserve.lua in batches of 1,000.
2. In turns: a fresh sale is filled until a table of 1,024 (Valkey: 896) has doubled and settled, at
   1,100 or a few more; it takes 384 orders more in batches of 64; so does the large one. The
   difference is taken in each turn, its median counts.
3. The large sale is filled on until both of its hashes have doubled and settled, in batches of 256
   with a look at commandstats after each. The worst single batch is printed.

    python -m benchmarks scale
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import quantiles
from typing import Final

import hiredis

from benchmarks.plan import Plan
from benchmarks.report import Row
from benchmarks.servers import running
from benchmarks.workload import Wire, check_sale, encode_batches, open_sale
from seckill.embedded import EmbeddedServer
from seckill.keys import shard_keys
from seckill.sale import Sale

__all__ = ["NAME", "run"]

NAME: Final = "scale"
TARGET_MICROS: Final = 2.0
SMALL: Final = 1_088
LARGE: Final = 1_000_000
BATCH: Final = 64
ROUND: Final = 384
FILL: Final = 1_000
WORST_BATCH: Final = 256


def run(plan: Plan) -> Iterator[Row]:
    rounds, held = (2, 20_000) if plan.quick else (30, LARGE)
    for server in plan.servers:
        with running(server, "off") as embedded, plan.runner() as runner, Wire(embedded) as wire:

            def fresh(name: str, embedded: EmbeddedServer = embedded) -> Sale:
                return runner.run(open_sale(embedded.url, "memory", name))

            large_sale = fresh("scale-large")
            for done in range(0, held, FILL * 10):
                plan.say(f"{NAME}: {server.name}, filling: {done:,} of {held:,}")
                wire.reserve(encode_batches(large_sale, FILL * 10, FILL), together=2)
            _settle(wire, large_sale)
            plan.say(f"{NAME}: {server.name}, {SMALL:,} orders against {held:,}")
            small, large = [], []
            for turn in range(rounds):
                small_sale = fresh(f"scale-{turn}")
                wire.reserve(encode_batches(small_sale, SMALL, BATCH))
                _settle(wire, small_sale)
                small.append(_measure(wire, small_sale))
                large.append(_measure(wire, large_sale))
                assert not _rehashes(wire, small_sale), "a hash has doubled in the round"
            assert not _rehashes(wire, large_sale), "a hash has doubled among the rounds"
            name = server.name
            question = f"Redis time of an order at {held:,}, more than at 1,000"
            more = [there - here for there, here in zip(large, small, strict=True)]
            yield Row.of(NAME, name, question, "µs", more, at_most=TARGET_MICROS)
            yield Row.of(NAME, name, "Redis time of an order at 1,000", "µs", small)
            yield Row.of(NAME, name, f"Redis time of an order at {held:,}", "µs", large)
            yield from _rehash(plan, name, wire, large_sale, held + rounds * ROUND)
            yield runner.run(check_sale(NAME, name, embedded.url, "memory", small_sale.id))


def _settle(wire: Wire, sale: Sale) -> None:
    """Goes on until no rehash is under way; at 1,000,000 none is."""
    while _rehashes(wire, sale):
        wire.reserve(encode_batches(sale, BATCH, BATCH))


def _measure(wire: Wire, sale: Sale) -> float:
    """µs an order, of one round."""
    commands = encode_batches(sale, ROUND, BATCH)
    wire.call("CONFIG", "RESETSTAT")
    wire.reserve(commands)
    return wire.micros()["evalsha"] / ROUND


def _rehash(plan: Plan, server: str, wire: Wire, sale: Sale, held: int) -> Iterator[Row]:
    chunk = WORST_BATCH * (4 if plan.quick else 80)
    before: list[int] = []
    during: list[int] = []
    first = held
    while True:
        plan.say(f"{NAME}: {server}, rehash: {held:,} orders, {len(during):,} batches met it")
        took = wire.reserve_timed(encode_batches(sale, chunk, WORST_BATCH))
        rehashes = _rehashes(wire, sale)
        if not during and not rehashes:
            before, first = took, held + chunk
        else:
            during += took
        held += chunk
        if during and not rehashes:  # the last chunk freed the old tables
            break
    size = WORST_BATCH
    for when, batches in (("before", before), ("during", during)):
        title = f"Redis time of an order {when} rehash, batches of {size}"
        if batches:
            yield Row.of(NAME, server, title, "µs", [micros / size for micros in batches])
    worst = max(during)
    at = first + during.index(worst) * size
    cuts = quantiles(during, n=1000, method="inclusive")
    note = (
        f"at {at:,} orders, of {len(during):,} batches from {first:,} to {held:,};"
        f" p99 {cuts[989]:,.0f}, p99.9 {cuts[998]:,.0f} µs"
    )
    title = f"worst single batch of {size} during rehash"
    yield Row.of(NAME, server, title, "µs", [worst], note=note)


def _rehashes(wire: Wire, sale: Sale) -> bool:
    """Whether one of the hashes that grow has two tables just now."""
    _, _, buyers, orders, *_ = shard_keys(sale.id)
    for key in (buyers, orders):
        try:
            stats = wire.call("DEBUG", "HTSTATS-KEY", key)
        except hiredis.ReplyError:
            continue  # too small to be a hash table yet
        if stats.count(b"table size:") > 1:
            return True
    return False
