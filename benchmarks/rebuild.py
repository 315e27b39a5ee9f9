"""How fast does a sale come back from the ledger when Redis has lost it?

Workload: 200,000 held orders of one sale, 24-character buyer ids, 20 bytes of attrs, made through a
lane on an embedded server with appendfsync always, and kept in SQLite and in a private PostgreSQL
by LedgerRunner. Then, in rounds that are interleaved, Redis is wiped (FLUSHALL) and the sale is
rebuilt: fenced, its orders read, stock, purses and queues worked out, loaded in parts of 1,000
orders, and put in place. The clock stops when the sale could be resumed. The target counts for both
databases. A round's CPU time of all that took part, Redis, database and the rebuild itself, tells
what a machine would need that has nothing else to do. In the end `verify` proves the sale, with the
events of the ledger and of the new stream. Needs the extras ledger and postgresql and PostgreSQL's
server binaries; says so where they are missing.

    python -m benchmarks rebuild
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from typing import Final

import msgspec

from benchmarks.drain import _databases, _wish
from benchmarks.machine import cpu_seconds, family_seconds
from benchmarks.plan import Plan
from benchmarks.report import Row, Verdict
from benchmarks.servers import Server, directory, durability_of, running
from benchmarks.workload import buyer_ids, open_sale
from seckill.embedded import EmbeddedServer
from seckill.engine import Engine

__all__ = ["NAME", "run"]

NAME: Final = "rebuild"
TARGET: Final = 50_000
FSYNC: Final = "always"
FILL: Final = 1_000
PARTS: Final = ("the rebuild itself", "Redis", "the database")


class _Book(msgspec.Struct):
    """A ledger that has the sale, and what its rebuilds took. ``pid``: of the database's server."""

    name: str
    url: str
    pid: int | None
    took_s: list[float] = []
    cpu_s: list[tuple[float, float, float]] = []


def run(plan: Plan) -> Iterator[Row]:
    # Each wipe is told as the error that it would be.
    logging.getLogger("seckill.ledger").setLevel(logging.CRITICAL)
    with ExitStack() as stack:
        databases = _databases(stack)
        postgres = databases.get("PostgreSQL")
        for server in plan.servers:
            if postgres is None or isinstance(postgres, str):
                question = "rebuilt from PostgreSQL"
                yield Row.fact(
                    NAME, server.name, question, Verdict.INFO, "–", postgres or "skipped"
                )
                return
            folder = stack.enter_context(TemporaryDirectory(prefix="seckill-", dir=directory()))
            with running(server, FSYNC) as embedded, plan.runner() as runner:

                async def measure(
                    server: Server = server,
                    embedded: EmbeddedServer = embedded,
                    folder: str = folder,
                ) -> list[Row]:
                    async with postgres.database() as url:
                        file = f"sqlite:///{Path(folder) / 'ledger.db'}"
                        books = [_Book("SQLite", file, None)]
                        books.append(_Book("PostgreSQL", url, postgres.pid))
                        return await _measure(plan, server, embedded, books)

                yield from runner.run(measure())


async def _measure(
    plan: Plan, server: Server, embedded: EmbeddedServer, books: list[_Book]
) -> list[Row]:
    from seckill.ledger import Ledger

    label = f"{server.name}, fsync {FSYNC}"
    orders, rounds = (2_000, 1) if plan.quick else (200_000, 5)
    durability = durability_of(FSYNC)
    sale = await open_sale(embedded.url, durability, NAME)
    async with Engine(embedded.url, durability=durability, sweep_ms=0, timeout_ms=60_000) as engine:
        for done in range(0, orders, FILL):
            plan.say(f"{NAME}: {label}, {done:,} of {orders:,} orders made")
            answers = await engine.reserve_many(sale.id, [_wish(b) for b in buyer_ids(FILL)])
            assert all(getattr(answer, "ok", False) for answer in answers)
        for book in books:
            plan.say(f"{NAME}: {label}, {book.name} is being filled")
            async with Ledger(book.url) as ledger:
                await _keep(engine, ledger, sale.id)
        for turn in range(rounds):
            for book in books:
                plan.say(f"{NAME}: {label}, {book.name}, round {turn + 1} of {rounds}")
                async with Ledger(book.url) as ledger:
                    await _lose_and_rebuild(engine, ledger, embedded, book, orders)
        async with Ledger(books[-1].url) as ledger:
            proof = await _proof(label, engine, ledger, sale.id)
    return [*_rows(label, books, orders), proof]


async def _keep(engine: Engine, ledger: object, sale: str) -> None:
    """All of the sale into one ledger, whoever else has read it."""
    from seckill.keys import stream_key
    from seckill.ledger import Ledger
    from seckill.ledger.mark import adopt
    from seckill.ledger.run import LedgerRunner

    assert isinstance(ledger, Ledger)
    await adopt(engine, ledger)
    await engine._calls.client_of("sk:sales").xgroup_destroy(stream_key(sale), "ledger")
    await LedgerRunner(engine, ledger, sales=[sale], once=True).run()


async def _lose_and_rebuild(
    engine: Engine, ledger: object, embedded: EmbeddedServer, book: _Book, orders: int
) -> None:
    from seckill.ledger import Ledger
    from seckill.ledger.rebuild import rebuild

    assert isinstance(ledger, Ledger)
    await engine._calls.client_of("sk:sales").execute_command("FLUSHALL", "SYNC")
    before = _cpu(embedded, book)
    began_s = perf_counter()
    done = await rebuild(engine, ledger, NAME)
    book.took_s.append(perf_counter() - began_s)
    spent = [after - b for after, b in zip(_cpu(embedded, book), before, strict=True)]
    book.cpu_s.append((spent[0], spent[1], spent[2]))
    assert done.done, done
    assert done.orders == orders, done
    await asyncio.sleep(0)


def _cpu(embedded: EmbeddedServer, book: _Book) -> tuple[float, float, float]:
    """As in PARTS. SQLite is a part of this process."""
    database = family_seconds(book.pid) if book.pid else 0.0
    return process_time(), cpu_seconds(embedded.pid), database


async def _proof(label: str, engine: Engine, ledger: object, sale: str) -> Row:
    from seckill.ledger import Ledger
    from seckill.verify import verify

    assert isinstance(ledger, Ledger)
    verdict = await verify(engine, sale, ledger=ledger)
    note = f"{verdict.events:,} events, {verdict.orders:,} orders"
    kept = Verdict.MET if verdict.ok else Verdict.MISSED
    if verdict.violations:
        note += f"; {verdict.violations[0].text}"
    return Row.fact(NAME, label, "verify", kept, "no violation", note)


def _rows(label: str, books: list[_Book], orders: int) -> Iterator[Row]:
    for book in books:
        rates = [orders / took_s for took_s in book.took_s]
        question = f"rebuilt from {book.name}, {orders:,} held orders"
        yield Row.of(NAME, label, question, "orders/s", rates, at_least=TARGET)
        for index, name in enumerate(PARTS):
            values = [spent[index] / orders * 10_000 for spent in book.cpu_s]
            if any(values):
                question = f"CPU of {name}, from {book.name}"
                yield Row.of(NAME, label, question, "s/10k orders", values)
