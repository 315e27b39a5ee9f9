"""Does an order cost more when a million are held already, and how bad does it get while Redis
rehashes?

The canonical orders of workload.py, µs of EVALSHA in `INFO commandstats`, without AOF, batches of
64 for the comparison. A hash doubles when it is full and then moves its entries little by little,
with every access. Whether one does is asked of `DEBUG HTSTATS-KEY`, which then tells two tables,
for the two hashes that grow with the orders: buyers and orders. A round that met it is an error.

1. At 1,000: many sales, each filled until a table of 1,024 (Valkey: 896) has doubled and settled,
   at 1,100 or a few more, then measured for 384 orders. The first only warms the server up.
2. At 1,000,000: one sale, filled through reserve.lua in batches of 1,000, then measured.
3. While it rehashes: the same sale is filled on until both hashes have doubled and settled, in
   batches of 256 whose times are read from the slow log. The worst single batch is printed.

    python -m benchmarks scale
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median, quantiles
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
    rounds, held = (2, 20_000) if plan.quick else (25, LARGE)
    for server in plan.servers:
        with running(server, "off") as embedded, plan.runner() as runner, Wire(embedded) as wire:

            def fresh(name: str, embedded: EmbeddedServer = embedded) -> Sale:
                return runner.run(open_sale(embedded.url, "memory", name))

            plan.say(f"{NAME}: {server.name}, {SMALL:,} orders")
            small = []
            for turn in range(rounds + 1):
                sale = fresh(f"scale-{turn}")
                wire.reserve(encode_batches(sale, SMALL, BATCH))
                _settle(wire, sale)
                small.append(_measure(wire, sale))
            yield runner.run(check_sale(NAME, server.name, embedded.url, "memory", sale.id))
            wire.call("FLUSHALL", "SYNC")
            sale = fresh("scale-large")
            for done in range(0, held, FILL * 10):
                plan.say(f"{NAME}: {server.name}, filling: {done:,} of {held:,}")
                wire.reserve(encode_batches(sale, FILL * 10, FILL), together=2)
            _settle(wire, sale)
            large = [_measure(wire, sale) for _ in range(rounds)]
            name, middle = server.name, median(small[1:])
            question = f"Redis time of an order at {held:,} more than at 1,000"
            more = [value - middle for value in large]
            yield Row.of(NAME, name, question, "µs", more, at_most=TARGET_MICROS)
            yield Row.of(NAME, name, "Redis time of an order at 1,000", "µs", small[1:])
            yield Row.of(NAME, name, f"Redis time of an order at {held:,}", "µs", large)
            yield from _rehash(plan, name, wire, sale, held + rounds * ROUND)


def _settle(wire: Wire, sale: Sale) -> None:
    """Goes on until no rehash is under way; at 1,000,000 none is."""
    while _rehashes(wire, sale):
        wire.reserve(encode_batches(sale, BATCH, BATCH))


def _measure(wire: Wire, sale: Sale) -> float:
    """µs an order, of one round outside rehash."""
    commands = encode_batches(sale, ROUND, BATCH)
    assert not _rehashes(wire, sale), "the round would begin while a hash is rehashed"
    wire.call("CONFIG", "RESETSTAT")
    wire.reserve(commands)
    micros = wire.micros()["evalsha"]
    assert not _rehashes(wire, sale), "a hash has doubled in the middle of the round"
    return micros / ROUND


def _rehash(plan: Plan, server: str, wire: Wire, sale: Sale, held: int) -> Iterator[Row]:
    wire.call("CONFIG", "SET", "slowlog-log-slower-than", 0)
    wire.call("CONFIG", "SET", "slowlog-max-len", 1_000)
    chunk = WORST_BATCH * (4 if plan.quick else 80)
    before: list[int] = []
    during: list[int] = []
    began_at = 0
    while True:
        plan.say(f"{NAME}: {server}, rehash: {held:,} orders, {len(during):,} batches met it")
        commands = encode_batches(sale, chunk, WORST_BATCH)
        wire.call("SLOWLOG", "RESET")
        wire.reserve(commands)
        entries = wire.call("SLOWLOG", "GET", 1_000)
        took = [entry[2] for entry in entries if entry[3][0] == b"EVALSHA"]
        assert len(took) == len(commands)
        held += chunk
        if _rehashes(wire, sale):
            began_at = began_at or held
            during += took
        elif began_at:
            during += took  # the last step, which frees the old table
            break
        else:
            before = took
    wire.call("CONFIG", "SET", "slowlog-log-slower-than", -1)
    note = f"seen from {began_at:,} to {held:,} orders, {len(during):,} batches"
    size = WORST_BATCH
    for question, batches in (("before", before), ("during", during)):
        values = [value / size for value in batches]
        title = f"Redis time of an order {question} rehash, batches of {size}"
        yield Row.of(NAME, server, title, "µs", values or [0.0])
    worst = f"worst single batch of {size} during rehash"
    p99 = quantiles(during, n=100)[98] if len(during) > 1 else during[0]
    yield Row.of(NAME, server, worst, "µs", [max(during)], note=f"p99 {p99:,.0f} µs; {note}")


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
