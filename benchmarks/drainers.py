"""The processes of the benchmark `drain`: each writes its share of one sale's events and orders.

A process gets ready, says so, waits for the word, writes, tells how many events it wrote, and stays
until it is dismissed, so that what it has cost can be read. The tables are there already.
"""

from __future__ import annotations

import gc
import multiprocessing
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, aclosing, asynccontextmanager, contextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection
from time import perf_counter
from typing import Any, Final

import msgspec

from benchmarks.machine import cpu_seconds
from benchmarks.plan import Plan
from seckill import redis as servers
from seckill.engine import Engine
from seckill.keys import shard_keys, stream_key
from seckill.redis import Durability

__all__ = ["COPY", "INSERTS", "LEDGER", "PROCESSES", "Job", "Team", "redis_client", "team"]

PROCESSES: Final = 2
# Rows of a table in one transaction of the references.
BATCH: Final = 1_000
READ_ENTRIES: Final = 500

LEDGER, INSERTS, COPY = "the ledger", "plain batched inserts", "COPY"

_Rows = list[dict[str, Any]]


class Job(msgspec.Struct, frozen=True):
    """What one team is to do; ``way`` is LEDGER, INSERTS or COPY."""

    way: str
    redis_url: str
    durability: Durability
    database_url: str
    sale: str


class Team:
    """The processes of one job, ready to begin."""

    def __init__(self, pids: Sequence[int], pipes: Sequence[Connection]) -> None:
        self._pids = pids
        self._pipes = pipes

    def cpu_seconds(self) -> float:
        """What they have cost so far."""
        return sum(cpu_seconds(pid) for pid in self._pids)

    def work(self) -> tuple[int, float]:
        """Lets them write; how many events they wrote, and the seconds until the last had."""
        began = perf_counter()
        for pipe in self._pipes:
            pipe.send("go")
        written = sum(pipe.recv() for pipe in self._pipes)
        return written, perf_counter() - began


@contextmanager
def team(job: Job) -> Iterator[Team]:
    """Starts the processes and waits until they are ready; dismisses them in the end."""
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        pids, pipes = [], []
        for part in range(PROCESSES):
            ours, theirs = context.Pipe()
            process = context.Process(target=_run, args=(job, part, theirs), daemon=True)
            process.start()
            # Else the end of a process that failed would not be noticed.
            theirs.close()
            stack.callback(process.join)
            stack.enter_context(ours)
            assert process.pid is not None
            pids.append(process.pid)
            pipes.append(ours)
        for pipe in pipes:
            pipe.recv()
        yield Team(pids, pipes)


@asynccontextmanager
async def redis_client(url: str) -> AsyncIterator[Any]:
    """One plain connection."""
    pool = servers.connect_pool(url, connections=1, timeout_s=None)
    try:
        yield servers.connect_client(pool)
    finally:
        await pool.disconnect()


def _run(job: Job, part: int, pipe: Connection) -> None:
    with Plan(()).runner() as runner:
        runner.run(_WAYS[job.way](job, part, pipe))


async def _drain(job: Job, part: int, pipe: Connection) -> None:
    """One consumer of the ledger, as `seckill ledger run --once` has it."""
    from seckill.ledger import Ledger
    from seckill.ledger.run import LedgerRunner

    async with (
        Engine(job.redis_url, durability=job.durability, sweep_ms=0) as engine,
        aclosing(Ledger(job.database_url)) as ledger,
    ):
        runner = LedgerRunner(engine, ledger, sales=(job.sale,), once=True)

        async def work() -> int:
            written = await runner.run()
            assert written.dead == 0, f"the ledger refused something: {written}"
            assert not written.forked, f"the ledger knows another sale: {written}"
            return written.events

        await _at_the_word(pipe, work)


async def _insert(job: Job, part: int, pipe: Connection) -> None:
    """The same rows through SQLAlchemy Core, a list of rows a statement: the driver's executemany,
    which sends them all before it waits."""
    from sqlalchemy import insert

    from seckill.ledger import Ledger
    from seckill.ledger.tables import EVENTS, ORDERS

    async with aclosing(Ledger(job.database_url)) as ledger:
        batches = await _rows(job, part)

        async def work() -> int:
            async with ledger.engine.connect() as connection:
                for events, orders in batches:
                    async with connection.begin():
                        await connection.execute(insert(EVENTS), events)
                        await connection.execute(insert(ORDERS), orders)
            return sum(len(events) for events, _ in batches)

        await _at_the_word(pipe, work)


async def _copy(job: Job, part: int, pipe: Connection) -> None:
    """The same rows by PostgreSQL's COPY, which could not leave out what is there already."""
    from seckill.ledger import Ledger
    from seckill.ledger.tables import EVENTS, ORDERS

    async with aclosing(Ledger(job.database_url)) as ledger:
        batches = [
            (_records(events), _records(orders)) for events, orders in await _rows(job, part)
        ]
        tables = [(table.name, [column.name for column in table.c]) for table in (EVENTS, ORDERS)]

        async def work() -> int:
            async with ledger.engine.connect() as connection:
                driver: Any = (await connection.get_raw_connection()).driver_connection
                for batch in batches:
                    async with driver.transaction():
                        for (table, columns), records in zip(tables, batch, strict=True):
                            await driver.copy_records_to_table(
                                table, records=records, columns=columns
                            )
            return sum(len(events) for events, _ in batches)

        await _at_the_word(pipe, work)


_WAYS: Final = {LEDGER: _drain, INSERTS: _insert, COPY: _copy}


async def _at_the_word(pipe: Connection, work: Callable[[], Awaitable[int]]) -> None:
    """Waits without the loop, which has nothing else to do."""
    # What was made beforehand is not to be looked through again and again while the clock runs.
    gc.collect()
    gc.freeze()
    pipe.send("ready")
    pipe.recv()
    pipe.send(await work())
    # Until the other end is closed.
    with suppress(EOFError):
        pipe.recv()


async def _rows(job: Job, part: int) -> list[tuple[_Rows, _Rows]]:
    """The rows of the ledger's two tables that this process is to write, in batches that the
    processes take in turns."""
    from seckill.ledger.rows import event_row, newest_orders

    async with redis_client(job.redis_url) as client:
        known, raws = await _read(client, job.sale)
    mine = range(part * BATCH, len(raws), BATCH * PROCESSES)
    batches = [raws[first : first + BATCH] for first in mine]
    return [
        ([event_row(job.sale, raw) for raw in batch], newest_orders(known, batch))
        for batch in batches
    ]


async def _read(client: Any, name: str) -> tuple[Any, list[Any]]:
    """The sale as the ledger knows it, and all its events as they stand in the stream."""
    from seckill.ledger.rows import Known, raw_of
    from seckill.sale import Sale

    definition, origin_ms, made = await client.hmget(
        shard_keys(name)[0], "definition", "origin_ms", "made"
    )
    raws, first = [], "-"
    read = partial(client.execute_command, "XRANGE", stream_key(name))
    while entries := await read(first, "+", "COUNT", READ_ENTRIES):
        for entry_id, fields in entries:
            raws += raw_of(entry_id, fields)
        first = f"({entries[-1][0].decode()}"
    return Known(Sale.from_definition(definition), int(origin_ms), made.decode()), raws


def _records(rows: _Rows) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for row in rows]
