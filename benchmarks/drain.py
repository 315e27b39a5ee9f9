"""How fast do accepted orders reach PostgreSQL, next to plain inserts of the same rows?

Workload: 200,000 held orders of one sale, 24-character buyer ids, 20 bytes of attrs, made through a
lane on an embedded server with appendfsync always. Two consumer processes (LedgerRunner, each with
its own engine and ledger) drain the sale's stream into a private PostgreSQL with fsync on, each
into a new database: reading, decoding, writing, acknowledging. In turns with them, to and fro, with
the same driver, the same tables and the same indexes, and with rows that were made beforehand:

plain batched inserts   two processes, SQLAlchemy's insert() with 1,000 rows of seckill_events and
                        1,000 of seckill_orders a transaction, which asyncpg sends in one go: the
                        target counts against these
COPY                    the same by COPY, which nothing that must bear redelivery can use as it is

A round is one such drain each; ratios are taken within a round, their median counts. Every drain
ends with a count: events in the stream = rows of seckill_events, orders in Redis = rows of
seckill_orders, nothing left unacknowledged; one that differs ends the benchmark without a figure.
SQLite and MariaDB drain 20,000 orders each, for information. Needs the extras ledger and
postgresql and PostgreSQL's server binaries; says so where they are missing.

    python -m benchmarks drain

Where the time of a consumer goes: while it runs, in another shell,

    py-spy record -d 60 -r 500 -f speedscope -o drain.speedscope.json --pid <a spawned process>
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

import msgspec

from benchmarks.drainers import COPY, INSERTS, LEDGER, PROCESSES, Job, redis_client, team
from benchmarks.machine import cpu_seconds, family_seconds
from benchmarks.plan import Plan
from benchmarks.report import RATIO, Row, Verdict
from benchmarks.servers import Server, directory, durability_of, running
from benchmarks.workload import CART, KEY, buyer_ids, check_sale, open_sale
from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.keys import LEDGER_MARK, shard_keys, stream_key
from seckill.order import Outcome, Wish

if TYPE_CHECKING:
    from tests.databases import DatabaseServer

__all__ = ["NAME", "run"]

NAME: Final = "drain"
TARGET: Final = 0.5
GOAL: Final = 10_000
FSYNC: Final = "always"
FILL: Final = 1_000
GROUP: Final = "ledger"

POSTGRES, MARIADB, SQLITE = "PostgreSQL", "MariaDB", "SQLite"
_WAYS: Final = (LEDGER, INSERTS, COPY)


class _Sale(msgspec.Struct, frozen=True):
    """A sale that was filled: its name, its orders and its events."""

    name: str
    orders: int
    events: int


class _Drain(msgspec.Struct, frozen=True):
    """What one team has done in one round."""

    orders: int
    took_s: float
    team_cpu_s: float
    database_cpu_s: float
    redis_cpu_s: float

    @property
    def rate(self) -> float:
        return self.orders / self.took_s


class _Test:
    """One server with its sales, and the databases that they are drained into."""

    def __init__(self, plan: Plan, embedded: EmbeddedServer, label: str) -> None:
        self.plan = plan
        self.embedded = embedded
        self.label = label
        self.durability = durability_of(FSYNC)

    async def fill(self, name: str, orders: int) -> _Sale:
        """A sale with so many held orders."""
        await open_sale(self.embedded.url, self.durability, name)
        async with Engine(self.embedded.url, durability=self.durability, sweep_ms=0) as engine:
            for done in range(0, orders, FILL):
                self.plan.say(f"{NAME}: {self.label}, {done:,} of {orders:,} orders made")
                wishes = [_wish(buyer) for buyer in buyer_ids(FILL)]
                for answer in await engine.reserve_many(name, wishes):
                    assert isinstance(answer, Outcome), answer
                    assert answer.ok, answer
        async with redis_client(self.embedded.url) as client:
            seq = int(await client.hget(shard_keys(name)[0], "seq"))
            accepted = int(await client.hlen(shard_keys(name)[3]))
        assert accepted == orders, f"{accepted} orders in Redis, {orders} were made"
        return _Sale(name, orders, seq)

    async def drain(self, way: str, sale: _Sale, url: str, pid: int | None) -> _Drain:
        """Lets one team write the sale into an empty database, and counts what is there. ``pid``
        is the database server's, if it is a process."""
        from seckill.ledger import Ledger

        # Makes the tables, too: neither team is to wait for the other with that.
        async with Ledger(url) as ledger:
            await self._forget_group(sale)
            job = Job(way, self.embedded.url, self.durability, url, sale.name)
            with team(job) as workers:
                before = self._cpu_seconds(pid)
                team_s = workers.cpu_seconds()
                written, took_s = workers.work()
                team_s = workers.cpu_seconds() - team_s
                spent = [b - a for a, b in zip(before, self._cpu_seconds(pid), strict=True)]
            found = await ledger.counts(sale.name)
        assert written == sale.events, f"{way}: {written} of {sale.events} events were written"
        assert found == (sale.events, sale.orders), f"{way}: {found} rows for {sale}"
        if way == LEDGER:
            await self._check_group(sale)
        return _Drain(sale.orders, took_s, team_s, *spent)

    def _cpu_seconds(self, database: int | None) -> tuple[float, float]:
        """The database's, with all its processes, and Redis'."""
        return family_seconds(database) if database else 0.0, cpu_seconds(self.embedded.pid)

    async def _forget_group(self, sale: _Sale) -> None:
        async with redis_client(self.embedded.url) as client:
            await client.xgroup_destroy(stream_key(sale.name), GROUP)
            await client.delete(LEDGER_MARK)

    async def _check_group(self, sale: _Sale) -> None:
        async with redis_client(self.embedded.url) as client:
            groups = await client.xinfo_groups(stream_key(sale.name))
            last: Any = await client.execute_command(
                "XREVRANGE", stream_key(sale.name), "+", "-", "COUNT", 1
            )
        place = [
            (one["pending"], one["last-delivered-id"])
            for one in groups
            if one["name"] == GROUP.encode()
        ]
        assert place == [(0, last[0][0])], f"the group stands at {place}"


def _wish(buyer: str) -> Wish:
    return Wish(buyer, KEY, CART, attrs=f"room=1;share={buyer[:7]}")


def run(plan: Plan) -> Iterator[Row]:
    with ExitStack() as stack:
        databases = _databases(stack)
        postgres = databases.get(POSTGRES)
        if isinstance(postgres, str):
            for server in plan.servers:
                yield _skipped(server.name, POSTGRES, postgres)
            return
        for server in plan.servers:
            with running(server, FSYNC) as embedded, plan.runner() as runner:
                yield from runner.run(_compare(plan, server, embedded, databases))


_Databases = dict[str, "DatabaseServer | str"]


def _databases(stack: ExitStack) -> _Databases:
    """The database servers of this machine, started; or why one is not there."""
    try:
        import asyncmy  # type: ignore[import-untyped]  # noqa: F401
        import asyncpg  # type: ignore[import-untyped]  # noqa: F401
        import pytest

        from seckill.ledger import Ledger  # noqa: F401
        from tests.databases import MariadbServer, PostgresServer
    except ImportError as error:
        return {POSTGRES: f"skipped: {error}"}
    found: _Databases = {}
    for name, kind in ((POSTGRES, PostgresServer), (MARIADB, MariadbServer)):
        try:
            found[name] = stack.enter_context(kind())
        except pytest.skip.Exception as missing:
            found[name] = f"skipped: {missing}"
    return found


async def _compare(
    plan: Plan, server: Server, embedded: EmbeddedServer, databases: _Databases
) -> list[Row]:
    label = f"{server.name}, fsync {FSYNC}"
    test = _Test(plan, embedded, label)
    orders, few = (2_000, 1_000) if plan.quick else (200_000, 20_000)
    rounds = 1 if plan.quick else 5
    large, small = await test.fill("drain", orders), await test.fill("drain-few", few)
    if not plan.quick:
        await _round(test, small, databases, "warming up", 0)
    found: dict[str, list[_Drain]] = {way: [] for way in _WAYS}
    for turn in range(rounds):
        said = f"round {turn + 1} of {rounds}"
        for way, drained in (await _round(test, large, databases, said, turn)).items():
            found[way].append(drained)
    rows = list(_rows(label, found))
    for name in (MARIADB, SQLITE):
        plan.say(f"{NAME}: {label}, {name}")
        rows += await _elsewhere(test, small, databases, name, 1 if plan.quick else 3)
    verdict = await check_sale(NAME, label, embedded.url, test.durability, large.name)
    return [*rows, verdict] if verdict.verdict is Verdict.MET else [verdict]


async def _round(
    test: _Test, sale: _Sale, databases: _Databases, said: str, turn: int
) -> dict[str, _Drain]:
    postgres, found = databases[POSTGRES], {}
    assert not isinstance(postgres, str)
    # To and fro, so that none always runs right after the same other one.
    for way in _WAYS[:: -1 if turn % 2 else 1]:
        test.plan.say(f"{NAME}: {test.label}, {said}, {way}")
        async with postgres.database() as url:
            await _checkpoint(url)
            found[way] = await test.drain(way, sale, url, postgres.pid)
    return found


async def _elsewhere(
    test: _Test, sale: _Sale, databases: _Databases, name: str, rounds: int
) -> list[Row]:
    """The ledger alone, on another database."""
    database = databases.get(name)
    if isinstance(database, str):
        return [_skipped(test.label, name, database)]
    found = []
    for _ in range(rounds):
        async with _empty(database) as (url, pid):
            found.append(await test.drain(LEDGER, sale, url, pid))
    rates = [drained.rate for drained in found]
    question = f"drained into {name}, {sale.orders:,} orders, {PROCESSES} consumers"
    return [Row.of(NAME, test.label, question, "orders/s", rates)]


@asynccontextmanager
async def _empty(database: DatabaseServer | None) -> AsyncIterator[tuple[str, int | None]]:
    """An empty database, of this server or in a file; its URL and the server's process."""
    if database is not None:
        async with database.database() as url:
            yield url, database.pid
        return
    with TemporaryDirectory(prefix="seckill-bench-", dir=directory()) as folder:
        yield f"sqlite:///{folder}/ledger.db", None


async def _checkpoint(url: str) -> None:
    """What one team has left to be written is not to be paid for by the next one."""
    import asyncpg

    connection = await asyncpg.connect(url)
    try:
        await connection.execute("CHECKPOINT")
    finally:
        await connection.close()


def _skipped(label: str, database: str, why: str) -> Row:
    return Row.fact(NAME, label, f"drained into {database}", Verdict.INFO, "–", why)


def _rows(label: str, found: dict[str, list[_Drain]]) -> Iterator[Row]:
    ours = found[LEDGER]
    for way, at_least in ((INSERTS, TARGET), (COPY, None)):
        ratios = [a.rate / b.rate for a, b in zip(ours, found[way], strict=True)]
        question = f"drained into {POSTGRES} against {way}"
        yield Row.of(NAME, label, question, RATIO, ratios, at_least=at_least)
    rates = [drained.rate for drained in ours]
    question = f"drained into {POSTGRES}, {ours[0].orders:,} orders, {PROCESSES} consumers"
    yield Row.of(NAME, label, question, "orders/s", rates, at_least=GOAL)
    for way in (INSERTS, COPY):
        rates = [drained.rate for drained in found[way]]
        yield Row.of(NAME, label, f"the same rows by {way}", "orders/s", rates)
    for way, parts in found.items():
        yield from _costs(label, way, parts)


def _costs(label: str, way: str, parts: Sequence[_Drain]) -> Iterator[Row]:
    """CPU of all processes that had a part in it."""
    who = {"the consumers" if way == LEDGER else "the inserters": [p.team_cpu_s for p in parts]}
    who[POSTGRES] = [part.database_cpu_s for part in parts]
    if way == LEDGER:
        who["Redis"] = [part.redis_cpu_s for part in parts]
    for name, spent_s in who.items():
        values = [s / part.orders * 10_000 for s, part in zip(spent_s, parts, strict=True)]
        yield Row.of(NAME, label, f"CPU of {name}, {way}", "s/10k orders", values)
