"""How many bytes does an order leave behind: in Redis, on its disk, in the ledger, on the wire?

For `seckill plan`, which reckons memory, disk and network from these rows, and the cores that
payments take. Bytes are not timed, so two runs on any machine agree closely on them; the versions
of the servers decide.

Workload: canonical orders of workload.py, without attrs, whose bytes come on top, on an embedded
server with appendfsync always.

orders   10,000, made by Engine.reserve_many, begun to be paid and confirmed one by one: three
         events each. The AOF (INFO persistence) has grown by what a held and by what a paid order
         writes; memory is what used_memory has grown by, without the buffers of clients and of the
         AOF. The ledger drains them all into SQLite, and its file is weighed. Skipped without the
         extra
intake   one worker with its default settings and 4,096 open connections, on which 20,000 buyers
         with a user token each (JWT, HS256) order once, 512 at a time. Requests and answers are
         counted as they are on the wire, and Redis says what it sent; memory is the most that was
         ever resident in the worker, from /proc
payments the same intake: in five rounds 1,000 of these orders each are begun to be paid, by buyers
         whose token the worker has not seen (they come back later, and maybe to another worker),
         and then confirmed with the backend's key; 64 connections, which are open before the clock
         starts. The CPU time of the worker, from /proc, by request

Both sales are verified; if one has broken a promise, no figure is given.

    python -m benchmarks footprint
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import msgspec

from benchmarks.footprint_http import Wired, order_all
from benchmarks.plan import Plan
from benchmarks.queue_workload import used_memory
from benchmarks.report import Row, Verdict
from benchmarks.servers import directory, durability_of, running
from benchmarks.workload import CART, KEY, Wire, buyer_ids, check_sale, open_sale
from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.order import Outcome, Wish
from seckill.status import Status

__all__ = ["NAME", "run"]

NAME: Final = "footprint"
FSYNC: Final = "always"
PAID: Final = 10_000
BUYERS: Final = 20_000
FEW: Final = 600
FILL: Final = 1_000
TOGETHER: Final = 256
EVENTS: Final = 3
HELD_SALE, WEB_SALE = "footprint", "footprint-http"


class _Paid(msgspec.Struct, frozen=True):
    """Bytes that an order has come to. ``ledger`` is None without the extra; ``why`` says so."""

    aof_held: float
    aof_paid: float
    memory: float
    ledger: float | None
    why: str


def run(plan: Plan) -> Iterator[Row]:
    orders, buyers = (FEW, FEW) if plan.quick else (PAID, BUYERS)
    for server in plan.servers:
        label = f"{server.name}, fsync {FSYNC}"
        with running(server, FSYNC) as embedded:
            plan.say(f"{NAME}: {label}, {orders:,} orders are paid")
            with plan.runner() as runner:
                paid = runner.run(_pay_all(embedded, orders))
            plan.say(f"{NAME}: {label}, {buyers:,} orders over HTTP")
            wired = order_all(plan, embedded, WEB_SALE, buyers)
            with plan.runner() as runner:
                verdicts = runner.run(_verify(label, embedded))
        broken = [row for row in verdicts if row.verdict is not Verdict.MET]
        if not broken:
            yield from _rows(label, orders, paid)
            yield from _wire_rows(label, wired)
        yield from broken or verdicts


async def _pay_all(embedded: EmbeddedServer, orders: int) -> _Paid:
    durability = durability_of(FSYNC)
    await open_sale(embedded.url, durability, HELD_SALE)
    async with Engine(embedded.url, durability=durability, sweep_ms=0) as engine:
        # Connections and scripts are there before anything is weighed.
        await _hold(engine, TOGETHER)
        with Wire(embedded) as wire:
            aof, memory = _aof_bytes(wire), used_memory(wire)
            held = await _hold(engine, orders)
            aof_held = _aof_bytes(wire) - aof
            await _pay(engine, held)
            aof_paid, memory = _aof_bytes(wire) - aof, used_memory(wire) - memory
        ledger, why = await _keep(engine, TOGETHER + EVENTS * orders)
    # Those that came before stand in the ledger as well, but were never paid.
    return _Paid(
        aof_held / orders,
        aof_paid / orders,
        memory / orders,
        ledger / orders if ledger else None,
        why,
    )


async def _hold(engine: Engine, count: int) -> list[str]:
    """New orders, and their ids."""
    ids = []
    buyers = buyer_ids(count)
    for first in range(0, count, FILL):
        wishes = [Wish(buyer, KEY, CART) for buyer in buyers[first : first + FILL]]
        for answer in await engine.reserve_many(HELD_SALE, wishes):
            assert isinstance(answer, Outcome), answer
            assert answer.order is not None, answer
            ids.append(answer.order.id)
    return ids


async def _pay(engine: Engine, orders: Sequence[str]) -> None:
    """Pays them all."""
    todo = iter(orders)

    async def pay() -> None:
        for order in todo:
            begun = await engine.begin_payment(HELD_SALE, order)
            assert begun.status is Status.DONE, begun
            paid = await engine.confirm(HELD_SALE, order, f"pay-{order}")
            assert paid.status is Status.DONE, paid

    await asyncio.gather(*(pay() for _ in range(TOGETHER)))


def _aof_bytes(wire: Wire) -> int:
    text: str = wire.call("INFO", "persistence").decode()
    return int(text.partition("aof_current_size:")[2].split()[0])


async def _keep(engine: Engine, events: int) -> tuple[int | None, str]:
    """How large SQLite's file is with all of the sale in it; or None, and why."""
    try:
        from seckill.ledger import Ledger
        from seckill.ledger.run import LedgerRunner

        with TemporaryDirectory(prefix="seckill-bench-", dir=directory()) as folder:
            async with Ledger(f"sqlite:///{folder}/ledger.db") as ledger:
                runner = LedgerRunner(engine, ledger, sales=(HELD_SALE,), once=True)
                written = await runner.run()
                assert written.dead == 0, written
                assert written.events >= events, written
            return _size(folder), ""
    except ImportError as error:
        return None, f"skipped: {error}"


def _size(folder: str) -> int:
    return sum(file.stat().st_size for file in Path(folder).iterdir())


async def _verify(label: str, embedded: EmbeddedServer) -> list[Row]:
    durability = durability_of(FSYNC)
    return [
        await check_sale(NAME, label, embedded.url, durability, sale)
        for sale in (HELD_SALE, WEB_SALE)
    ]


def _rows(label: str, orders: int, paid: _Paid) -> Iterator[Row]:
    note = f"{orders:,} paid, {EVENTS} events each"
    for question, value in (
        ("memory of a paid order", paid.memory),
        ("AOF of a held order", paid.aof_held),
        ("AOF of a paid order", paid.aof_paid),
        ("ledger of a paid order, SQLite", paid.ledger),
    ):
        if value is None:
            yield Row.fact(NAME, label, question, Verdict.INFO, "–", paid.why)
        else:
            yield Row.of(NAME, label, question, "bytes", [value], note=note)


def _wire_rows(label: str, wired: Wired) -> Iterator[Row]:
    note = "on average, head and body, no TLS"
    for question, value in (
        ("request of an order", wired.sent),
        ("answer to an order", wired.received),
    ):
        yield Row.of(NAME, label, question, "bytes", [value], note=note)
    yield Row.of(NAME, label, "sent by Redis for an order", "bytes", [wired.redis_out])
    note = f"{wired.orders:,} buyers, {wired.connections:,} connections"
    yield Row.of(NAME, label, "memory of a worker", "bytes", [wired.worker_bytes], note=note)
    values = [10_000 * spent_s for spent_s in wired.payment_s]
    note = "one to begin it with a new user token, one to confirm it"
    question = "CPU of a payment's request, intake"
    yield Row.of(NAME, label, question, "s/10k requests", values, note=note)
