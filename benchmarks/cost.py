"""What does an accepted order cost Redis, in time and in memory, and what is that made of?

Time: µs of EVALSHA in `INFO commandstats` by accepted order, at batches of 64, 128 and 256, AOF on,
with the canonical orders of workload.py. Those µs are wall time inside the server, so the driver
stays out of its way: batches are encoded before CONFIG RESETSTAT and sent eight at a time. Each
batch size fills a sale of its own, in rounds of equal size that are interleaved; the median of the
rounds counts. The time of the commands that the script calls is in the same statistics, what is
left is Lua. What commandstats leaves out (reading, answering, the AOF) shows in the CPU time of the
whole process.

Memory: used_memory by order at 100,000 held orders, and MEMORY USAGE SAMPLES 0 of each key. Also at
133,000, where a Redis that doubles its tables at 131,072 has both the old and the new ones.

    python -m benchmarks cost
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import Final

from benchmarks.machine import cpu_seconds
from benchmarks.plan import Plan
from benchmarks.report import Row
from benchmarks.servers import Server, running
from benchmarks.workload import Wire, check_sale, encode_batches, inner_micros, open_sale
from seckill.embedded import EmbeddedServer
from seckill.keys import NAMES, shard_keys
from seckill.sale import Sale

__all__ = ["NAME", "run"]

NAME: Final = "cost"
BATCHES: Final = (64, 128, 256)
TARGET_MICROS: Final = 6.5
TARGET_BYTES: Final = 320
HELD: Final = 100_000
DOUBLING: Final = 133_000


def run(plan: Plan) -> Iterator[Row]:
    for server in plan.servers:
        with running(server, "always") as embedded, plan.runner() as runner, Wire(embedded) as wire:
            sales = {}
            for batch in BATCHES:
                sales[batch] = runner.run(open_sale(embedded.url, "aof", f"cost-{batch}"))
            yield from _time(plan, server, embedded, wire, sales)
            sale = sales[BATCHES[-1]].id
            yield runner.run(check_sale(NAME, server.name, embedded.url, "aof", sale))
            wire.call("FLUSHALL", "SYNC")
            full = runner.run(open_sale(embedded.url, "aof", "cost-memory"))
            yield from _memory(plan, server, wire, full)


def _time(
    plan: Plan, server: Server, embedded: EmbeddedServer, wire: Wire, sales: dict[int, Sale]
) -> Iterator[Row]:
    rounds, orders = (1, 512) if plan.quick else (9, 16_384)
    total: dict[int, list[float]] = {batch: [] for batch in sales}
    parts: dict[int, dict[str, list[float]]] = {batch: {} for batch in sales}
    process_s = dict.fromkeys(sales, 0.0)
    for turn in range(rounds):
        for batch, sale in sales.items():
            plan.say(f"{NAME}: {server.name}, batches of {batch}, round {turn + 1} of {rounds}")
            commands = encode_batches(sale, orders, batch)
            wire.call("CONFIG", "RESETSTAT")
            began_s = cpu_seconds(embedded.pid)
            assert wire.reserve(commands) == orders
            process_s[batch] += cpu_seconds(embedded.pid) - began_s
            spent = wire.micros()
            total[batch].append(spent["evalsha"] / orders)
            inner = dict(inner_micros(spent))
            inner["Lua and the rest"] = spent["evalsha"] - sum(inner.values())
            for name, micros in inner.items():
                parts[batch].setdefault(name, []).append(micros / orders)
    for batch, values in total.items():
        question = f"Redis time of an order, batches of {batch}"
        yield Row.of(NAME, server.name, question, "µs", values, at_most=TARGET_MICROS)
        for name, found in sorted(parts[batch].items(), key=lambda part: -median(part[1])):
            if median(found) >= 0.01:
                yield Row.of(NAME, server.name, f"  of which {name}", "µs", found)
        everything = process_s[batch] / rounds / orders * 1e6
        question = f"CPU of the whole server an order, batches of {batch}"
        yield Row.of(NAME, server.name, question, "µs", [everything])


def _memory(plan: Plan, server: Server, wire: Wire, sale: Sale) -> Iterator[Row]:
    held = 2_000 if plan.quick else HELD
    plan.say(f"{NAME}: {server.name}, memory at {held:,} orders")
    before = _used_memory(wire)
    for _ in range(10):
        wire.reserve(encode_batches(sale, held // 10, 200))
    grown = (_used_memory(wire) - before) / held
    question = f"memory of a held order, {held:,} held"
    yield Row.of(NAME, server.name, question, "bytes", [grown], at_most=TARGET_BYTES)
    for name, key in zip(NAMES, shard_keys(sale.id), strict=True):
        size = wire.call("MEMORY", "USAGE", key, "SAMPLES", 0)
        if size and size / held >= 0.5:
            yield Row.of(NAME, server.name, f"  of which {name}", "bytes", [size / held])
    if not plan.quick:
        wire.reserve(encode_batches(sale, DOUBLING - held, 200))
        grown = (_used_memory(wire) - before) / DOUBLING
        question = f"memory of a held order, {DOUBLING:,} held"
        yield Row.of(NAME, server.name, question, "bytes", [grown], note="tables are doubling")


def _used_memory(wire: Wire) -> int:
    text = wire.call("INFO", "memory").decode()
    return int(text.partition("used_memory:")[2].split()[0])
